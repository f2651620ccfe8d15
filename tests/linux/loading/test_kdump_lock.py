# SPDX-License-Identifier: MIT
"""The locks of the distributions' wrappers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.linux.loading import kdump_lock
from crash_hotplug.linux.loading.kdump_lock import LockBusyError, kdump_locks
from crash_hotplug.linux.sysroot import Sysroot

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


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
        with pytest.raises(LockBusyError, match="is loading a crash image"), kdump_locks():
            pass


def test_taken_lock_names_its_holder(path: Path) -> None:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        name = Path("/proc/self/comm").read_text().strip()
        expected = rf"^the lock {path} is taken: process {os.getpid()} \({re.escape(name)}\) is loading a crash image$"
        with pytest.raises(LockBusyError, match=expected), kdump_locks():
            pass


@pytest.mark.parametrize(
    ("locks", "comm", "named"),
    [
        ("1: FLOCK  ADVISORY  WRITE 4711 {file} 0 EOF", "kdumpctl", "process 4711 (kdumpctl)"),
        ("1: FLOCK  ADVISORY  WRITE 4711 {file} 0 EOF", "a\x1b]0;b", "process 4711"),
        ("1: FLOCK  ADVISORY  WRITE 4711 {file} 0 EOF", None, "process 4711"),
        ("1: FLOCK  ADVISORY  WRITE 0 {file} 0 EOF", "kdumpctl", "another process"),
        ("1: -> FLOCK  ADVISORY  WRITE 4711 {file} 0 EOF", "kdumpctl", "another process"),
        ("1: POSIX  ADVISORY  WRITE 4711 {file} 0 EOF", "kdumpctl", "another process"),
        ("1: FLOCK  ADVISORY  WRITE 4711 00:00:1 0 EOF", "kdumpctl", "another process"),
        (None, "kdumpctl", "another process"),
    ],
)
def test_holder_comes_from_proc_locks(
    path: Path, tmp_path: Path, locks: str | None, comm: str | None, named: str
) -> None:
    path.touch()
    status = path.stat()
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    process = tmp_path / "tree" / "proc" / "4711"
    process.mkdir(parents=True)
    if locks is not None:
        (process.parent / "locks").write_text(locks.format(file=file) + "\n")
    if comm is not None:
        (process / "comm").write_text(f"{comm}\n")
    with path.open("r+") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        with pytest.raises(LockBusyError) as raised, kdump_locks(Sysroot(str(tmp_path / "tree"))):
            pass
    assert str(raised.value) == f"the lock {path} is taken: {named} is loading a crash image"


def test_lock_without_permission_asks_for_root(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CannotTellError, match=r"cannot be opened .*; run as root"), kdump_locks():
        pass


@needs_root
def test_lock_file_of_another_user_is_ignored(path: Path) -> None:
    with path.open("w") as file:
        os.chown(path, 65534, 65534)
        fcntl.flock(file, fcntl.LOCK_EX)
        with kdump_locks():
            pass


@pytest.mark.parametrize("kind", ["directory", "link", "link to a file", "fifo", "socket", "device"])
def test_lock_other_than_a_regular_file_is_ignored_and_stays(path: Path, kind: str) -> None:
    elsewhere = path.parent / "elsewhere"
    if kind == "directory":
        path.mkdir()
    elif kind.startswith("link"):
        path.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root can make a device")
    before = path.lstat()
    with contextlib.ExitStack() as opened:
        if kind == "link to a file":
            fcntl.flock(opened.enter_context(elsewhere.open("w")), fcntl.LOCK_EX)
        with kdump_locks():
            pass
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert elsewhere.exists() == (kind == "link to a file")


@contextlib.contextmanager
def flock_of(user: int, path: Path, children: int = 0) -> Iterator[None]:
    """Hold the lock on an existing file in a process of another user, or in its descendant alone."""
    program = (
        "import fcntl, os, sys\n"
        "user, path, children = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])\n"
        "held = os.open(path, os.O_RDONLY)\n"
        "os.setgroups([]), os.setgid(user), os.setuid(user)\n"
        "fcntl.flock(held, fcntl.LOCK_EX)\n"
        "for _ in range(children):\n"
        "    if os.fork():\n"
        "        os._exit(0)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(user), str(path), str(children)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield


@needs_root
@pytest.mark.parametrize("children", [0, 1], ids=["taker lives", "taker ended"])
def test_lock_that_another_user_holds_on_the_file_of_root_is_not_honoured(path: Path, children: int) -> None:
    path.touch(0o644)
    with flock_of(65534, path, children), kdump_locks():
        pass


@needs_root
@pytest.mark.parametrize("children", [0, 1], ids=["taker lives", "taker ended, as flock(1) in a script"])
def test_lock_that_root_holds_is_honoured(path: Path, children: int) -> None:
    path.touch(0o644)
    with flock_of(0, path, children), pytest.raises(LockBusyError), kdump_locks():
        pass


@needs_root
def test_lock_of_another_user_is_honoured_where_its_open_files_are_hidden(path: Path, tmp_path: Path) -> None:
    path.touch(0o644)
    (tmp_path / "tree" / "proc").mkdir(parents=True)
    shutil.copyfile("/proc/locks", tmp_path / "tree" / "proc" / "locks")
    with flock_of(65534, path), pytest.raises(LockBusyError), kdump_locks(Sysroot(str(tmp_path / "tree"))):
        pass


def test_lock_file_is_closed_to_other_users(path: Path) -> None:
    path.touch()
    path.chmod(0o644)
    with kdump_locks():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not is_open(path)


def is_open(path: Path) -> bool:
    descriptors = Path("/proc/self/fd").iterdir()
    return any(os.path.realpath(descriptor) == str(path) for descriptor in descriptors)


def test_lock_that_cannot_be_made_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CrashHotplugError, match="cannot be opened: Read-only file system"), kdump_locks():
        pass


def test_lock_that_appears_while_it_is_made_is_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def race(name: str, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT:
            os.close(real(name, os.O_WRONLY | os.O_CREAT))
        return real(name, flags, *rest)

    monkeypatch.setattr(os, "open", race)
    with pytest.raises(LockBusyError, match="was created by another process"), kdump_locks():
        pass


def test_lock_is_made_private(path: Path) -> None:
    previous = os.umask(0)
    try:
        with kdump_locks():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(previous)


_ON_A_READ_ONLY_DIRECTORY = """
import fcntl, os, sys
from crash_hotplug.linux.loading import kdump_lock
kdump_lock.RED_HAT, kdump_lock.DEBIAN = sys.argv[1] + "/missing/kdump", sys.argv[1] + "/kdump_lock"
try:
    with kdump_lock.kdump_locks():
        try:
            fcntl.flock(os.open(kdump_lock.DEBIAN, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("not held")
        except OSError as error:
            print(error.strerror)
except Exception as error:
    print(error)
"""


@needs_root
@pytest.mark.parametrize("state", ["missing", "free", "taken"])
def test_directory_of_kdump_config_that_is_read_only_is_no_failure(tmp_path: Path, state: str) -> None:
    """/var/crash appeared after the service started: its sandbox shows it read-only."""
    lock = tmp_path / "kdump_lock"
    if state != "missing":
        lock.touch()
    read_only = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    command = [sys.executable, "-c", _ON_A_READ_ONLY_DIRECTORY, str(tmp_path)]
    with contextlib.ExitStack() as held:
        if state == "taken":
            fcntl.flock(held.enter_context(lock.open()), fcntl.LOCK_EX)
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f'{read_only} || exit 77; exec "$@"', "sh", *command],
            stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    if done.returncode:
        pytest.skip("no mount name space can be made here")
    expected = {"missing": "No such file or directory", "free": "temporarily unavailable", "taken": "is taken"}
    assert expected[state] in done.stdout


def test_lock_for_which_the_kernel_has_no_memory_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(CrashHotplugError, match="cannot be taken: No locks available"), kdump_locks():
        pass
    assert not is_open(path)


def test_lock_is_private_from_the_moment_when_it_is_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_descriptor: int, _mode: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refused)
    previous = os.umask(0)
    try:
        with kdump_locks():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(previous)


def test_locks_of_both_wrappers_are_taken_in_one_order(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that took them in different orders would find each other's lock taken for ever."""
    (path.parent / "missing").mkdir()
    taken: list[str] = []
    flock = fcntl.flock

    def noted(descriptor: int, operation: int) -> None:
        taken.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", noted)
    with kdump_locks():
        assert not is_free(path.parent / "missing" / "kdump_lock")
    assert taken[:2] == ["kdump", "kdump_lock"]


@pytest.mark.parametrize(
    ("users", "honoured"),
    [
        ("Uid:\t1000\t1000\t1000\t1000", False),  # a 0 within a number is not root's
        ("Uid:\t0\t0\t0\t0", True),
        ("Uid:\t1000\t0\t1000\t1000", True),  # sudo and its like
        ("Name:\tflock", True),  # not known
    ],
)
def test_holder_whose_users_have_the_number_0_is_of_root(
    path: Path, tmp_path: Path, users: str, honoured: bool
) -> None:
    path.touch()
    status = path.stat()
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    line = f"1: FLOCK  ADVISORY  WRITE 4711 {file} 0 EOF"
    process = tmp_path / "tree" / "proc" / "4711"
    (process / "fdinfo").mkdir(parents=True)
    (process.parent / "locks").write_text(f"{line}\n")
    (process / "fdinfo" / "3").write_text(f"pos:\t0\nlock:\t{line}\n")
    (process / "status").write_text(f"{users}\n")
    with path.open("r+") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        sysroot = Sysroot(str(tmp_path / "tree"))
        if honoured:
            with pytest.raises(LockBusyError), kdump_locks(sysroot):
                pass
        else:
            with kdump_locks(sysroot):
                pass


def test_lock_is_exclusive(path: Path) -> None:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(LockBusyError), kdump_locks():
            pass
