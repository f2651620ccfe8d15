# SPDX-License-Identifier: MIT
"""In the guest: gives an NVDIMM or a CXL memory device to the kmem driver as RAM, and takes it away again.

``kmem.py add nvdimm`` and ``kmem.py add cxl`` print start and end of the new RAM; ``kmem.py remove`` takes it offline
and removes it.  The guest has one such device.  The namespace of an NVDIMM becomes a device-dax device
(Documentation/driver-api/nvdimm), as ndctl makes it; so does a region of volatile CXL memory
(Documentation/ABI/testing/sysfs-bus-cxl), as the program cxl makes it.  The kmem driver (drivers/dax/kmem.c) takes it.
"""

from __future__ import annotations

import re
import sys
import time
import uuid
from pathlib import Path

_ND, _DAX = Path("/sys/bus/nd"), Path("/sys/bus/dax")  # codespell:ignore nd
_CXL = Path("/sys/bus/cxl")
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


def wait_for(bus: Path, pattern: str) -> Path:
    """Wait until a bus has a device of such a name; return the first."""
    end = time.monotonic() + _LIMIT
    while not (found := sorted((bus / "devices").glob(pattern))):
        if time.monotonic() > end:
            others = sorted(path.name for path in (bus / "devices").glob("*"))
            sys.exit(f"{bus} has no device {pattern}; it has {', '.join(others)}")
        time.sleep(0.1)
    return found[0].resolve()


def make_of_nvdimm() -> None:
    """Turn the NVDIMM's namespace into a device-dax device."""
    namespace = wait_for(_ND, "namespace*")
    seed = namespace.parent / (namespace.parent / "dax_seed").read_text().strip()
    unbind(namespace)
    write(seed / "uuid", str(uuid.uuid4()))
    write(seed / "mode", "ram")  # its struct pages, if any, are in RAM and not on the device
    write(seed / "align", str(2 << 20))
    write(seed / "namespace", namespace.name)
    write(_ND / "drivers/dax_pmem/bind", seed.name)


def make_of_cxl() -> None:
    """Make a region of all memory of the CXL device, which becomes a device-dax device (drivers/cxl/core/region.c)."""
    memory = wait_for(_CXL, "mem*")
    window = wait_for(_CXL, "decoder0.*")
    decoder = sorted(wait_for(_CXL, "endpoint*").glob("decoder*"))[0]
    size = (memory / "ram/size").read_text().strip()
    create = window / "create_ram_region"
    region = window / create.read_text().strip()
    write(create, region.name)
    write(region / "interleave_granularity", "256")
    write(region / "interleave_ways", "1")
    write(decoder / "mode", "ram")
    write(decoder / "dpa_size", size)
    write(region / "size", size)
    write(region / "target0", decoder.name)
    write(region / "commit", "1")
    if not (region / "driver").exists():
        write(_CXL / "drivers/cxl_region/bind", region.name)


def bind_nvdimm() -> None:
    """Give the NVDIMM's device-dax device to the kmem driver."""
    if not list((_DAX / "devices").glob("dax*")):
        make_of_nvdimm()
    device, kmem = wait_for(_DAX, "dax*"), _DAX / "drivers/kmem"
    unbind(device)
    write(kmem / "new_id", device.name)
    if not (device / "driver").exists():
        write(kmem / "bind", device.name)


def add(kind: str) -> None:
    """Give the device to the kmem driver, and print the range of its RAM, whose blocks may not be online yet."""
    if kind == "nvdimm":
        bind_nvdimm()
    else:
        make_of_cxl()  # the driver takes its device by itself (IORESOURCE_DAX_KMEM in drivers/dax/cxl.c), maybe later
    end = time.monotonic() + _LIMIT
    while not (found := ram()):
        if time.monotonic() > end:
            sys.exit(f"kmem added no memory: {Path('/proc/iomem').read_text()[-600:]}")
        time.sleep(0.1)
    print(found[0][0], found[-1][1])


def remove() -> None:
    """Take the memory offline and the device from the kmem driver, which removes the memory; delete a CXL region."""
    for start, end in ram():
        for block in blocks(start, end):
            if (block / "state").read_text().strip() != "offline":
                write(block / "state", "offline")
    for device in (_DAX / "devices").glob("dax*"):
        unbind(device.resolve())
    if ram():
        sys.exit("kmem kept the memory")
    for region in [path.resolve() for path in (_CXL / "devices").glob("region*")]:
        write(region / "commit", "0")
        write(region.parent / "delete_region", region.name)


if __name__ == "__main__":
    if sys.argv[1] == "add":
        add(sys.argv[2])
    else:
        remove()
