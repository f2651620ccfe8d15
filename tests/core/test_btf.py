# SPDX-License-Identifier: MIT
"""BTF: one structure's members, in data that is right, damaged, or about something else.

The search is compared with a parser that walks through all types, as the format is meant to be read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.btf import struct_members
from crash_hotplug.core.image import KNOWN_LAYOUTS, KimageLayout, layout_from_members

STRINGS = b"\0unsigned long\0kimage\0start\0nr_segments\0segment\0control_page\0flag\0"
VMLINUX = Path("/sys/kernel/btf/vmlinux")
MEMBERS = {"start": 24, "nr_segments": 56, "segment": 64, "control_page": 624}


def _name(name: str) -> int:
    return STRINGS.index(b"\0" + name.encode() + b"\0") + 1


def btf(members: dict[str, int], kind: int = 4, flag: bool = False) -> bytes:
    """Return BTF with an integer type and a structure; its name's offset precedes it as a decoy."""
    decoy = struct.pack("<IIII", _name("unsigned long"), 1 << 24, _name("kimage"), 64)
    own = struct.pack("<III", _name("kimage"), len(members) + 1 | kind << 24 | flag << 31, 800)
    own += b"".join(struct.pack("<III", _name(name), 1, 8 * at) for name, at in members.items())
    own += struct.pack("<III", _name("flag"), 1, (1 << 24 if flag else 0) + 8 * 700 + 3)
    types = decoy + own
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(STRINGS))
    return header + types + STRINGS


@pytest.mark.parametrize("flag", [False, True])
def test_members_are_found_by_name(flag: bool) -> None:
    assert struct_members(btf(MEMBERS, flag=flag), "kimage") == MEMBERS


@pytest.mark.parametrize(
    "data", [b"", btf(MEMBERS)[:-60], b"\0\0" + btf(MEMBERS)[2:], btf(MEMBERS, kind=5), btf({"start": 900})]
)
def test_data_without_such_a_structure_is_not_believed(data: bytes) -> None:
    assert struct_members(data, "kimage") is None


def test_member_name_ends_after_256_bytes_and_at_the_strings_end() -> None:
    data = btf(MEMBERS)
    long = data[: -len(STRINGS)] + STRINGS.replace(b"flag\0", b"f" * 300)
    header = struct.pack("<I", len(STRINGS) - 5 + 300)
    grown = long[:20] + header + long[24:] + b"behind the strings"
    found = struct_members(grown.replace(struct.pack("<I", 8 * 700 + 3), struct.pack("<I", 8 * 700)), "kimage")
    assert found == {**MEMBERS, "f" * 256: 700}


@pytest.mark.parametrize("name_at", [len(STRINGS), len(STRINGS) + 100])
def test_member_whose_name_lies_behind_the_strings_is_not_believed(name_at: int) -> None:
    data = btf(MEMBERS).replace(struct.pack("<II", _name("flag"), 1), struct.pack("<II", name_at, 1))
    assert struct_members(data + bytes(200), "kimage") is None


def test_structure_without_members_or_cut_by_the_types_end_is_not_believed() -> None:
    types = struct.pack("<III", _name("kimage"), 4 << 24, 800)
    cut = struct.pack("<III", _name("kimage"), 1 | 4 << 24, 800)
    for section in (types, cut, cut[:-4]):
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(section), len(section), len(STRINGS))
        assert struct_members(header + section + STRINGS, "kimage") is None


def test_structure_of_another_name_is_none() -> None:
    assert struct_members(btf(MEMBERS), "task_struct") is None


def test_layout_from_members_is_the_known_one() -> None:
    assert layout_from_members(MEMBERS) == KNOWN_LAYOUTS[0] == KimageLayout(24, 56, 64, 624)


@pytest.mark.parametrize("changed", [{"start": 25}, {"segment": 5000}])
def test_layout_that_cannot_be_right_is_none(changed: dict[str, int]) -> None:
    assert layout_from_members({**MEMBERS, **changed}) is None
    assert layout_from_members({"start": 24}) is None


