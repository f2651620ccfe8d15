# SPDX-License-Identifier: MIT
"""Live rules files and units, in the order of precedence of their directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.linux.doctor.config_files import (
    RULES_DIRECTORIES,
    KernelConfig,
    read_kernel_config,
    read_rules_files,
    read_unit,
)
from crash_hotplug.linux.sysroot import Sysroot

NAME = "x.service"


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


@pytest.mark.parametrize("number", range(len(RULES_DIRECTORIES)))
def test_file_in_the_first_directory_is_live_and_hides_the_others(root: Path, number: int) -> None:
    for directory in RULES_DIRECTORIES[number:]:
        put(root, directory)
    (file,) = read_rules_files(Sysroot(str(root)))
    assert (file.path, file.text) == (f"{RULES_DIRECTORIES[number]}/50-x.rules", RULES_DIRECTORIES[number])
    assert file.hidden == tuple(f"{directory}/50-x.rules" for directory in RULES_DIRECTORIES[number + 1 :])


def test_rules_files_are_sorted_by_name_whatever_their_directory(root: Path) -> None:
    put(root, "/etc/udev/rules.d", "90-z.rules")
    put(root, "/usr/lib/udev/rules.d", "10-a.rules")
    put(root, "/run/udev/rules.d", "50-m.rules")
    put(root, "/run/udev/rules.d", "50-m.rules.bak")
    assert list(live(root)) == ["10-a.rules", "50-m.rules", "90-z.rules"]


@pytest.mark.parametrize("how", ["empty", "spaces", "link"])
def test_empty_file_or_link_to_dev_null_disables_a_rules_file(root: Path, how: str) -> None:
    put(root, "/usr/lib/udev/rules.d", text='RUN+="x"')
    path = put(root, "/etc/udev/rules.d", text="\n \n" if how == "spaces" else "")
    if how == "link":
        path.unlink()
        path.symlink_to("/dev/null")
    (file,) = read_rules_files(Sysroot(str(root)))
    assert file.is_off


def test_rules_file_on_a_merged_usr_does_not_hide_itself(root: Path) -> None:
    put(root, "/usr/lib/udev/rules.d")
    (root / "lib").symlink_to("usr/lib")
    (file,) = read_rules_files(Sysroot(str(root)))
    assert file.hidden == ()


def test_opensuse_template_is_live_once_it_is_copied(root: Path) -> None:
    put(root, "/usr/lib/kdump", "70-kdump.rules")
    (file,) = read_rules_files(Sysroot(str(root)))
    assert (file.is_template, file.path) == (True, "/usr/lib/kdump/70-kdump.rules")
    put(root, "/run/udev/rules.d", "70-kdump.rules")
    (file,) = read_rules_files(Sysroot(str(root)))
    assert (file.is_template, file.path) == (False, "/run/udev/rules.d/70-kdump.rules")


@pytest.fixture
def unit_root(root: Path) -> Path:
    (root / "usr/lib/systemd/system").mkdir(parents=True)
    (root / "usr/lib/systemd/system" / NAME).write_text("[Service]\nA=1\n")
    return root


def test_unit_that_is_only_installed_is_neither_enabled_nor_active(unit_root: Path) -> None:
    unit = read_unit(Sysroot(str(unit_root)), NAME)
    assert (unit.path, unit.is_installed) == (f"/usr/lib/systemd/system/{NAME}", True)
    assert (unit.enabled_by, unit.is_active, unit.is_masked) == (None, None, False)


def test_unit_without_a_file_is_not_installed(unit_root: Path) -> None:
    unit = read_unit(Sysroot(str(unit_root)), "y.service")
    assert (unit.path, unit.is_installed, unit.texts) == (None, False, {})


@pytest.mark.parametrize("masked_in", ["etc", "run"])
def test_link_to_dev_null_masks_a_unit(unit_root: Path, masked_in: str) -> None:
    directory = unit_root / masked_in / "systemd/system"
    directory.mkdir(parents=True)
    (directory / NAME).symlink_to("/dev/null")
    unit = read_unit(Sysroot(str(unit_root)), NAME)
    assert (unit.is_masked, unit.is_installed) == (True, False)


def test_links_tell_whether_a_unit_is_enabled_and_active(unit_root: Path) -> None:
    wants = unit_root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / NAME).symlink_to(f"/usr/lib/systemd/system/{NAME}")
    (unit_root / "run/systemd/units").mkdir(parents=True)
    (unit_root / "run/systemd/system").mkdir()
    unit = read_unit(Sysroot(str(unit_root)), NAME)
    assert (unit.enabled_by, unit.is_active) == (f"/etc/systemd/system/multi-user.target.wants/{NAME}", False)
    (unit_root / f"run/systemd/units/invocation:{NAME}").symlink_to("0" * 32)
    assert read_unit(Sysroot(str(unit_root)), NAME).is_active is True


def test_drop_ins_follow_the_unit_by_name_from_the_first_directory(unit_root: Path) -> None:
    for directory, name, text in (
        ("usr/lib/systemd/system", "20-b.conf", "b"),
        ("usr/lib/systemd/system", "10-a.conf", "hidden"),
        ("etc/systemd/system", "30-c.conf", "c"),
        ("etc/systemd/system", "10-a.conf", "a"),
        ("etc/systemd/system", "README", "no"),
    ):
        path = unit_root / directory / f"{NAME}.d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert list(read_unit(Sysroot(str(unit_root)), NAME).texts.values()) == ["[Service]\nA=1\n", "a", "b", "c"]


def test_kernel_option_is_set_by_a_whole_line(tmp_path: Path) -> None:
    config = KernelConfig("/boot/config", "CONFIG_KEXEC=yes\nCONFIG_KEXEC_FILE=y\n# CONFIG_A=y\n")
    assert [config.has(name) for name in ("CONFIG_KEXEC", "CONFIG_KEXEC_FILE", "CONFIG_A")] == [False, True, False]


@pytest.mark.parametrize("release", ["../x", "a b", "", "x" * 129])
def test_kernel_config_of_a_release_that_is_none_is_not_looked_for(tmp_path: Path, release: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "boot" / "config-..").mkdir(parents=True)
    for path in ("config-../x", "config-a b", "config-", f"config-{'x' * 129}"):
        (tmp_path / "boot" / path).write_text("CONFIG_KEXEC=y\n")
    assert read_kernel_config(Sysroot(str(tmp_path)), release) is None
