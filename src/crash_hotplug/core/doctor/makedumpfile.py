# SPDX-License-Identifier: MIT
"""makedumpfile's version, and the kernels of which that version saves no dump, or a dump that lacks pages.

Only versions that lose data are listed.  A version that keeps pages which it should leave out makes a large dump, not a
wrong one (makedumpfile 72c3414949bd, "fix detection of typed (compound) pages (Linux 6.12)").
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from crash_hotplug.core.machine import kernel_version

_VERSION = re.compile(rb"makedumpfile: version (\d{1,4}(?:\.\d{1,4}){1,3})(\+\+)? \(released on ")
"""The format string of ``makedumpfile -v`` (show_version(), print_info.c); "++" marks the source after a release."""


class Version(NamedTuple):
    """A version of makedumpfile."""

    numbers: tuple[int, ...]
    is_development: bool
    """Whether it was built from the source between this release and the next."""

    def __str__(self) -> str:
        """Return it as makedumpfile writes it."""
        return ".".join(map(str, self.numbers)) + ("++" if self.is_development else "")

    def is_newer_than(self, release: tuple[int, ...]) -> bool:
        """Whether it is newer than a release; the source after that release counts as newer."""
        return self.numbers > release or (self.numbers == release and self.is_development)


class Shortcoming(NamedTuple):
    """A change that makedumpfile needs for a kernel."""

    kernel: tuple[int, int]
    """The first kernel that needs it."""
    last: tuple[int, ...]
    """The newest release without it."""
    options: tuple[str, ...]
    """Options of the kernel's configuration that have to be set; none where every kernel needs the change."""
    commit: str
    """makedumpfile's commit, which a distribution may have added to an older release."""
    effect: str
    way_out: str
    """What else helps than a newer makedumpfile."""


SHORTCOMINGS = (
    Shortcoming(
        kernel=(6, 10),  # 46df8e73a4a3 ("mm: free up PG_slab")
        last=(1, 7, 5),
        options=(),
        commit="bad2a7c",  # "Fix wrong exclusion of Slab pages on Linux 6.10-rc1 and later"
        effect="dump levels with 8 (such as -d 31) leave out slab pages, and crash cannot open such a dump",
        way_out="use -d 17",
    ),
    Shortcoming(
        kernel=(7, 1),  # d50569612c29 ("mm: rename the 'compound_head' field in the 'struct page' to 'compound_info'")
        last=(1, 7, 9),
        options=(),
        commit="f50c015",  # "Fix wrong exclusion of compound tail pages on Linux 7.1 and later"
        effect="it may leave out tail pages of compound pages that belong into the dump",
        way_out="use -d 1",
    ),
    Shortcoming(
        kernel=(6, 9),  # the first with CONFIG_ARM64_VA_BITS_52 for pages of 4 KiB
        last=(1, 7, 9),
        options=("CONFIG_ARM64_4K_PAGES", "CONFIG_ARM64_VA_BITS_52"),
        commit="b7587f1",  # "arm64: Add 5-level page table support for 4K pages with 52-bit VA"
        effect="it reads no dump of an arm64 kernel with 4 KiB pages and 52-bit virtual addresses",
        way_out="copy /proc/vmcore with cp",
    ),
)


def find_version(program: bytes) -> Version | None:
    """Return the version that a makedumpfile program contains; None where it contains none."""
    found = _VERSION.search(program)
    if found is None:
        return None
    return Version(tuple(int(number) for number in found[1].split(b".")), found[2] is not None)


def program_with(version: Version) -> bytes:
    """Return the part of a program from which :func:`find_version` reads the version."""
    return f"makedumpfile: version {version} (released on \n".encode()


def find_shortcomings(version: Version, release: str, has_option: Callable[[str], bool]) -> list[Shortcoming]:
    """Return the changes that this makedumpfile lacks for a kernel.

    :param release: the kernel's release, as in /proc/sys/kernel/osrelease
    :param has_option: whether the kernel was built with an option such as ``CONFIG_ARM64_VA_BITS_52``
    """
    kernel = kernel_version(release)
    if kernel is None:
        return []
    return [
        lack
        for lack in SHORTCOMINGS
        if kernel >= lack.kernel and not version.is_newer_than(lack.last) and all(map(has_option, lack.options))
    ]