@given(st.binary(max_size=400))
def test_struct_members_survives_any_bytes(data: bytes) -> None:
    for contents in (btf(MEMBERS)[:24] + data, data):
        found = struct_members(contents, "kimage")
        assert found is None or all(0 <= at < 1 << 32 for at in found.values())


@given(st.integers(0, len(btf(MEMBERS))))
def test_truncated_btf_is_not_believed(length: int) -> None:
    assert struct_members(btf(MEMBERS)[:length], "kimage") == (MEMBERS if length == len(btf(MEMBERS)) else None)


INT, PTR, ARRAY, STRUCT, ENUM, FWD, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64 = 1, 2, 3, 4, 6, 7, 13, 14, 15, 17, 19
WORDS_BEHIND = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
WORDS_EACH = {STRUCT: 3, 5: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
"""Words behind a type's own three: so many, and so many for each of its members (Documentation/bpf/btf.rst)."""


def walk(data: bytes) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield name and members of every structure, type by type."""
    _magic, _version, _flags, header, type_at, type_len, string_at, _length = struct.unpack_from("<HBBIIIII", data)
    strings = data[header + string_at :]

    def text(offset: int) -> str:
        return strings[offset : strings.index(b"\0", offset)].decode()

    at, end = header + type_at, header + type_at + type_len
    while at < end:
        name, info, _size = struct.unpack_from("<III", data, at)
        kind, count = info >> 24 & 31, info & 0xFFFF
        at += 12
        if kind == STRUCT:
            found = {}
            for member, _type, offset in struct.iter_unpack("<III", data[at : at + 12 * count]):
                bits = offset & 0xFFFFFF if info >> 31 else offset
                if member and bits % 8 == 0:
                    found[text(member)] = bits // 8
            yield text(name), found
        at += 4 * (WORDS_BEHIND.get(kind, 0) + count * WORDS_EACH.get(kind, 0))


words = st.integers(0, 60) | st.integers(0, (1 << 32) - 1)
names = st.sampled_from([0, *(_name(name) for name in ("kimage", "start", "segment", "flag", "unsigned long"))])
"""Small numbers, which are names' offsets as well: the search must not take one for the structure."""


@st.composite
def types(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from([INT, PTR, ARRAY, STRUCT, ENUM, FWD, FUNC_PROTO, VAR, DATASEC, DECL_TAG, ENUM64]))
    count = draw(st.integers(0, 5)) if kind in WORDS_EACH else 0
    if kind == STRUCT:
        flag = draw(st.booleans())
        offsets = st.integers(0, 8 * 400) if not flag else st.integers(0, (1 << 12) - 1)
        members = [(draw(names), draw(words), draw(offsets)) for _ in range(count)]
        return struct.pack("<III", draw(names), count | kind << 24 | flag << 31, 800) + b"".join(
            struct.pack("<III", *member) for member in members
        )
    behind = WORDS_BEHIND.get(kind, 0) + count * WORDS_EACH.get(kind, 0)
    return struct.pack("<III", draw(names), count | kind << 24, draw(words)) + b"".join(
        struct.pack("<I", draw(words)) for _ in range(behind)
    )


@given(st.lists(types(), max_size=12))
def test_structure_is_found_among_other_types_as_a_walk_finds_it(listed: list[bytes]) -> None:
    kimage = btf(MEMBERS)[24 + 16 : -len(STRINGS)]
    for where in range(len(listed) + 1):
        section = b"".join([*listed[:where], kimage, *listed[where:]])
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(section), len(section), len(STRINGS))
        data = header + section + STRINGS
        complete = [found for name, found in walk(data) if name == "kimage" and found.keys() >= MEMBERS.keys()]
        assert struct_members(data, "kimage", MEMBERS) in complete


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
def test_structures_of_the_running_kernel_are_found_as_a_walk_finds_them() -> None:
    data = VMLINUX.read_bytes()
    by_name: dict[str, list[dict[str, int]]] = {}
    for name, members in walk(data):
        by_name.setdefault(name, []).append(members)
    unique = sorted(name for name, found in by_name.items() if name and len(found) == 1 and found[0])
    for name in unique[:: max(1, len(unique) // 40)]:
        assert struct_members(data, name, by_name[name][0]) == by_name[name][0]
