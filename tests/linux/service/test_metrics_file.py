"""The metrics file is always a whole one, also on a full disk and in somebody else's directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug.linux.service.metrics_file import write_metrics


def test_it_is_replaced_and_readable_by_the_collector(tmp_path: Path) -> None:
    path = tmp_path / "crash-hotplug.prom"
    os.umask(os.umask(0o077))
    write_metrics(str(path), "one 1\n")
    write_metrics(str(path), "two 2\n")
    assert path.read_text() == "two 2\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_that_somebody_planted_is_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "crash-hotplug.prom"
    victim.write_text("precious")
    (tmp_path / "crash-hotplug.prom.tmp").symlink_to(victim)
    write_metrics(str(path), "one 1\n")
    assert victim.read_text() == "precious"
    assert path.read_text() == "one 1\n"


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "crash-hotplug.prom"
    write_metrics(str(path), "old 1\n")

    def full(_old: str, _new: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_metrics(str(path), "new 1\n")
    assert path.read_text() == "old 1\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        write_metrics(str(tmp_path / "missing" / "file.prom"), "one 1\n")
