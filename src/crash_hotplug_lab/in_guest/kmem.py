# SPDX-License-Identifier: MIT
"""In the guest: gives an NVDIMM to the kmem driver as RAM, and takes it away again, as ndctl and daxctl do.

``kmem.py add`` prints start and end of the new RAM; ``kmem.py remove`` takes it offline and removes it.  The guest has
one NVDIMM.  Its namespace becomes a device-dax device (Documentation/driver-api/nvdimm), which the kmem driver takes
(drivers/dax/kmem.c).
"""

from __future__ import annotations

import re
import sys
import time
import uuid
from pathlib import Path

_ND, _DAX = Path("/sys/bus/nd"), Path("/sys/bus/dax")  # codespell:ignore nd
_MEMORY = Path("/sys/devices/system/memory")
_LIMIT = 30.0


def ram() -> list[tuple[int, int]]:
    """Return the physical ranges of RAM that the kmem driver added."""
    lines = Path("/proc/iomem").read_text().splitlines()
    found = [re.match(r" *([0-9a-f]+)-([0-9a-f]+) : System RAM \(kmem\)", line) for line in lines]
    return [(int(match[1], 16), int(match[2], 16) + 1) for match in found if match]


def blocks(start: int, end: int) -> list[Path]:
    """Return the memory blocks of a range."""
    size = int((_MEMORY / "block_size_bytes").read_text(), 16)
    return [_MEMORY / f"memory{number}" for number in range(start // size, end // size)]


def write(path: Path, text: str) -> None:
    """Write a file of sysfs; the error names the file."""
    try:
        path.write_text(text)
    except OSError as error:
        sys.exit(f"cannot write {text!r} to {path}: {error.strerror}")


def unbind(device: Path) -> None:
    """Take a device from its driver."""
    if (device / "driver").exists():
        write(device / "driver/unbind", device.name)


def make_device_dax() -> None:
    """Turn the NVDIMM's namespace into a device-dax device."""
    namespaces = sorted((_ND / "devices").glob("namespace*"))
    if not namespaces:
        sys.exit(f"there is no namespace; devices: {sorted(p.name for p in (_ND / 'devices').iterdir())}")
    namespace = namespaces[0].resolve()
    seed = namespace.parent / (namespace.parent / "dax_seed").read_text().strip()
    unbind(namespace)
    write(seed / "uuid", str(uuid.uuid4()))
    write(seed / "mode", "ram")  # its struct pages, if any, are in RAM and not on the device
    write(seed / "align", str(2 << 20))
    write(seed / "namespace", namespace.name)
    write(_ND / "drivers/dax_pmem/bind", seed.name)


def add() -> None:
    """Give the device to the kmem driver, and print the range of its RAM."""
    if not list((_DAX / "devices").glob("dax*")):
        make_device_dax()
    end = time.monotonic() + _LIMIT
    while not (found := sorted((_DAX / "devices").glob("dax*"))):
        if time.monotonic() > end:
            sys.exit("no device-dax device appeared")
        time.sleep(0.1)
    device = found[0].resolve()
    unbind(device)
    kmem = _DAX / "drivers/kmem"
    write(kmem / "new_id", device.name)
    if not (device / "driver").exists():
        write(kmem / "bind", device.name)
    if not ram():
        sys.exit(f"kmem added no memory: {Path('/proc/iomem').read_text()[-600:]}")
    start, stop = ram()[0][0], ram()[-1][1]
    for block in blocks(start, stop):
        if (block / "state").read_text().strip() == "offline":
            write(block / "state", "online_movable")
    print(start, stop)


def remove() -> None:
    """Take the memory offline and the device from the kmem driver, which removes the memory."""
    for start, end in ram():
        for block in blocks(start, end):
            if (block / "state").read_text().strip() != "offline":
                write(block / "state", "offline")
    unbind(sorted((_DAX / "devices").glob("dax*"))[0].resolve())
    if ram():
        sys.exit("kmem kept the memory")


if __name__ == "__main__":
    {"add": add, "remove": remove}[sys.argv[1]]()
