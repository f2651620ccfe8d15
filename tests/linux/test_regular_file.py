"""Opening files that somebody else may have put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.linux.regular_file import open_given, open_regular, read_all


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with open_given(str(tmp_path / "file")) as file:
        assert read_all(file, 5, "it") == b"12345"
    with open_given(str(tmp_path / "file")) as file, pytest.raises(InputError, match="it has more than 4 bytes"):
        read_all(file, 4, "it")


def test_a_missing_file_is_none_or_a_sentence(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert open_regular(missing) is None
    with pytest.raises(InputError, match="the header cannot be opened: there is no such file"):
        open_given(missing, "the header")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path), str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(InputError, match="is not a regular file"):
            open_regular(path)
    with pytest.raises(InputError, match="null"):
        open_regular("a\0b")


def test_a_path_that_cannot_be_followed_is_cannot_tell(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CannotTellError, match="cannot be read: Too many levels"):
        open_regular(str(tmp_path / "loop"))
