# SPDX-License-Identifier: MIT
"""VMCOREINFO text, well formed and not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.vmcoreinfo import parse_kernel_text_offset, parse_symbols, parse_vmcoreinfo


def test_release_and_panic_time_are_read() -> None:
    info = parse_vmcoreinfo(b"OSRELEASE=6.12.1\nPAGESIZE=4096\nCRASHTIME=0\n")
    assert (info.kernel_release, str(info.panic_time)) == ("6.12.1", "1970-01-01 00:00:00+00:00")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"CRASHTIME=-1",
        b"CRASHTIME=999999999999",
        b"OSRELEASE=" + b"6" * 65,
        b"NUMBER(sme_mask)=x",
        b"CRASHTIME 1",
        b"CRASHTIME=\xd9\xa3",
        b"OSRELEASE=\x1b[31m",
        b"OSRELEASE=",
    ],
)
def test_values_without_sense_are_unknown(text: bytes) -> None:
    assert parse_vmcoreinfo(text) == (None, None, None)


def test_release_of_64_characters_is_the_longest() -> None:
    assert parse_vmcoreinfo(b"OSRELEASE=" + b"6" * 64).kernel_release == "6" * 64


@pytest.mark.parametrize(
    ("text", "mask"), [(b"0", 0), (b"140737488355328", 1 << 47), (b"-9223372036854775808", 1 << 63), (b"", None)]
)
def test_sme_mask_is_a_64_bit_number(text: bytes, mask: int | None) -> None:
    assert parse_vmcoreinfo(b"NUMBER(sme_mask)=" + text + b"\0\n").sme_mask == mask


def test_symbols_have_hexadecimal_addresses_of_64_bits() -> None:
    text = (
        b"SYMBOL(a)=ffffffff81000000\nSYMBOL(b)=10\nSYMBOL(c)=10000000000000000\nSYMBOL(d)=x\nSIZE(e)=10\nSYMBOL(f)10"
    )
    assert parse_symbols(text) == {"a": 0xFFFF_FFFF_8100_0000, "b": 16}


@given(st.binary())
def test_parser_survives_any_bytes(data: bytes) -> None:
    release = parse_vmcoreinfo(b"CRASHTIME=" + data).kernel_release
    assert release is None or release.isprintable()


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        (b"A=1\nNUMBER(phys_base)=0\nB=2\n", 0xFFFF_FFFF_8000_0000),
        (b"NUMBER(phys_base)=612368384", 0xFFFF_FFFF_8000_0000 - 612368384),
        (b"NUMBER(phys_base)=-16777216\n", 0xFFFF_FFFF_8100_0000),
        (b"NUMBER(kimage_voffset)=0xffff800040000000\n", 0xFFFF_8000_4000_0000),
        (b"NUMBER(kimage_voffset)=0xffff80004000000g\n", None),
        (b"XNUMBER(phys_base)=0\n", None),
        (b"NUMBER(phys_base)=\n", None),
        (b"NUMBER(phys_base)=" + b"9" * 30, None),
        (b"", None),
    ],
)
def test_kernel_text_offset_is_that_of_either_architecture(text: bytes, offset: int | None) -> None:
    assert parse_kernel_text_offset(text) == offset
