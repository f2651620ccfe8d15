# SPDX-License-Identifier: MIT
"""Reading files: a saved tree that another person made, and files that a person named."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, Callable, cast

import pytest

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.linux.sysroot import Sysroot, open_given, open_regular, read_all
from tests.trees import LiveTree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path


def test_file_is_read_and_a_missing_one_is_none(root: Path) -> None:
    (root / "proc" / "cmdline").write_text("quiet\n")
    sysroot = Sysroot(str(root))
    assert sysroot.read_text("/proc/cmdline") == "quiet"
    assert sysroot.read("/proc/iomem") is None
    assert sysroot.read("/proc/cmdline/below-a-file") is None
    assert not sysroot.is_live
    assert Sysroot().is_live


def test_directory_that_is_no_saved_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a directory"):
        Sysroot(str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"neither proc/ nor sys/"):
        Sysroot(str(tmp_path))


def test_file_larger_than_its_limit_is_refused(root: Path) -> None:
    (root / "proc" / "cmdline").write_bytes(b"x" * 101)
    with pytest.raises(InputError, match="more than 100 bytes"):
        Sysroot(str(root)).read("/proc/cmdline", 100)
    assert len(Sysroot(str(root)).read("/proc/cmdline", 101) or b"") == 101


def test_text_with_other_bytes_is_refused(root: Path) -> None:
    (root / "proc" / "cmdline").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match="byte 2 is 0xff"):
        Sysroot(str(root)).read_text("/proc/cmdline")


def test_pipe_is_refused_without_waiting(root: Path) -> None:
    os.mkfifo(root / "proc" / "cmdline")
    with pytest.raises(InputError, match="not a regular file"):
        Sysroot(str(root)).read("/proc/cmdline")


def test_link_out_of_the_tree_is_refused_and_one_inside_followed(root: Path) -> None:
    (root / "proc" / "cmdline").symlink_to("/etc/passwd")
    (root / "proc" / "real").write_text("here")
    (root / "proc" / "link").symlink_to("real")
    with pytest.raises(InputError, match="leads out of the saved tree"):
        Sysroot(str(root)).read("/proc/cmdline")
    assert Sysroot(str(root)).read("/proc/link") == b"here"


def test_linked_directory_out_of_the_tree_is_refused_and_one_inside_followed(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "state").write_text("elsewhere")
    (root / "proc" / "out").symlink_to(outside)
    (root / "proc" / "real").mkdir()
    (root / "proc" / "real" / "state").write_text("here")
    (root / "proc" / "in").symlink_to("real")
    (root / "proc" / "real" / "up").symlink_to("../../..")
    saved = Sysroot(str(root))
    for path in ("/proc/out/state", f"/proc/in/up/{outside.name}/state", "/proc/out/none", "/proc/../../x/state"):
        with pytest.raises(InputError, match="leads out of the saved tree"):
            saved.read(path)
    assert saved.read("/proc/in/state") == b"here"
    assert saved.read("/proc/real/../in/state") == b"here"
    assert saved.read("/proc/none/state") is None


def test_file_of_a_saved_tree_is_resolved_from_its_directory_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved tree may have 24,577 memory blocks; resolving the whole path of each took most of the time."""
    asked: list[str] = []
    lstat = os.lstat

    def noted(path: str) -> os.stat_result:
        asked.append(path)
        return lstat(path)

    for number in range(100):
        (root / "proc" / f"memory{number}").mkdir()
        (root / "proc" / f"memory{number}" / "state").write_text("online")
    saved = Sysroot(str(root))
    monkeypatch.setattr(os, "lstat", noted)
    assert {saved.read(f"/proc/memory{number}/state") for number in range(100)} == {b"online"}
    assert len(asked) < 230


def outcome(read: Callable[..., object], *arguments: str) -> object:
    """Return what a reader returns, or the class and the message of its error."""
    try:
        return read(*arguments)
    except (CannotTellError, InputError) as error:
        return type(error), str(error)


def make_hostile_block(block: Path, outside: Path) -> None:
    """Write the file ``state`` of a block in the way that the block's name says."""
    contents = {
        "line": b"online\n", "no-end": b"online", "empty": b"", "spaces": b" online \n\n", "byte": b"\xffonline\n",
        "long": b"x" * 255 + b"\nonline\n", "too-long": b"x" * (1 << 17) + b"\n", "zeros": bytes(7),
    }  # fmt: skip
    if block.name == "linked":
        block.symlink_to(outside)
        return
    if block.name == "file":
        block.write_text("online\n")
        return
    block.mkdir()
    if block.name in contents:
        (block / "state").write_bytes(contents[block.name])
    elif block.name == "pipe":
        os.mkfifo(block / "state")
    elif block.name == "directory":
        (block / "state").mkdir()
    elif block.name in ("link-out", "link-in"):
        (block / "state").symlink_to(outside / "state" if block.name == "link-out" else "../line/state")
    else:
        assert block.name == "missing"


HOSTILE = (
    "line", "no-end", "empty", "spaces", "byte", "long", "too-long", "zeros", "linked", "file", "pipe", "directory",
    "link-out", "link-in", "missing",
)  # fmt: skip


