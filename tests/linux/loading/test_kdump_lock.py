"""The locks of the distributions' wrappers."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.linux.loading import kdump_lock
from crash_hotplug.linux.loading.kdump_lock import LockBusyError, kdump_locks


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kdump_lock, "RED_HAT", str(tmp_path / "kdump"))
    monkeypatch.setattr(kdump_lock, "DEBIAN", str(tmp_path / "missing" / "kdump_lock"))
    return tmp_path / "kdump"


def is_free(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_lock_is_held_and_released(path: Path) -> None:
    with kdump_locks():
        assert not is_free(path)
    assert is_free(path)


def test_taken_lock_is_reported(path: Path) -> None:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LockBusyError, match="another process is loading a crash image"), kdump_locks():
            pass


def test_lock_that_cannot_be_opened_is_reported(path: Path) -> None:
    path.mkdir()
    with pytest.raises(CrashHotplugError, match="cannot be opened: Is a directory"), kdump_locks():
        pass


def test_lock_without_permission_asks_for_root(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CannotTellError, match=r"cannot be opened .*; run as root"), kdump_locks():
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_lock_file_of_another_user_is_ignored(path: Path) -> None:
    with path.open("w") as file:
        os.chown(path, 65534, 65534)
        fcntl.flock(file, fcntl.LOCK_EX)
        with kdump_locks():
            pass


def test_lock_behind_a_link_is_refused(path: Path) -> None:
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(CrashHotplugError, match="cannot be opened"), kdump_locks():
        pass
    assert not (path.parent / "elsewhere").exists()
