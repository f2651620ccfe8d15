# SPDX-License-Identifier: MIT
"""Addresses of symbols out of the table in the kernel's memory from which /proc/kallsyms is printed.

Printing 150,000 lines takes the kernel as long as four updates take.  The table has 2 MB; searching it for a few names
is fast.  vmcoreinfo has its address since Linux 6.0 (f09bddbd8661, "vmcoreinfo: include kallsyms symbols").

Names are compressed (scripts/kallsyms.c): a byte stands for a token of one or more characters.  The script makes the
tokens from 255 down to 0; each replaces, in all names, the pair of tokens that is the most frequent at that time.
This module compresses a name by the same replacements, and then searches for its bytes.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_PARTS = ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")
_MARKER_STEP = 256
"""A marker is the offset, in the names, of each 256th symbol."""
_MOST_BYTES = 64 << 20


class Symbol(NamedTuple):
    """A global function or variable of the kernel."""

    virt: int
    """Virtual address."""
    type: str
    """The letter of nm(1), such as ``T`` for a function."""


class KallsymsTable:
    """The kernel's own symbols, without those of modules."""

    def __init__(self, places: Mapping[str, int], read_virt: Callable[[int, int], bytes]) -> None:
        """Read the names, and prove the table by the address of ``_stext``.

        :param places: virtual addresses of symbols, from vmcoreinfo
        :param read_virt: reads so many bytes of kernel memory at a virtual address
        :raise CannotTellError: vmcoreinfo lacks the address, or the layout is not the known one
        """
        if not {"_stext", *(f"kallsyms_{part}" for part in _PARTS)} <= set(places):
            raise CannotTellError("vmcoreinfo lacks the address of the kernel's table of symbols (new in Linux 6.0)")
        names, count, tokens, index, self._offsets, base = (places[f"kallsyms_{part}"] for part in _PARTS)
        if not (0 < tokens - names < _MOST_BYTES and 0 < index - tokens < 1 << 16):
            raise _unknown_layout()
        self._read_virt = read_virt
        self._names = read_virt(names, tokens - names)  # and the markers behind them
        self._tokens = _Tokens(read_virt(tokens, index - tokens), struct.unpack("<256H", read_virt(index, 512)))
        self._markers_at, self._markers = _find_markers(self._names, int.from_bytes(read_virt(count, 4), "little"))
        self._base = int.from_bytes(read_virt(base, 8), "little")
        # CONFIG_KALLSYMS_ABSOLUTE_PERCPU, on x86 up to 6.14: offsets of other symbols count down from -1.
        self._counts_down = True
        self._counts_down = self._is_at("_stext", places["_stext"])
        if not self._counts_down and not self._is_at("_stext", places["_stext"]):
            raise _unknown_layout()

    def find(self, name: str, types: str) -> Symbol | None:
        """Return the global symbol of that name; None where the table has none.

        :param types: letters of nm(1) to try in turn
        :raise CannotTellError: the kernel's memory cannot be read
        """
        for letter in types:
            codes = self._tokens.compress(f"{letter}{name}".encode())
            for at in self._places_of(bytes([len(codes)]) + codes, is_function=letter == "T"):
                number = self._number_at(at)
                if number is not None:
                    virt = self._address(number, letter)
                    return None if virt is None else Symbol(virt, letter)
        return None

    def _places_of(self, entry: bytes, is_function: bool) -> Iterator[int]:
        """Yield each offset of these bytes in the names, also inside another name."""
        # By address functions come first and variables last; a search through all of the names takes the longest.
        if is_function:
            at = self._names.find(entry, 0, self._markers_at)
            while at >= 0:
                yield at
                at = self._names.find(entry, at + 1, self._markers_at)
        else:
            at = self._names.rfind(entry, 0, self._markers_at)
            while at >= 0:
                yield at
                at = self._names.rfind(entry, 0, at + len(entry) - 1)

    def _is_at(self, name: str, virt: int) -> bool:
        found = self.find(name, "T")
        return found is not None and found.virt == virt

    def _number_at(self, at: int) -> int | None:
        """Return the number of the symbol whose name starts at *at*; None where none does."""
        marker = bisect_right(self._markers, at) - 1
        start = self._markers[marker]
        for number in range(marker * _MARKER_STEP, (marker + 1) * _MARKER_STEP):
            if start >= at:
                return number if start == at else None
            start = _next_name(self._names, start)
        return None

    def _address(self, number: int, letter: str) -> int | None:
        """Return a symbol's address; None where the table has zeros, as /proc/kcore shows for a page without data."""
        offset = self._read_virt(self._offsets + 4 * number, 4)
        if not any(offset) and (self._counts_down or letter != "T"):  # only _text and _stext may be at the base
            return None
        if self._counts_down:
            return self._base - 1 - int.from_bytes(offset, "little", signed=True)
        return self._base + int.from_bytes(offset, "little")


class _Tokens:
    """The tokens from which names are made."""

    def __init__(self, table: bytes, index: tuple[int, ...]) -> None:
        """Take ``kallsyms_token_table`` and the offset of each token in it."""
        self._strings = [table[at:].split(b"\0", 1)[0] for at in index]
        self._codes = {string: code for code, string in enumerate(self._strings)}
        self._pairs: dict[int, bytes] = {}

    def compress(self, name: bytes, oldest: int = 0) -> bytes:
        """Return the codes of *name*, using the tokens down to *oldest*."""
        parts = {name[start:end] for start in range(len(name)) for end in range(start + 2, len(name) + 1)}
        for code in sorted((self._codes[part] for part in parts & self._codes.keys()), reverse=True):
            if code >= oldest:
                name = name.replace(self._pair(code), bytes([code]))
        return name

    def _pair(self, code: int) -> bytes:
        """Return the two codes that a token was made of: those of its string by the time when it was made."""
        if code not in self._pairs:
            self._pairs[code] = self.compress(self._strings[code], code + 1)
        return self._pairs[code]


def _next_name(names: bytes, at: int) -> int:
    """Return the offset of the name behind the one at *at*."""
    if names[at] < 0x80:
        return at + 1 + names[at]
    # A length of two bytes: since 6.1 (73bbb94466fd, "kallsyms: support 'big' kernel symbols").
    return at + 2 + (names[at] & 0x7F | names[at + 1] << 7)


def _find_markers(names: bytes, count: int) -> tuple[int, tuple[int, ...]]:
    """Return the offset of the markers behind the names of *count* symbols, and the markers."""
    markers = -(-count // _MARKER_STEP)
    if not markers:
        raise _unknown_layout()
    first = [0]
    try:
        for _ in range(min(2, markers - 1)):
            at = first[-1]
            for _ in range(_MARKER_STEP):
                at = _next_name(names, at)
            first.append(at)
        found = names.find(struct.pack(f"<{len(first)}I", *first), first[-1])
        return found, struct.unpack_from(f"<{markers}I", names, found)
    except (IndexError, struct.error):
        raise _unknown_layout() from None


def _unknown_layout() -> CannotTellError:
    return CannotTellError("the layout of the kernel's table of symbols is not known")
