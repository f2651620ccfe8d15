"""Which of the rules files with one name is live?  Directories in udev's order of precedence."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.linux.doctor.udev_files import DIRECTORIES, read_rules_files
from crash_hotplug.linux.sysroot import Sysroot


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path


def put(root: Path, directory: str, name: str = "50-x.rules", text: str | None = None) -> Path:
    path = root / directory.lstrip("/") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(directory if text is None else text)
    return path


def live(root: Path) -> dict[str, str]:
    return {file.name: file.text for file in read_rules_files(Sysroot(str(root)))}


@pytest.mark.parametrize("number", range(len(DIRECTORIES)))
def test_the_first_directory_wins_and_the_others_are_named(root: Path, number: int) -> None:
    for directory in DIRECTORIES[number:]:
        put(root, directory)
    (file,) = read_rules_files(Sysroot(str(root)))
    assert (file.path, file.text) == (f"{DIRECTORIES[number]}/50-x.rules", DIRECTORIES[number])
    assert file.hidden == tuple(f"{directory}/50-x.rules" for directory in DIRECTORIES[number + 1 :])


def test_files_are_read_by_name_whatever_their_directory(root: Path) -> None:
    put(root, "/etc/udev/rules.d", "90-z.rules")
    put(root, "/usr/lib/udev/rules.d", "10-a.rules")
    put(root, "/run/udev/rules.d", "50-m.rules")
    put(root, "/run/udev/rules.d", "50-m.rules.bak")
    assert list(live(root)) == ["10-a.rules", "50-m.rules", "90-z.rules"]


@pytest.mark.parametrize("how", ["empty", "spaces", "link"])
def test_a_file_of_the_same_name_switches_off(root: Path, how: str) -> None:
    put(root, "/usr/lib/udev/rules.d", text='RUN+="x"')
    path = put(root, "/etc/udev/rules.d", text="\n \n" if how == "spaces" else "")
    if how == "link":
        path.unlink()
        path.symlink_to("/dev/null")
    (file,) = read_rules_files(Sysroot(str(root)))
    assert file.is_off


def test_on_a_merged_usr_a_file_does_not_hide_itself(root: Path) -> None:
    put(root, "/usr/lib/udev/rules.d")
    (root / "lib").symlink_to("usr/lib")
    (file,) = read_rules_files(Sysroot(str(root)))
    assert file.hidden == ()


def test_opensuses_template_waits_until_an_image_is_loaded(root: Path) -> None:
    put(root, "/usr/lib/kdump", "70-kdump.rules")
    (file,) = read_rules_files(Sysroot(str(root)))
    assert (file.waiting, file.path) == (True, "/usr/lib/kdump/70-kdump.rules")
    put(root, "/run/udev/rules.d", "70-kdump.rules")
    (file,) = read_rules_files(Sysroot(str(root)))
    assert (file.waiting, file.path) == (False, "/run/udev/rules.d/70-kdump.rules")
