"""Member offsets of one kernel structure, out of BTF (Documentation/bpf/btf.rst).

Only that is read: the structure is looked for by its name's offset, not by walking all 100,000 types, which would take
longer than an update.
"""

from __future__ import annotations

import struct

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_KIND_STRUCT = 4
_MEMBER = struct.Struct("<III")
_KIND_FLAG = 1 << 31
"""In a type's info: a member's offset has the size of a bit field in its upper 8 bits."""


def struct_members(btf: bytes, name: str) -> dict[str, int] | None:
    """Return the byte offset of each named member of ``struct name``; None where *btf* does not tell it.

    :param btf: the contents of /sys/kernel/btf/vmlinux
    """
    sections = _sections(btf)
    if sections is None:
        return None
    types, strings = sections
    wanted = strings.find(b"\0" + name.encode() + b"\0") + 1
    at = types.find(wanted.to_bytes(4, "little")) if wanted else -1
    while at >= 0:
        members = _members_at(types, at, strings) if at % 4 == 0 else None
        if members is not None:
            return members
        at = types.find(wanted.to_bytes(4, "little"), at + 1)
    return None


def _sections(btf: bytes) -> tuple[bytes, bytes] | None:
    """Return the section of types and that of strings."""
    if len(btf) < _HEADER.size:
        return None
    magic, _version, _flags, header, type_at, type_len, string_at, string_len = _HEADER.unpack_from(btf)
    if magic != _MAGIC or header + max(type_at + type_len, string_at + string_len) > len(btf):
        return None
    return btf[header + type_at :][:type_len], btf[header + string_at :][:string_len]


def _members_at(types: bytes, at: int, strings: bytes) -> dict[str, int] | None:
    """Read a structure at *at*; None where the number found there is not the name of one."""
    if at + _TYPE.size > len(types):
        return None
    _name, info, size = _TYPE.unpack_from(types, at)
    count = info & 0xFFFF
    end = at + _TYPE.size + count * _MEMBER.size
    if (info >> 24) & 0x1F != _KIND_STRUCT or not count or end > len(types):
        return None
    members = {}
    for name_at, _type, offset in _MEMBER.iter_unpack(types[at + _TYPE.size : end]):
        bits = offset & 0xFFFFFF if info & _KIND_FLAG else offset
        if name_at >= len(strings) or bits > 8 * size:
            return None
        if name_at and bits % 8 == 0:
            members[strings[name_at : name_at + 256].split(b"\0", 1)[0].decode("ascii", "replace")] = bits // 8
    return members
