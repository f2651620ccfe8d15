# SPDX-License-Identifier: MIT
"""Member offsets of one kernel structure, out of BTF (Documentation/bpf/btf.rst).

The structure is searched by its name's offset in the strings: a walk through all 100,000 types would take longer than
an update.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_KIND_STRUCT = 4
_MEMBER = struct.Struct("<III")
_KIND_FLAG = 1 << 31
"""In a type's info: a member's offset has the size of a bit field in its upper 8 bits."""
_LONGEST_NAME = 256


def struct_members(btf: bytes, name: str, needed: Collection[str] = ()) -> dict[str, int] | None:
    """Return the byte offset of each named member of ``struct name``; None where *btf* does not have it.

    :param btf: the contents of /sys/kernel/btf/vmlinux
    :param needed: members that the structure has; a structure of that name without them is skipped
    """
    sections = _sections(btf)
    if sections is None:
        return None
    types, strings = sections
    name_at = btf.find(b"\0" + name.encode() + b"\0", strings.start, strings.stop) + 1 - strings.start
    if name_at <= 0:
        return None
    # Without the last byte, which is 0 here and in half of all words: the search is twice as fast.
    wanted = name_at.to_bytes(4, "little")[:3]
    at = btf.find(wanted, types.start, types.stop)
    while at >= 0:
        members = _members_at(btf, types, strings, at, name_at) if (at - types.start) % 4 == 0 else None
        if members is not None and members.keys() >= set(needed):
            return members
        at = btf.find(wanted, at + 1, types.stop)
    return None


def _sections(btf: bytes) -> tuple[range, range] | None:
    """Return where the types and the strings are."""
    if len(btf) < _HEADER.size:
        return None
    magic, _version, _flags, header, type_at, type_len, string_at, string_len = _HEADER.unpack_from(btf)
    if magic != _MAGIC or header + max(type_at + type_len, string_at + string_len) > len(btf):
        return None
    types, strings = header + type_at, header + string_at
    return range(types, types + type_len), range(strings, strings + string_len)


def _members_at(btf: bytes, types: range, strings: range, at: int, name_at: int) -> dict[str, int] | None:
    """Read a structure at *at*; None where the number found there is not the name of one."""
    if at + _TYPE.size > types.stop:
        return None
    name, info, size = _TYPE.unpack_from(btf, at)
    count = info & 0xFFFF
    end = at + _TYPE.size + count * _MEMBER.size
    if name != name_at or (info >> 24) & 0x1F != _KIND_STRUCT or not count or end > types.stop:
        return None
    members = {}
    for member_at, _type, offset in _MEMBER.iter_unpack(btf[at + _TYPE.size : end]):
        bits = offset & 0xFFFFFF if info & _KIND_FLAG else offset
        if member_at >= len(strings) or bits > 8 * size:
            return None
        if member_at and bits % 8 == 0:
            start = strings.start + member_at
            text = btf[start : min(start + _LONGEST_NAME, strings.stop)].split(b"\0", 1)[0]
            members[text.decode("ascii", "replace")] = bits // 8
    return members
