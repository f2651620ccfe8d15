# SPDX-License-Identifier: MIT
"""The kernel's table of symbols, written as scripts/kallsyms.c does and damaged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.kallsyms import _PARTS as PARTS
from crash_hotplug.core.kallsyms import KallsymsTable, Symbol, _next_name
from tests.core.kallsyms_table import BASE, FakeTable

WORDS = ("kexec", "crash", "image", "notes", "offset", "per", "cpu", "page", "base", "text", "vm", "do", "get")


def many_symbols() -> dict[str, int]:
    """Return more symbols than two markers' worth, functions in front of variables."""
    names = [f"{first}_{second}_{third}" for first in WORDS for second in WORDS for third in WORDS[:5]]
    symbols = {f"{'t' if number < 600 else 'B'}{name}": BASE + 64 * number for number, name in enumerate(names)}
    own = {"T_stext": BASE, "T_text": BASE, "Bcrash_notes": BASE + 0x90_0000, "B_end": BASE + 0xFF_0000}
    return {**symbols, **own, "D__per_cpu_offset": BASE + 0x80_0000, "Bkexec_crash_image": BASE + 0x90_0008}


@pytest.mark.parametrize("counts_down", [True, False])
@pytest.mark.parametrize("numbers_by_name", [True, False])
def test_symbols_of_every_kind_are_found(counts_down: bool, numbers_by_name: bool) -> None:
    fake = FakeTable(many_symbols(), counts_down, numbers_by_name)
    table = KallsymsTable(fake.places, fake.read)
    assert table.find("kexec_crash_image", "BD") == Symbol(BASE + 0x90_0008, "B")
    assert table.find("__per_cpu_offset", "BD") == Symbol(BASE + 0x80_0000, "D")
    assert table.find("_text", "T") == Symbol(BASE, "T")
    assert table.find("_end", "BD") == Symbol(BASE + 0xFF_0000, "B")
    assert table.find("crash_notes_of_nobody", "BDT") is None
    assert table.find("kexec_crash_image", "D") is None


LONG = "_" + "".join(chr(ord("0") + number * number % 75) for number in range(600))
"""A name of which 128 codes and more are left: its length has two bytes."""


@pytest.mark.parametrize("length", [*range(118, 136), 300, 600])
def test_symbols_behind_a_long_name_are_found(length: int) -> None:
    symbols = {f"T{LONG[:length]}": BASE + 8, "Tafter": BASE + 16, "Dlast": BASE + 24, "T_stext": BASE}
    fake = FakeTable(symbols)
    table = KallsymsTable(fake.places, fake.read)
    assert table.find(LONG[:length], "T") == Symbol(BASE + 8, "T")
    assert (table.find("after", "T"), table.find("last", "D")) == (Symbol(BASE + 16, "T"), Symbol(BASE + 24, "D"))


@pytest.mark.parametrize(
    ("length", "behind"),
    [(b"\0", 1), (b"\x05", 6), (b"\x7f", 128), (b"\x80\1", 130), (b"\x81\1", 131), (b"\xff\2", 2 + 0x17F)],
)
def test_length_of_a_name_has_one_byte_or_two(length: bytes, behind: int) -> None:
    assert _next_name(b"x" + length, 1) == 1 + behind


def test_symbol_begins_at_a_name_and_not_within_one() -> None:
    fake = FakeTable(many_symbols())
    table = KallsymsTable(fake.places, fake.read)
    first = fake.read(fake.places["kallsyms_names"], 1)[0]
    assert [table._number_at(at) for at in (0, 1, first, first + 1, first + 2)] == [0, None, None, 1, None]


def test_table_needs_the_named_places_only() -> None:
    fake = FakeTable(many_symbols())
    needed = {"_stext", *(f"kallsyms_{part}" for part in PARTS)}
    places = {name: at for name, at in fake.places.items() if name in needed}
    assert KallsymsTable(places, fake.read).find("_text", "T") == Symbol(BASE, "T")
    for name in needed:
        with pytest.raises(CannotTellError, match="lacks the address"):
            KallsymsTable({other: at for other, at in places.items() if other != name}, fake.read)


