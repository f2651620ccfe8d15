"""Kernel modules for the initramfs: found in an unpacked module tree, uncompressed, in the order they must be loaded.

The order comes from each module's own ``.modinfo`` (``depends=virtio,virtio_ring``): packages that were only unpacked
have no ``modules.dep``, which depmod writes when they are installed.
"""

from __future__ import annotations

import gzip
import lzma
import re
import subprocess
from pathlib import Path

from crash_hotplug_lab.qemu.errors import LabError


def load_order(modules: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Return name and content of each wanted module and of what it depends on, in the order of loading.

    Modules that the tree does not have are taken to be built into the kernel and are left out.

    :raise LabError: when a module is compressed in a way that cannot be read here.
    """
    files = {_name(path): path for path in modules.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in order or name not in files:
            return
        content = _read(files[name])
        for needed in _depends(content):
            visit(needed)
        order[name] = content

    for name in wanted:
        visit(name)
    return order


def _name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _depends(content: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    return [name.replace("-", "_") for name in found.group(1).decode().split(",") if name] if found else []


def _read(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix == ".ko":
        return raw
    if path.suffix == ".xz":
        return lzma.decompress(raw)
    if path.suffix == ".gz":
        return gzip.decompress(raw)
    try:
        return subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        raise LabError(f"cannot uncompress the module {path.name}; zstd is needed for it") from None
