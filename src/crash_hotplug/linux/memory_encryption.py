"""Whether the machine's memory is encrypted: then the reserved region is not what /proc/kcore shows of it."""

from __future__ import annotations

import re

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.machine import NoteRegion
from crash_hotplug.core.vmcoreinfo import parse_vmcoreinfo
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import LARGE, Sysroot

CPUINFO = "/proc/cpuinfo"
_GUEST_FLAGS = {"tdx_guest": "Intel TDX", "sev_guest": "AMD SEV"}
_NOTE_HEADER = 24
"""Bytes before the text: the note's three words and the name ``VMCOREINFO``."""


def memory_encryption(sysroot: Sysroot, kcore: Kcore, vmcoreinfo: NoteRegion | None) -> str | None:
    """Return the name of the encryption that is in use, or None.

    vmcoreinfo's ``sme_mask`` says it for AMD's SME and SEV; for Intel's TDX a flag in /proc/cpuinfo does.  AMD's own
    flags there are of no use: they tell what the processor could do.

    :raise CannotTellError: vmcoreinfo cannot be read
    """
    data = sysroot.read(CPUINFO, LARGE) or b""
    flags = re.search(rb"^flags\s*:(.*)$", data, re.MULTILINE)
    present = set(flags[1].decode("ascii", "replace").split()) if flags else set()
    for flag, name in _GUEST_FLAGS.items():
        if flag in present:
            return name
    if vmcoreinfo is None:
        raise CannotTellError("vmcoreinfo cannot be read, so whether memory is encrypted cannot be told")
    note = kcore.read_phys(vmcoreinfo.phys, vmcoreinfo.size)
    return "AMD SME or SEV" if parse_vmcoreinfo(note[_NOTE_HEADER:].split(b"\0")[0]).sme_mask else None
