# SPDX-License-Identifier: MIT
"""Links inside a tree lead to the file that the machine itself would find, and never out of the tree."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug.linux.doctor.rooted_files import (
    FileState,
    exists,
    make_directories,
    open_directory,
    read_config,
    read_state,
    remove_file,
    replace_file,
    resolve,
)
from crash_hotplug.linux.sysroot import Sysroot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "usr" / "lib" / "udev").mkdir(parents=True)
    (tmp_path / "usr/lib/udev/file").write_text("inside")
    return tmp_path


@pytest.mark.parametrize("link", ["usr/lib", "/usr/lib", "../../usr/lib", "/usr/../usr/./lib"])
def test_merged_usr_is_found_through_any_link(root: Path, link: str) -> None:
    (root / "lib").symlink_to(link)
    sysroot = Sysroot(str(root))
    assert resolve(sysroot, "/lib/udev/file") == "/usr/lib/udev/file"
    assert read_config(sysroot, "/lib/udev/file") == "inside"
    assert sysroot.names(resolve(sysroot, "/lib/udev")) == ["file"]


def test_link_out_of_the_tree_leads_back_into_it(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret"
    outside.write_text("secret")
    (root / "a").symlink_to(outside)
    (root / "b").symlink_to("../" * 20 + str(outside).lstrip("/"))
    sysroot = Sysroot(str(root))
    assert read_config(sysroot, "/a") is None
    assert read_config(sysroot, "/b") is None


def test_link_to_dev_null_is_an_empty_file(root: Path) -> None:
    (root / "off").symlink_to("/dev/null")
    assert read_config(Sysroot(str(root)), "/off") == ""
    assert read_config(Sysroot(str(root)), "/missing") is None


def test_circle_of_links_is_an_input_error(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    with pytest.raises(InputError, match="more than 40 symbolic links"):
        read_config(Sysroot(str(root)), "/a")


def test_dangling_link_exists(root: Path) -> None:
    (root / "a").symlink_to("nowhere")
    sysroot = Sysroot(str(root))
    assert exists(sysroot, "/a")
    assert not exists(sysroot, "/b")


def test_bytes_that_are_not_text_are_kept(root: Path) -> None:
    (root / "bytes").write_bytes(b"\xff\xfe\x00text")
    text = read_config(Sysroot(str(root)), "/bytes")
    assert text is not None
    assert text.encode("utf-8", "surrogateescape") == b"\xff\xfe\x00text"


def test_state_of_a_pipe_is_refused_without_waiting(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(InputError, match="pipe is not a regular file and stays unchanged"):
        read_state(str(root), "/pipe")


def test_state_of_a_file_is_content_mode_and_owner(root: Path) -> None:
    (root / "file").write_bytes(b"text")
    (root / "file").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(root / "file", 1000, 2000)
    status = (root / "file").stat()
    assert read_state(str(root), "/file") == FileState(b"text", 0o640, status.st_uid, status.st_gid)
    assert read_state(str(root), "/missing") is None


def test_state_of_a_link_is_refused(root: Path) -> None:
    (root / "link").symlink_to("usr/lib/udev/file")
    with pytest.raises(InputError, match="link is a link and stays unchanged"):
        read_state(str(root), "/link")
    (root / "way").symlink_to("usr")
    with pytest.raises(InputError, match="/way is a link or not a directory"):
        read_state(str(root), "/way/lib/udev/file")


def test_state_of_a_huge_file_is_refused(root: Path) -> None:
    with (root / "huge").open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        read_state(str(root), "/huge")
    with (root / "huge").open("r+b") as file:
        file.truncate(1 << 20)
    assert read_state(str(root), "/huge") is not None


@pytest.mark.parametrize("path", ["/usr/../usr", "/./usr"])
def test_directory_by_another_path_than_a_plain_one_is_refused(root: Path, path: str) -> None:
    with pytest.raises(InputError, match="is not a plain path"), open_directory(str(root), path):
        pass


def test_opened_directories_are_closed(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open_directory(str(root), "/usr/lib/udev") as descriptor:
        assert os.listdir(descriptor) == ["file"]
        assert len(os.listdir("/proc/self/fd")) == before + 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_directories_are_made_with_mode_0755_whatever_the_umask(root: Path) -> None:
    previous = os.umask(0o077)
    try:
        make_directories(str(root), "/etc/udev/rules.d")
    finally:
        os.umask(previous)
    assert [stat.S_IMODE((root / path).stat().st_mode) for path in ("etc", "etc/udev", "etc/udev/rules.d")] == [
        0o755
    ] * 3


def test_file_is_replaced_durably_and_leaves_no_temporary_ones(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / ".file.crash-hotplug-killed").write_text("left by a killed writer")
    (root / ".other.crash-hotplug-killed").write_text("not ours")
    synced: list[int] = []
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        synced.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    replace_file(str(root), "/file", FileState(b"text", 0o640, os.geteuid(), os.getegid()))
    assert len(synced) == 2  # the file and its directory
    assert sorted(path.name for path in root.iterdir() if path.is_file()) == [".other.crash-hotplug-killed", "file"]


@pytest.mark.parametrize("temporary_only", [True, False])
def test_file_is_removed_with_its_temporary_ones(root: Path, temporary_only: bool) -> None:
    for name in ("file", ".file.crash-hotplug-killed"):
        (root / name).write_text("text")
    remove_file(str(root), "/file", temporary_only=temporary_only)
    remove_file(str(root), "/missing/file")
    assert [path.name for path in root.iterdir() if path.is_file()] == (["file"] if temporary_only else [])


def test_file_that_cannot_be_written_or_removed_is_an_input_error(root: Path) -> None:
    (root / "file").mkdir()
    state = FileState(b"text", 0o640, os.geteuid(), os.getegid())
    with pytest.raises(InputError, match="exists and is not a regular file"):
        replace_file(str(root), "/file", state)
    with pytest.raises(InputError, match="/missing/file cannot be written"):
        replace_file(str(root), "/missing/file", state)
    with pytest.raises(InputError, match="/file cannot be removed"):
        remove_file(str(root), "/file")


def test_absolute_link_below_a_directory_starts_at_the_root(root: Path) -> None:
    (root / "usr/lib/link").symlink_to("/usr/lib/udev")
    assert resolve(Sysroot(str(root)), "/usr/lib/link/file") == "/usr/lib/udev/file"


@pytest.mark.parametrize("links", [40, 41])
def test_chain_of_links_is_followed_as_far_as_the_kernel_does(root: Path, links: int) -> None:
    for number in range(links):
        (root / f"link{number}").symlink_to(f"link{number + 1}" if number < links - 1 else "usr/lib/udev/file")
    if links == 40:
        assert read_config(Sysroot(str(root)), "/link0") == "inside"
    else:
        with pytest.raises(InputError, match="more than 40 symbolic links"):
            read_config(Sysroot(str(root)), "/link0")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_replaced_file_has_the_given_owner(root: Path) -> None:
    replace_file(str(root), "/file", FileState(b"text", 0o640, 1000, 2000))
    status = (root / "file").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 1000, 2000)
