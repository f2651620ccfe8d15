"""What files say of a unit: where it is, masked, enabled, active."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.linux.doctor.systemd_units import read_unit
from crash_hotplug.linux.sysroot import Sysroot

NAME = "x.service"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/system" / NAME).write_text("[Service]\nA=1\n")
    return tmp_path


def test_a_unit_that_is_only_installed(root: Path) -> None:
    unit = read_unit(Sysroot(str(root)), NAME)
    assert (unit.path, unit.is_installed) == (f"/usr/lib/systemd/system/{NAME}", True)
    assert (unit.enabled_by, unit.is_active, unit.is_masked) == (None, None, False)


def test_a_unit_that_is_not_there(root: Path) -> None:
    unit = read_unit(Sysroot(str(root)), "y.service")
    assert (unit.path, unit.is_installed, unit.texts) == (None, False, ())


@pytest.mark.parametrize("masked_in", ["etc", "run"])
def test_a_link_to_dev_null_masks(root: Path, masked_in: str) -> None:
    directory = root / masked_in / "systemd/system"
    directory.mkdir(parents=True)
    (directory / NAME).symlink_to("/dev/null")
    unit = read_unit(Sysroot(str(root)), NAME)
    assert (unit.is_masked, unit.is_installed) == (True, False)


def test_enabled_and_active_are_links(root: Path) -> None:
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / NAME).symlink_to(f"/usr/lib/systemd/system/{NAME}")
    (root / "run/systemd/units").mkdir(parents=True)
    (root / "run/systemd/system").mkdir()
    unit = read_unit(Sysroot(str(root)), NAME)
    assert (unit.enabled_by, unit.is_active) == (f"/etc/systemd/system/multi-user.target.wants/{NAME}", False)
    (root / f"run/systemd/units/invocation:{NAME}").symlink_to("0" * 32)
    assert read_unit(Sysroot(str(root)), NAME).is_active is True


def test_drop_ins_follow_the_unit_by_name_and_the_first_directory_wins(root: Path) -> None:
    for directory, name, text in (
        ("usr/lib/systemd/system", "20-b.conf", "b"),
        ("usr/lib/systemd/system", "10-a.conf", "hidden"),
        ("etc/systemd/system", "10-a.conf", "a"),
        ("etc/systemd/system", "README", "no"),
    ):
        path = root / directory / f"{NAME}.d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert read_unit(Sysroot(str(root)), NAME).texts == ("[Service]\nA=1\n", "a", "b")
