# SPDX-License-Identifier: MIT
"""In the guest: the state of the loaded crash image over time: accurate, stale, or no image loaded.

A verdict takes 0.1 s in an emulated guest, too long to be reached 20 times a second beside the service that is
measured.  So a sample only reads what the verdict depends on: the loaded elfcorehdr, /proc/iomem and the online CPUs.
The samples are judged afterwards, by the same comparison as ``crash-hotplug status``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from crash_hotplug.core.elf import ElfFormatError
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.image import CrashImage, parse_kimage
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.verdict import assess
from crash_hotplug.linux.btf_file import kimage_layouts
from crash_hotplug.linux.cpus import parse_cpu_list
from crash_hotplug.linux.crash_image import read_identity
from crash_hotplug.linux.iomem import parse_iomem
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot

ACCURATE = "accurate"
"""The header describes all RAM and every online CPU, and nothing else."""
STALE = "stale"
"""An image is loaded, and its header is not accurate."""
NO_IMAGE = "no image"

_LOADED, _IOMEM, _ONLINE = "/sys/kernel/kexec_crash_loaded", "/proc/iomem", "/sys/devices/system/cpu/online"
_ELF_HEADER, _PROGRAM_HEADER = 64, 56
_E_TYPE, _E_PHNUM = slice(16, 18), slice(56, 58)
_ET_CORE = b"\4\0"


class Sample(NamedTuple):
    """A sample of the loaded image and of the machine at one moment."""

    at: float
    """Monotonic time, seconds."""
    header: bytes
    """The loaded elfcorehdr; empty if no image is loaded."""
    iomem: str
    """Text of /proc/iomem; empty if no image is loaded, as is ``online``."""
    online: str
    """Text of /sys/devices/system/cpu/online, such as ``0-3``."""


class Sampler:
    """Takes samples of the running machine."""

    def __init__(self) -> None:
        """Read the machine once; no sample is taken yet."""
        self.samples: list[Sample] = []
        self.discarded = 0
        """Number of samples during which the image was replaced."""
        self._sysroot = Sysroot()
        self._crashkernel = read_machine(self._sysroot).crashkernel
        self._kcore = Kcore(self._sysroot)
        self._identity = b""
        self._header_phys = 0
        self._kept: dict[object, object] = {}

    def take(self) -> None:
        """Take one sample."""
        at = time.monotonic()
        if _text(_LOADED) == "0":
            self.samples.append(Sample(at, b"", "", ""))
            return
        header = self._header()
        if not header:
            self.discarded += 1
            return
        # equal contents are kept once: thousands of samples have a few hundred different headers
        contents = (header, _text(_IOMEM), _text(_ONLINE))
        self.samples.append(Sample(at, *(self._kept.setdefault(part, part) for part in contents)))  # type: ignore[arg-type]

    def _header(self) -> bytes:
        """Return the loaded elfcorehdr; empty where the image was replaced meanwhile."""
        try:
            identity = read_identity(self._sysroot, self._kcore)
            if identity and identity != self._identity:
                self._header_phys = self._find_header(identity[8:])
                self._identity = identity
            start = self._kcore.read_phys(self._header_phys, _ELF_HEADER)
            entries = int.from_bytes(start[_E_PHNUM], "little")
            header = self._kcore.read_phys(self._header_phys, _ELF_HEADER + _PROGRAM_HEADER * entries)
            if identity and read_identity(self._sysroot, self._kcore) == identity:
                return header
        except CrashHotplugError:
            pass
        # The file offsets of kcore move where added memory makes its own headers a page longer
        self._kcore.close()
        self._kcore, self._identity = Kcore(self._sysroot), b""
        return b""

    def _find_header(self, kimage: bytes) -> int:
        """Return the physical address of the elfcorehdr, the one segment that is an ELF core file."""
        for segment in parse_kimage(kimage, self._crashkernel, kimage_layouts(self._sysroot)).segments:
            start = self._kcore.read_phys(segment.phys, _ELF_HEADER)
            if start[:4] == b"\x7fELF" and start[_E_TYPE] == _ET_CORE:
                return segment.phys
        raise CannotTellError("no segment is an elfcorehdr")

    def states(self) -> list[tuple[float, str]]:
        """Judge all samples; return the time and the state of each.

        Call it when every CPU that a sample saw is still plugged in: sysfs has crash_notes of present CPUs only.
        """
        machine = read_machine(self._sysroot)
        known: dict[tuple[bytes, str, str], str] = {}
        for sample in self.samples:
            if sample[1:] not in known:
                known[sample[1:]] = state_of(machine, sample)
        return [(sample.at, known[sample[1:]]) for sample in self.samples]


def state_of(machine: Machine, sample: Sample) -> str:
    """Return the state of the image at a sample.

    :param machine: the same machine at any other moment; RAM and CPUs are taken from the sample
    """
    if not sample.header:
        return NO_IMAGE
    online = set(parse_cpu_list(sample.online))
    cpus = tuple(cpu._replace(present=cpu.number in online, online=cpu.number in online) for cpu in machine.cpus)
    then = machine._replace(cpus=cpus, ram=parse_iomem(sample.iomem).ram)
    try:
        verdict = assess(then, CrashImage(sample.header)).comparison.verdict
    except ElfFormatError:
        return STALE
    return ACCURATE if verdict is Verdict.ACCURATE else STALE


def transitions(states: Iterable[tuple[float, str]], first: float) -> list[tuple[float, str]]:
    """Return the changes of the state: seconds since ``first``, and the new state.

    The first entry is the state at ``first`` itself, that of the last sample before it.

    :param states: monotonic time and state of each sample, in order
    :param first: monotonic time of the first event
    """
    changes: list[tuple[float, str]] = []
    for at, state in states:
        since = max(0.0, round(at - first, 3))
        if since == 0.0:
            changes = [(0.0, state)]
        elif not changes or changes[-1][1] != state:
            changes.append((since if changes else 0.0, state))
    return changes


def _text(path: str) -> str:
    with open(path) as file:
        return file.read().strip()
