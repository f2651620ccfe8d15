"""/sys/devices/system/memory: the hot-plug memory blocks."""

from __future__ import annotations

import re

from crash_hotplug.core.errors import InputError
from crash_hotplug.core.machine import MemoryBlocks
from crash_hotplug.linux.sysroot import Sysroot

DIRECTORY = "/sys/devices/system/memory"


def block_names(sysroot: Sysroot) -> list[str]:
    """Return the names of the block directories, ``memory0`` and so on."""
    return [name for name in sysroot.names(DIRECTORY) if re.fullmatch(r"memory\d{1,9}", name)]


def read_memory_blocks(sysroot: Sysroot) -> MemoryBlocks | None:
    """Read block size and counts; None on kernels without memory hot-plug.

    :raise InputError: the block size is not a hexadecimal number
    """
    size = sysroot.read_text(f"{DIRECTORY}/block_size_bytes")
    if size is None:
        return None
    if not re.fullmatch(r"[0-9a-f]{1,16}", size):
        raise InputError(f"{sysroot.locate(DIRECTORY)}/block_size_bytes is not a hexadecimal number: {size[:20]!r}")
    states = [sysroot.read_text(f"{DIRECTORY}/{name}/state") for name in block_names(sysroot)]
    online = sum(1 for state in states if state == "online")
    return MemoryBlocks(int(size, 16), online, len(states) - online)
