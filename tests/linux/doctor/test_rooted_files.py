# SPDX-License-Identifier: MIT
"""Links inside a tree lead to the file that the machine itself would find, and never out of the tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug.linux.doctor.rooted_files import exists, read_config, resolve
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
