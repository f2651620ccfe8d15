"""BTF: one structure's members, in data that is right, damaged, or about something else."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.btf import struct_members
from crash_hotplug.core.image import KNOWN_LAYOUTS, KimageLayout, layout_from_members

STRINGS = b"\0unsigned long\0kimage\0start\0nr_segments\0segment\0control_page\0flag\0"
MEMBERS = {"start": 24, "nr_segments": 56, "segment": 64, "control_page": 624}


def _name(name: str) -> int:
    return STRINGS.index(b"\0" + name.encode() + b"\0") + 1


def btf(members: dict[str, int], kind: int = 4, flag: bool = False) -> bytes:
    """Return BTF with an integer type and a structure, whose name stands before it as another type's size."""
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
def test_what_is_no_such_structure_is_not_believed(data: bytes) -> None:
    assert struct_members(data, "kimage") is None


def test_another_name() -> None:
    assert struct_members(btf(MEMBERS), "task_struct") is None


def test_the_layout_from_members_is_the_known_one() -> None:
    assert layout_from_members(MEMBERS) == KNOWN_LAYOUTS[0] == KimageLayout(24, 56, 64, 624)


@pytest.mark.parametrize("changed", [{"start": 25}, {"segment": 5000}])
def test_a_layout_that_cannot_be_right(changed: dict[str, int]) -> None:
    assert layout_from_members({**MEMBERS, **changed}) is None
    assert layout_from_members({"start": 24}) is None


@given(st.binary(max_size=400))
def test_any_bytes(data: bytes) -> None:
    struct_members(btf(MEMBERS)[:24] + data, "kimage")
    struct_members(data, "kimage")
