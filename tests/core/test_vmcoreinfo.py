# SPDX-License-Identifier: MIT
"""VMCOREINFO text, well formed and not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.vmcoreinfo import parse_vmcoreinfo


def test_release_and_panic_time_are_read() -> None:
    info = parse_vmcoreinfo(b"OSRELEASE=6.12.1\nPAGESIZE=4096\nCRASHTIME=0\n")
    assert (info.kernel_release, str(info.panic_time)) == ("6.12.1", "1970-01-01 00:00:00+00:00")


@pytest.mark.parametrize(
    "text",
    [b"", b"CRASHTIME=-1", b"CRASHTIME=999999999999", b"CRASHTIME=\xd9\xa3", b"OSRELEASE=\x1b[31m", b"OSRELEASE="],
)
def test_values_without_sense_are_unknown(text: bytes) -> None:
    assert parse_vmcoreinfo(text) == (None, None, None)


@given(st.binary())
def test_parser_survives_any_bytes(data: bytes) -> None:
    release = parse_vmcoreinfo(b"CRASHTIME=" + data).kernel_release
    assert release is None or release.isprintable()
