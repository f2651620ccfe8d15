# SPDX-License-Identifier: MIT
"""Dumps in makedumpfile's compressed format, which the diskdump project had before it.

The first bitmap has the pages that are no memory hole, which are those that the elfcorehdr described; the second one
those that were saved.  An audit needs no page's contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.arch.supported import architecture_named
from crash_hotplug.core.dump.diskdump_header import INCOMPLETE, DiskdumpHeader, parse_diskdump_header
from crash_hotplug.core.dump.page_bitmap import BitmapCutError, SavedPages, count_saved, described_pages
from crash_hotplug.core.dump.page_descriptors import DESCRIPTOR_SIZE, DescriptorTable, PageData, read_page_data
from crash_hotplug.core.dump.vmcore import (
    HEAD_LIMIT,
    NOTE_COUNT_LIMIT,
    NOTES_LIMIT,
    WHAT,
    ByteSource,
    DumpFile,
    Flattening,
    Vmcore,
)
from crash_hotplug.core.elf import Note, parse_notes
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.finding import Comparison, Finding, Kind
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.core.verdict import compare_text_offset
from crash_hotplug.core.vmcoreinfo import parse_kernel_text_offset

_PRSTATUS_NAMES = {336: "x86_64", 392: "aarch64"}
"""Architectures by the size of ``struct elf_prstatus``."""
LEAVES_PAGES_OUT = ~1
"""Bits of the dump level that leave pages out; 1 saves one page for all that have only zeros."""


class DiskdumpFile(NamedTuple):
    """One file of a compressed dump; a split one has several."""

    header: DiskdumpHeader
    notes_cut: int
    described: RangeList | None
    """Ranges of page frames in the first bitmap; None where the file ends before it does."""
    saved: SavedPages | None
    """Pages in the second bitmap; None as above."""
    page_data: PageData | None
    """What the page descriptors tell; None in a stream, where they pass, and without bitmaps."""
    size: int
    flattening: Flattening | None

    @property
    def announced_size(self) -> int:
        """Bytes the file should have, at least."""
        end = self.header.descriptors_offset
        if self.saved is not None:
            end += DESCRIPTOR_SIZE * self.saved.own
        if self.page_data is not None:
            end = max(end, self.page_data.end)
        return max(end, self.header.erased_place.end if self.header.erased_place.size else 0)

    @property
    def is_beginning(self) -> bool:
        """Whether this is only the beginning of the file: its headers, hardly more."""
        if self.flattening is not None:
            return self.flattening.is_beginning
        descriptors = 0 if self.saved is None else self.saved.own * DESCRIPTOR_SIZE
        return self.size <= HEAD_LIMIT and self.size < self.header.descriptors_offset + descriptors

    @property
    def name(self) -> str:
        """The file in sentences."""
        return f"the part with the pages from {_pages(self.header.split_pages)}" if self.header.is_split else "the file"


class _DiskdumpVmcore(NamedTuple):
    architecture: Architecture
    parts: tuple[DiskdumpFile, ...]
    """The files in the order of their pages."""
    notes: tuple[Note, ...]
    own_vmcoreinfo: bytes
    """The text of vmcoreinfo by its place in the sub-header."""


class DiskdumpVmcore(_DiskdumpVmcore, Vmcore):
    """The headers, notes and bitmaps of a compressed dump."""

    format_name = "kdump-compressed"

    @property
    def header(self) -> DiskdumpHeader:
        """The headers of the first file: those of the others differ in their pages only."""
        return self.parts[0].header

    @property
    def notes_cut(self) -> int:
        """Bytes of notes that the sub-header announces and the first file does not have."""
        return self.parts[0].notes_cut

    @property
    def ram(self) -> RangeList:
        """Physical ranges that the first bitmap describes, in whole pages."""
        size = self.page_size
        return RangeList((start * size, end * size) for start, end in self.parts[0].described or ())

    @property
    def page_size(self) -> int:
        """Bytes in a page."""
        return self.header.block_size

    @property
    def saved_size(self) -> int | None:
        """Bytes of the pages that the second bitmap has for the given files; a page of zeros counts."""
        counted = {part.header.split_pages: part.saved for part in self.parts}
        known = [saved.own for saved in counted.values() if saved is not None]
        return sum(known) * self.page_size if len(known) == len(counted) else None

    @property
    def left_out_pages(self) -> int | None:
        """Pages that are described and not saved in any file."""
        first = self.parts[0]
        if first.described is None or first.saved is None:
            return None
        return first.described.size - first.saved.total + first.saved.stray

    @property
    def left_out_size(self) -> int | None:
        """Bytes of RAM that are described and not saved in any file."""
        return None if self.left_out_pages is None else self.left_out_pages * self.page_size

    @property
    def dump_level(self) -> int:
        """The ``-d`` with which makedumpfile saved it."""
        return self.header.dump_level

    @property
    def compression(self) -> str | None:
        """The method by which pages are compressed."""
        return self.header.compression

    @property
    def files(self) -> tuple[DumpFile, ...]:
        """The files of the dump."""
        return tuple(
            DumpFile(
                part.size,
                part.announced_size,
                part.is_beginning,
                part.page_data is None or not part.page_data.is_end_known,
                part.name,
                part.flattening,
            )
            for part in self.parts
        )

    @property
    def vmcoreinfo_text(self) -> bytes:
        """The text of vmcoreinfo, out of the notes or by its own place."""
        return super().vmcoreinfo_text or self.own_vmcoreinfo

    @property
    def kernel_release(self) -> str | None:
        """The release in vmcoreinfo, else in the header's utsname."""
        return self.vmcoreinfo.kernel_release or self.header.kernel_release

    @property
    def why_no_notes(self) -> str | None:
        """Why there are no notes: the first versions had no room for them."""
        version = self.header.version
        return None if version >= 4 else f"version {version} of the compressed format has no notes"

    @property
    def why_ram_unknown(self) -> str | None:
        """Why the described memory is not known."""
        return None if self.parts[0].described is not None else "the file ends before its first bitmap does"

    def add_layout(self, result: Comparison) -> None:
        """Check bitmaps, pages and parts by themselves."""
        first = self.parts[0]
        if first.described is None:
            result.unchecked.append(f"memory: {self.why_ram_unknown}")
        elif not first.described:
            result.findings.append(Finding(Kind.MALFORMED, "no memory is described"))
        if first.described and first.saved is not None and first.saved.total == 0:
            result.findings.append(Finding(Kind.TRUNCATED, "no page was saved: the dump has no memory"))
        if first.saved is not None and first.saved.stray:
            sentence = f"{count(first.saved.stray, 'page is', 'pages are')} saved that the first bitmap does not have"
            result.findings.append(Finding(Kind.MALFORMED, sentence))
        for part in self.parts:
            _add_pages(part, result)
        if self.header.is_split:
            self._add_split(result)
        self._add_left_out(result)
        if self.header.erased_place.size:
            sentence = "makedumpfile erased data by its configuration: the dump lists it, and lacks it on purpose"
            result.notes.append(Finding(Kind.LEFT_OUT, sentence))

    def _add_split(self, result: Comparison) -> None:
        """Check that the parts have each page once, and describe the same memory."""
        given = [part.header.split_pages for part in self.parts]
        pages = Range(0, self.header.pages)
        at = 0
        for start, end in given:
            if start < min(at, end):
                twice = Range(start, min(at, end))
                sentence = f"the pages from {_pages(twice)} are in two of the given parts of this split dump"
                result.findings.append(Finding(Kind.PART_GIVEN_TWICE, sentence, (self._physical(twice),)))
            at = max(at, end)
        for start, end in RangeList([pages]).exclude(RangeList(given)):
            sentence = f"the part with the pages from {_pages(Range(start, end))} of this split dump is not given"
            result.findings.append(Finding(Kind.PART_MISSING, sentence, (self._physical(Range(start, end)),)))
        known = {part.described for part in self.parts if part.described is not None}
        if len(known) > 1:
            sentence = "the parts of this split dump describe different memory"
            result.findings.append(Finding(Kind.MALFORMED, sentence))

    def _physical(self, pages: Range) -> Range:
        return Range(pages.start * self.page_size, pages.end * self.page_size)

    def _add_left_out(self, result: Comparison) -> None:
        """Check that the dump level allows for the pages that are described and not saved.

        A page that is RAM only in part may be described and not saved: two for each range.
        """
        left_out = self.left_out_pages
        if left_out is None or self.dump_level & LEAVES_PAGES_OUT:
            return
        if left_out > 2 * len(self.ram):
            result.unchecked.append(
                f"whether {human_size(left_out * self.page_size)} are lost, which are described and not saved: dump "
                f"level {self.dump_level} leaves no pages out"
            )

    def compare_addresses(self, machine: Machine, result: Comparison) -> None:
        """Compare the place of the kernel text: the format has no other virtual address."""
        compare_text_offset(machine, parse_kernel_text_offset(self.vmcoreinfo_text), result)


