# SPDX-License-Identifier: MIT
"""Findings about a header or a dump, and the result of a comparison: findings, notes, checks that were not made."""

from __future__ import annotations

from enum import Enum

from crash_hotplug.core.ranges import Range
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.sizes import human_size


class Verdict(str, Enum):
    """The answer to "would a panic now be dumped completely?"."""

    ACCURATE = "accurate"
    NOT_ACCURATE = "not accurate"
    NO_IMAGE = "no crash image"
    CANNOT_TELL = "cannot tell"


class Kind(str, Enum):
    """The subject of a finding or a note."""

    CPU_MISSING = "cpu-missing"
    CPU_NOTES_TOO_SMALL = "cpu-notes-too-small"
    CPU_OFFLINE_NOT_DESCRIBED = "cpu-offline-not-described"
    ALL_POSSIBLE_CPUS = "all-possible-cpus-described"
    CPU_SAVED_NOTHING = "cpu-saved-nothing"
    MEMORY_MISSING = "memory-missing"
    MEMORY_OFFLINE_NOT_DESCRIBED = "memory-offline-not-described"
    MEMORY_NOT_PLUGGED = "memory-not-plugged"
    MEMORY_GONE = "memory-described-but-gone"
    CRASHKERNEL_DESCRIBED = "crashkernel-described"
    BACKUP_REGION_DROPPED = "backup-region-dropped"
    WRONG_KERNEL_TEXT = "wrong-kernel-text"
    WRONG_VMCOREINFO = "wrong-vmcoreinfo"
    WRONG_DIRECT_MAP = "wrong-direct-map-address"
    WRONG_SOURCE = "memory-read-from-elsewhere"
    HEADER_NOT_FOUND = "elfcorehdr-not-found"
    WRONG_BACKUP_REGION = "wrong-backup-region"
    DESCRIBED_TWICE = "notes-described-twice"
    UNKNOWN_NOTES = "unknown-notes"
    UNUSUAL = "not-as-a-loader-writes-it"
    TORN_IMAGE = "torn-image"
    MALFORMED = "malformed"
    OVERLAP = "overlap"
    FILE_OVERLAP = "file-ranges-overlap"
    MISPLACED = "misplaced-in-the-file"
    TRUNCATED = "truncated"
    PART_MISSING = "part-missing"
    PART_GIVEN_TWICE = "part-given-twice"
    LEFT_OUT = "left-out"
    ROOM_LEFT = "room-left"
    DOES_NOT_FIT = "expected-header-does-not-fit"
    CAPTURE_KERNEL_CLAIMS_MEMORY = "capture-kernel-claims-memory"


class Finding(NamedTuple):
    """One defect of a header, or one fact worth a note."""

    kind: Kind
    sentence: str
    """The loss that a dump would have, for people."""
    ranges: tuple[Range, ...] = ()
    """Physical ranges it is about."""
    cpu: int | None = None
    """The CPU it is about."""

    @property
    def size(self) -> int:
        """Bytes of memory it is about."""
        if len(self.ranges) == 1:  # of most there is one, and there may be many
            return self.ranges[0].size
        return sum(end - start for start, end in self.ranges)


class Comparison:
    """The result of a comparison.  Findings decide the verdict; notes do not."""

    def __init__(self) -> None:
        """Start with nothing found."""
        self.findings: list[Finding] = []
        self.notes: list[Finding] = []
        self.unchecked: list[str] = []
        """Checks that could not be made, each a sentence; with no finding they make the verdict "cannot tell"."""
        self.left_out: list[str] = []
        """Checks that need more than was given, each a sentence; they do not change the verdict."""

    @property
    def verdict(self) -> Verdict:
        """Findings decide; without one, a check that could not be made does."""
        if self.findings:
            return Verdict.NOT_ACCURATE
        return Verdict.CANNOT_TELL if self.unchecked else Verdict.ACCURATE


def placed(r: Range) -> str:
    """Return size and start of a physical range, for people."""
    return f"{human_size(r.size)} at {r.start:#x}"