@pytest.mark.parametrize("kind", [Sysroot, LiveTree])
def test_file_of_a_directory_of_many_is_read_as_any_other(
    root: Path, tmp_path_factory: pytest.TempPathFactory, kind: type[Sysroot]
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "state").write_text("elsewhere\n")
    for name in HOSTILE:
        make_hostile_block(root / "proc" / name, outside)
    pipe = os.open(root / "proc" / "pipe" / "state", os.O_RDWR | os.O_NONBLOCK)
    os.write(pipe, b"online\n")
    many = kind(str(root)).directory_of_many("/proc")
    assert many.names == sorted(HOSTILE)
    assert "line" in many
    assert "other" not in many
    saved = kind(str(root))
    found = {name: outcome(many.read_text, name, "state") for name in [*HOSTILE, "other"]}
    assert found == {name: outcome(saved.read_text, f"/proc/{name}/state") for name in found}
    os.close(pipe)
    assert found["line"] == found["link-in"] == "online"
    assert found["missing"] is found["other"] is found["file"] is None
    for name in ("linked", "link-out"):
        assert found[name] == (InputError, f"{root}/proc/{name}/state is a link that leads out of the saved tree")


def test_directory_of_many_that_does_not_exist_has_no_names(root: Path) -> None:
    many = Sysroot(str(root)).directory_of_many("/proc/none")
    assert many.names == []
    assert many.read_text("memory0", "state") is None


def test_read_of_one_line_that_fails_or_is_cut_is_tried_in_the_general_way(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "proc" / "memory0").mkdir()
    (root / "proc" / "memory0" / "state").write_text("online\n")
    many, read = LiveTree(str(root)).directory_of_many("/proc"), os.read
    descriptors = len(os.listdir("/proc/self/fd"))

    def fail(*_arguments: object) -> bytes:
        raise OSError(5, "Input/output error")

    for replaced in (fail, lambda descriptor, _size: read(descriptor, 3)):
        monkeypatch.setattr(os, "read", replaced)
        assert many.read_text("memory0", "state") == "online"
        monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_directory_in_place_of_a_file_is_one_sentence(root: Path) -> None:
    (root / "proc" / "cmdline").mkdir()
    with pytest.raises((InputError, CannotTellError), match="cmdline"):
        Sysroot(str(root)).read("/proc/cmdline")


@pytest.mark.parametrize(
    ("user", "needed"), [(1000, "run as root"), (0, "root may not read it either: see .*lockdown")]
)
def test_file_without_permission_names_what_is_needed(
    root: Path, monkeypatch: pytest.MonkeyPatch, user: int, needed: str
) -> None:
    def refuse(*_arguments: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(CannotTellError, match=f"cannot be read .Operation not permitted.; {needed}"):
        Sysroot(str(root)).read("/proc/cmdline")


def test_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with open_given(str(tmp_path / "file")) as file:
        assert read_all(file, 5, "it") == b"12345"
    with open_given(str(tmp_path / "file")) as file, pytest.raises(InputError, match="it has more than 4 bytes"):
        read_all(file, 4, "it")


def test_missing_file_is_none_or_one_sentence(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert open_regular(missing) is None
    with pytest.raises(InputError, match="the header cannot be opened: there is no such file"):
        open_given(missing, "the header")


def test_irregular_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path), str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(InputError, match="is not a regular file"):
            open_regular(path)
    with pytest.raises(InputError, match="null"):
        open_regular("a\0b")


def test_path_that_cannot_be_followed_is_cannot_tell(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CannotTellError, match="cannot be read: Too many levels"):
        open_regular(str(tmp_path / "loop"))


def test_text_of_the_running_kernel_that_ends_within_a_line_is_truncated(root: Path) -> None:
    (root / "proc" / "present").write_text("0-1")  # of 0-15
    assert Sysroot(str(root)).read_text("/proc/present") == "0-1"
    with pytest.raises(CannotTellError, match="present is truncated"):
        LiveTree(str(root)).read_text("/proc/present")
    (root / "proc" / "present").write_text("0-15\n")
    assert LiveTree(str(root)).read_text("/proc/present") == "0-15"
    (root / "proc" / "present").write_text("")
    assert LiveTree(str(root)).read_text("/proc/present") == ""


def test_link_into_a_sibling_whose_name_begins_alike_leads_out_of_the_tree(tmp_path: Path) -> None:
    (tmp_path / "tree" / "proc").mkdir(parents=True)
    (tmp_path / "tree-of-another").mkdir()
    (tmp_path / "tree-of-another" / "secret").write_text("secret")
    (tmp_path / "tree" / "proc" / "cmdline").symlink_to(tmp_path / "tree-of-another" / "secret")
    with pytest.raises(InputError, match="leads out of the saved tree"):
        Sysroot(str(tmp_path / "tree")).read("/proc/cmdline")


def test_file_that_is_refused_is_closed(root: Path) -> None:
    (root / "proc" / "directory").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError, match="not a regular file"):
        Sysroot(str(root)).read("/proc/directory")
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_that_cannot_be_opened_for_another_reason_is_cannot_tell(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(CannotTellError, match="iomem cannot be read: Too many open files"):
        Sysroot(str(root)).read("/proc/iomem")


def test_file_of_the_running_kernel_that_is_a_device_is_hidden(root: Path) -> None:
    (root / "proc" / "kcore").mkdir()  # a container's /dev/null stands for it
    with pytest.raises(CannotTellError, match="is hidden: a container"):
        LiveTree(str(root)).read("/proc/kcore")
    with pytest.raises(InputError, match="is not a regular file"):
        Sysroot(str(root)).read("/proc/kcore")


def test_file_that_gives_a_part_at_a_time_is_read_to_the_end() -> None:
    """A file below /proc gives a page at a time."""
    pages = [b"a" * 4096, b"b" * 4096, b"c", b""]
    file = SimpleNamespace(read=lambda _size: pages.pop(0))
    assert read_all(cast(BinaryIO, file), 1 << 20, "it") == b"a" * 4096 + b"b" * 4096 + b"c"