def _add_pages(part: DiskdumpFile, result: Comparison) -> None:
    """Add what the descriptors tell about the pages of one file."""
    data, is_marked = part.page_data, bool(part.header.status & INCOMPLETE)
    if data is not None and data.malformed is not None:
        sentence = f"the descriptor of the last page in {part.name} is malformed: {data.malformed}"
        result.findings.append(Finding(Kind.MALFORMED, sentence))
    if data is not None and data.lost_pages and part.saved is not None:
        size = part.header.block_size
        sentence = f"{human_size(data.lost_pages * size)} of {human_size(part.saved.own * size)} to be saved"
        sentence += f" are not in {part.name}" + (": makedumpfile ran out of space" if is_marked else "")
        result.findings.append(Finding(Kind.TRUNCATED, sentence))
    elif is_marked:
        sentence = f"makedumpfile marked {part.name} as incomplete: it ran out of space"
        result.findings.append(Finding(Kind.TRUNCATED, sentence))
    if data is None or data.is_end_known or data.lost_pages or data.malformed is not None:
        return
    if part.size >= part.announced_size:
        result.unchecked.append(f"the end of {part.name}: more pages of zeros come last than are looked through")


def _pages(pages: Range) -> str:
    return f"{pages.start:#x} to {pages.end:#x}"


