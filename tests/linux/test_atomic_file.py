# SPDX-License-Identifier: MIT
"""Atomic writes: the files that may be replaced, the remains of a failed or killed write, and a reader's view."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug.linux.atomic_file import check_replaceable, temporary_prefix, write_atomically, write_private_tree


def wrap(monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[..., object]) -> None:
    """Call *before* with the arguments of each call of a function of :mod:`os`, then the function itself."""
    real = getattr(os, name)

    def call(*arguments: object, **named: object) -> object:
        before(*arguments)
        return real(*arguments, **named)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_write_makes_and_replaces_a_file_with_the_given_mode(tmp_path: Path, mode: int, umask: int) -> None:
    path = tmp_path / "file"
    previous = os.umask(umask)
    try:
        for data in (b"long content\n" * 9000, b"short\n", b""):
            write_atomically(str(path), data, mode)
            assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (data, mode)
    finally:
        os.umask(previous)
    assert list(tmp_path.iterdir()) == [path]


def test_default_mode_is_private(tmp_path: Path) -> None:
    write_atomically(str(tmp_path / "file"), b"secret")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_temporary_file_is_private_until_its_mode_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    wrap(monkeypatch, "write", lambda descriptor, _data: modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode)))
    write_atomically(str(tmp_path / "file"), b"new", 0o644)
    assert modes == [0o600]


def test_relative_path_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomically("file", b"here")
    assert (tmp_path / "file").read_bytes() == b"here"


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "device", "link", "dangling link"])
def test_path_other_than_a_regular_file_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "path", tmp_path / "target"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    elif kind == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root can make a device")
    else:
        path.symlink_to(target)
        if kind == "link":
            target.write_bytes(b"precious")
    before = path.lstat()
    with pytest.raises(InputError, match="path exists and is not a regular file"):
        write_atomically(str(path), b"new")
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert target.exists() == (kind == "link")
    assert kind != "link" or target.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_planted_temporary_file_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "path"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(os, "urandom", bytes)  # makes the name known beforehand
    planted = tmp_path / f"{temporary_prefix('path')}{'00' * 6}"
    planted.symlink_to(victim) if kind == "link" else os.link(victim, planted)
    with pytest.raises(InputError, match="File exists"):
        write_atomically(str(path), b"new")
    assert victim.read_bytes() == b"precious"
    assert not path.exists()


@pytest.mark.parametrize("failing", ["write", "fchmod", "fsync", "replace"])
def test_failed_write_leaves_the_previous_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"previous")

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    wrap(monkeypatch, failing, fail)
    with pytest.raises(InputError, match=r"file cannot be written: No space left on device$"):
        write_atomically(str(path), b"new", durable=True)
    assert path.read_bytes() == b"previous"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    wrap(monkeypatch, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(str(tmp_path / "file"), b"new")
    assert list(tmp_path.iterdir()) == []


def test_reader_sees_the_previous_content_until_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"previous")
    seen = []
    for name in ("write", "fchmod", "fsync", "replace", "close"):
        wrap(monkeypatch, name, lambda *_arguments, name=name: seen.append((name, path.read_bytes())))
    write_atomically(str(path), b"new", durable=True)
    monkeypatch.undo()
    renamed = [name for name, _content in seen].index("replace")
    assert {content for _name, content in seen[: renamed + 1]} == {b"previous"}
    assert {content for _name, content in seen[renamed + 1 :]} == {b"new"}


def test_partial_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    write_atomically(str(tmp_path / "file"), b"0123456789" * 5)
    assert (tmp_path / "file").read_bytes() == b"0123456789" * 5


def test_second_writer_does_not_tear_the_file_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"

    def second_writer(*_arguments: object) -> None:
        monkeypatch.undo()
        write_atomically(str(path), b"second")
        assert path.read_bytes() == b"second"

    wrap(monkeypatch, "write", second_writer)
    write_atomically(str(path), b"first")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [True, False])
def test_durable_write_syncs_the_file_before_and_the_directory_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    calls: list[str] = []

    def synced(descriptor: int) -> None:
        calls.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    wrap(monkeypatch, "fsync", synced)
    for name in ("write", "fchmod", "replace"):
        wrap(monkeypatch, name, lambda *_arguments, name=name: calls.append(name))
    write_atomically(str(tmp_path / "file"), b"new", durable=durable)
    expected = ["write", "fchmod", "file", "replace", "directory"]
    assert calls == [call for call in expected if durable or call not in ("file", "directory")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_owner_is_the_given_one_or_that_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(str(path), b"theirs", owner=(12, 34))
    assert (path.stat().st_uid, path.stat().st_gid) == (12, 34)
    write_atomically(str(path), b"ours")
    assert (path.stat().st_uid, path.stat().st_gid) == (os.geteuid(), os.getegid())


def test_extended_attributes_of_the_replaced_file_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"previous")
    try:
        os.setxattr(path, "user.label", b"kept")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    write_atomically(str(path), b"new")
    assert os.getxattr(path, "user.label") == b"kept"


def test_attribute_that_may_not_be_set_does_not_fail_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "listxattr", lambda *_arguments, **_named: ["security.label"])
    monkeypatch.setattr(os, "getxattr", lambda *_arguments, **_named: b"label")
    monkeypatch.setattr(os, "setxattr", refuse)
    write_atomically(str(tmp_path / "file"), b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_given_directory_is_used_instead_of_the_paths(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    parent = os.open(tmp_path / "directory", os.O_RDONLY | os.O_DIRECTORY)
    try:
        write_atomically("/nowhere/file", b"new", parent=parent)
        os.fstat(parent)  # still open
        (tmp_path / "directory/link").symlink_to("file")
        with pytest.raises(InputError, match="/nowhere/link exists and is not a regular file"):
            write_atomically("/nowhere/link", b"new", parent=parent)
    finally:
        os.close(parent)
    assert (tmp_path / "directory/file").read_bytes() == b"new"


@pytest.mark.parametrize("path", ["missing/file", "file/below", "."])
def test_place_where_no_file_can_be_is_an_input_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written|is not a regular file"):
        write_atomically(f"{tmp_path}/{path}", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_write_closes_every_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    write_atomically(str(tmp_path / "file"), b"new")
    with pytest.raises(InputError):
        write_atomically(str(tmp_path), b"new")
    assert os.listdir("/proc/self/fd") == before


TREE = {"/proc/cmdline": b"ro", "/proc/self/status": b"", "/sys/kernel/notes": b"\xff"}


def test_private_tree_is_written_into_a_new_or_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/below", "empty", "slash/"):
        write_private_tree(f"{tmp_path}/{name}", TREE)
        top = tmp_path / name
        found = {f"/{path.relative_to(top)}": path.read_bytes() for path in top.rglob("*") if path.is_file()}
        assert found == TREE
        below = list(top.rglob("*"))
        assert {stat.S_IMODE(path.stat().st_mode) for path in below if path.is_dir()} == {0o700}
        assert {stat.S_IMODE(path.stat().st_mode) for path in below if path.is_file()} == {0o600}


def test_private_tree_is_not_written_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    for name in ("link", "link/"):
        with pytest.raises(InputError, match="link is a link: name the directory itself"):
            write_private_tree(f"{tmp_path}/{name}", TREE)
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.parametrize("planted", ["file link", "directory link", "directory of another user", "file"])
def test_private_tree_follows_nothing_that_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    top, victims = tmp_path / "case", tmp_path / "victims"
    victims.mkdir()
    (victims / "cmdline").write_bytes(b"precious")
    if planted == "directory of another user" and os.geteuid() != 0:
        pytest.skip("only root can act as another user")

    def plant() -> None:
        if planted == "directory link":
            (top / "proc").symlink_to(victims)
        elif planted == "file":
            (top / "proc").touch()
        else:
            (top / "proc").mkdir()
            if planted == "file link":
                (top / "proc" / "cmdline").symlink_to(victims / "cmdline")
            else:
                os.chown(top / "proc", 65534, 65534)

    wrap(monkeypatch, "mkdir", lambda name, *_rest: plant() if name == "proc" else None)
    with pytest.raises(InputError, match=r"was put there by another|exists and is not a regular file"):
        write_private_tree(str(top), TREE)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in victims.iterdir()} == {"cmdline": b"precious"}
    assert not [path for path in top.rglob("*") if path.is_file() and not path.is_symlink() and path.read_bytes()]


def test_private_tree_closes_every_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    write_private_tree(str(tmp_path / "tree"), TREE)
    with pytest.raises(InputError, match="is not empty"):
        write_private_tree(str(tmp_path), TREE)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(("name", "fits"), [("file", True), ("missing", True), ("missing/file", True), ("null", False)])
def test_check_replaceable_refuses_what_a_write_would_refuse(tmp_path: Path, name: str, fits: bool) -> None:
    (tmp_path / "file").touch()
    path = "/dev/null" if name == "null" else f"{tmp_path}/{name}"
    if fits:
        check_replaceable(path)
    else:
        with pytest.raises(InputError, match=r"^/dev/null exists and is not a regular file$"):
            check_replaceable(path)
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        check_replaceable("x" * 300)


def test_private_tree_is_not_written_behind_a_link_that_appears_after_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    monkeypatch.setattr("os.path.islink", lambda _path: False)
    with pytest.raises(InputError, match="cannot be written"):
        write_private_tree(str(tmp_path / "link"), {"/file": b"private"})
    assert list((tmp_path / "elsewhere").iterdir()) == []