@pytest.mark.parametrize(
    ("names", "tokens"),
    [(0, 0x1000), (-1, 0x1000), (64 << 20, 0x1000), (0x1000, 0), (0x1000, 1 << 16), (0x1000, -1)],
)
def test_table_of_an_impossible_size_is_not_read(names: int, tokens: int) -> None:
    """Sizes of the names, and of the tokens behind them."""
    start = BASE + 0x1000

    def read(virt: int, length: int) -> bytes:
        raise AssertionError(f"{length} bytes at {virt:#x}")

    places = {f"kallsyms_{part}": BASE for part in PARTS}
    places.update(kallsyms_names=start, kallsyms_token_table=start + names, _stext=BASE)
    with pytest.raises(CannotTellError, match="layout"):
        KallsymsTable({**places, "kallsyms_token_index": start + names + tokens}, read)


identifiers = st.text("abcdeXY_019", min_size=1, max_size=12).map(lambda name: f"_{name}")


@given(names=st.lists(identifiers, unique=True, min_size=1, max_size=700), counts_down=st.booleans())
@settings(max_examples=25, deadline=None)
def test_symbols_of_any_table_are_found_at_their_address(names: list[str], counts_down: bool) -> None:
    symbols = {f"{'TBD'[number % 3]}{name}": BASE + 8 * number for number, name in enumerate(names)}
    fake = FakeTable({**symbols, "T_stext": BASE + 8 * len(names)}, counts_down)
    table = KallsymsTable(fake.places, fake.read)
    for name, virt in symbols.items():
        assert table.find(name[1:], name[0]) == Symbol(virt, name[0])


def test_place_that_vmcoreinfo_does_not_tell_is_cannot_tell() -> None:
    fake = FakeTable(many_symbols())
    with pytest.raises(CannotTellError, match="lacks the address"):
        KallsymsTable({"_stext": BASE}, fake.read)


def test_table_whose_stext_is_elsewhere_is_not_believed() -> None:
    fake = FakeTable(many_symbols())
    with pytest.raises(CannotTellError, match="layout"):
        KallsymsTable({**fake.places, "_stext": BASE + 8}, fake.read)


def test_names_out_of_bounds_are_not_read() -> None:
    fake = FakeTable(many_symbols())
    with pytest.raises(CannotTellError, match="layout"):
        KallsymsTable({**fake.places, "kallsyms_token_table": 1 << 63}, fake.read)


FAKE = FakeTable(many_symbols())


@given(at=st.integers(0, len(FAKE.memory) - 1), damage=st.binary(min_size=1, max_size=64))
@settings(deadline=None)
def test_damaged_table_gives_an_answer_or_a_sentence(at: int, damage: bytes) -> None:
    fake = FakeTable({"T_stext": BASE})
    fake.places = FAKE.places
    fake.memory = bytearray(FAKE.memory)
    fake.memory[at : at + len(damage)] = damage
    try:
        table = KallsymsTable(fake.places, fake.read)
        for name in ("kexec_crash_image", "_end", "_text"):
            found = table.find(name, "TBD")
            assert found is None or found.type in "TBD"
    except CannotTellError:
        pass


@pytest.mark.parametrize("part", ["num_syms", "token_table"])
def test_table_that_reads_as_zeros_gives_no_address(part: str) -> None:
    """/proc/kcore shows zeros for a page that it cannot read."""
    fake = FakeTable(many_symbols())

    def read(virt: int, length: int) -> bytes:
        return bytes(length) if virt == fake.places[f"kallsyms_{part}"] else fake.read(virt, length)

    with pytest.raises(CannotTellError, match="layout"):
        KallsymsTable(fake.places, read)


@pytest.mark.parametrize("counts_down", [True, False])
def test_symbol_whose_offset_reads_as_zeros_has_no_address(counts_down: bool) -> None:
    fake = FakeTable(many_symbols(), counts_down)
    hidden: list[int] = []

    def read(virt: int, length: int) -> bytes:
        return bytes(length) if hidden and length == 4 else fake.read(virt, length)

    table = KallsymsTable(fake.places, read)
    assert table.find("_end", "BD") is not None
    hidden.append(1)
    assert table.find("_end", "BD") is None
