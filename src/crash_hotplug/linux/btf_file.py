# SPDX-License-Identifier: MIT
"""/sys/kernel/btf/vmlinux: the running kernel's layout of ``struct kimage``."""

from __future__ import annotations

from functools import lru_cache

from crash_hotplug.core.btf import struct_members
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.image import KNOWN_LAYOUTS, KimageLayout, layout_from_members
from crash_hotplug.linux.sysroot import LARGE, Sysroot

PATH = "/sys/kernel/btf/vmlinux"


def kimage_layouts(sysroot: Sysroot) -> tuple[KimageLayout, ...]:
    """Return the kernel's own layout where it has BTF, else the known layouts, to be tried in turn."""
    own = _live_layout() if sysroot.is_live else _read_layout(sysroot)
    return KNOWN_LAYOUTS if own is None else (own,)


def layout_source(sysroot: Sysroot) -> str:
    """Return where the layout of ``struct kimage`` comes from: ``BTF``, or the ``table`` of known ones."""
    return "table" if kimage_layouts(sysroot) is KNOWN_LAYOUTS else "BTF"


@lru_cache(maxsize=1)
def _live_layout() -> KimageLayout | None:
    return _read_layout(Sysroot())


def _read_layout(sysroot: Sysroot) -> KimageLayout | None:
    try:
        data = sysroot.read(PATH, LARGE)
    except CrashHotplugError:
        return None
    members = struct_members(data, "kimage", KimageLayout._fields) if data is not None else None
    return None if members is None else layout_from_members(members)
