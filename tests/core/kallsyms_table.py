# SPDX-License-Identifier: MIT
"""The kernel's table of symbols as scripts/kallsyms.c writes it, in a memory of its own."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping

BASE = 0xFFFF_FFFF_8100_0000


class FakeTable:
    """A table of symbols somewhere in kernel memory."""

    def __init__(
        self,
        symbols: Mapping[str, int],
        counts_down: bool = True,
        numbers_by_name: bool = False,
        virt: int = 0xFFFF_FFFF_8200_0000,
    ) -> None:
        """Write the table.

        :param symbols: addresses by type and name, such as ``T_text``
        :param counts_down: as with CONFIG_KALLSYMS_ABSOLUTE_PERCPU
        :param numbers_by_name: put ``kallsyms_seqs_of_names`` behind the markers, as 6.2 does
        :param virt: virtual address of the table
        """
        by_address = sorted((at, name) for name, at in symbols.items())
        names, tokens = compress([name.encode() for _at, name in by_address])
        packed, markers = bytearray(), []
        for number, name in enumerate(names):
            if number % 256 == 0:
                markers.append(len(packed))
            packed += _length(len(name)) + name
        strings = b"".join(token + b"\0" for token in tokens)
        index = [sum(len(token) + 1 for token in tokens[:code]) for code in range(256)]
        offsets = [BASE - 1 - at if counts_down else at - BASE for at, _name in by_address]
        parts = {
            "num_syms": struct.pack("<I", len(names)),
            "names": bytes(packed),
            "markers": struct.pack(f"<{len(markers)}I", *markers),
            "seqs_of_names": bytes(range(1, 250)) * 3 if numbers_by_name else b"",
            "token_table": strings,
            "token_index": struct.pack("<256H", *index),
            "offsets": struct.pack(f"<{len(offsets)}i", *offsets),
            "relative_base": struct.pack("<Q", BASE),
        }
        self.memory = bytearray()
        self._virt = virt
        self.places: dict[str, int] = {"_stext": symbols["T_stext"]}
        for part, data in parts.items():
            self.places[f"kallsyms_{part}"] = virt + len(self.memory)
            self.memory += data + b"\xff" * (-len(data) % 8 or 8)  # what follows is no part of it

    def read(self, virt: int, length: int) -> bytes:
        """Return kernel memory."""
        at = virt - self._virt
        return bytes(self.memory[at : at + length]).ljust(length, b"\0") if at >= 0 else bytes(length)


def compress(names: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Return the names compressed, and the strings of the 256 tokens: optimize_result() of scripts/kallsyms.c."""
    used = {character for name in names for character in name}
    tokens = [bytes([code]) if code in used else b"" for code in range(256)]
    for code in range(255, -1, -1):
        if code in used:
            continue
        pairs = Counter(name[at : at + 2] for name in names for at in range(len(name) - 1))
        if not pairs:
            break
        pair, times = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if times < 1:
            break
        tokens[code] = tokens[pair[0]] + tokens[pair[1]]
        names = [name.replace(pair, bytes([code])) for name in names]
    return names, tokens


def _length(length: int) -> bytes:
    return bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