def parse_diskdump(source: ByteSource, flattening: Flattening | None = None) -> DiskdumpVmcore:
    """Read headers, notes and bitmaps of a compressed dump, and the last page descriptors.

    :param flattening: how the stream ended that it was read from; None where it was none
    :raise InputError: it is malformed, or truncated inside its headers
    """
    header = parse_diskdump_header(source)
    place = header.notes_place
    text = b""
    contents = source.read_at(place.start, min(place.size, NOTES_LIMIT)) if place.size else b""
    notes = tuple(islice(parse_notes(contents), NOTE_COUNT_LIMIT))
    if header.vmcoreinfo_place.size and not any(note.name == b"VMCOREINFO" for note in notes):
        text = source.read_at(header.vmcoreinfo_place.start, min(header.vmcoreinfo_place.size, HEAD_LIMIT))
    described = saved = page_data = None
    try:
        described = described_pages(source, header.bitmaps_offset, header.pages)
        second = header.bitmaps_offset + header.bitmap_size
        saved = count_saved(source, second, header.pages, described, header.split_pages)
        if flattening is None:
            data_offset = header.descriptors_offset + DESCRIPTOR_SIZE * saved.total
            table = DescriptorTable(header.descriptors_offset, saved.own, data_offset, header.block_size)
            page_data = read_page_data(source, table)
    except BitmapCutError:
        pass
    size = source.size
    cut = place.size - max(0, min(place.size, size - place.start))
    part = DiskdumpFile(header, cut, described, saved, page_data, size, flattening)
    return DiskdumpVmcore(header.architecture or _architecture_of(notes), (part,), notes, text)


def _architecture_of(notes: Sequence[Note]) -> Architecture:
    """Return the architecture whose registers the notes have.

    :raise InputError: none that is supported
    """
    sizes = {len(note.descriptor) for note in notes if note.has_registers}
    name = _PRSTATUS_NAMES.get(sizes.pop(), "") if len(sizes) == 1 else ""
    architecture = architecture_named(name)
    if architecture is None:
        why = "neither its header nor the size of its registers does"
        raise InputError(f"{WHAT} does not tell its architecture: {why}")
    return architecture


def join_parts(vmcores: Sequence[DiskdumpVmcore]) -> DiskdumpVmcore:
    """Return the split dump that has the files of *vmcores*."""
    parts = sorted((part for v in vmcores for part in v.parts), key=lambda part: part.header.split_pages)
    return vmcores[0]._replace(parts=tuple(parts))


def is_same_dump(one: DiskdumpVmcore, other: DiskdumpVmcore) -> bool:
    """Whether two files are parts of the same split dump: of one kernel, one panic and one memory."""
    a, b = one.header, other.header
    return (
        a.is_split
        and b.is_split
        and (a.pages, a.block_size, a.kernel_release) == (b.pages, b.block_size, b.kernel_release)
        and one.vmcoreinfo_text == other.vmcoreinfo_text
        and one.notes == other.notes
    )
