# SPDX-License-Identifier: MIT
"""The installed family of kdump tools, and the next capture kernel's command line by its settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.doctor.settings_files import Setting
from crash_hotplug.linux.doctor.kdump_family import (
    DEBIAN,
    OPENSUSE,
    RED_HAT,
    KdumpSettings,
    read_kdump_settings,
    tool_lines,
)
from crash_hotplug.linux.sysroot import Sysroot
from tests.family_trees import build


def settings(root: Path) -> KdumpSettings:
    found = read_kdump_settings(Sysroot(str(root)))
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "family"), [("debian", DEBIAN), ("redhat", RED_HAT), ("opensuse", OPENSUSE)])
def test_family_is_recognized_by_its_files(tmp_path: Path, name: str, family: object) -> None:
    assert settings(build(tmp_path / "tree", name)).family is family


def test_machine_without_kdump_tools_has_no_settings(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert read_kdump_settings(Sysroot(str(tmp_path))) is None


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("debian", "", False),
        ("debian", 'KDUMP_CMDLINE_APPEND="irqpoll acpi_no_memhotplug"', True),
        ("debian", 'KDUMP_CMDLINE_APPEND=""', False),
        ("debian", 'KDUMP_CMDLINE_APPEND="$(cat /x)"', None),
        ("debian", 'KDUMP_CMDLINE="root=/dev/sda acpi_no_memhotplug"', True),
        ("redhat", "", True),
        ("redhat", 'KDUMP_COMMANDLINE_APPEND="irqpoll"', False),
        ("opensuse", "", True),
        ("opensuse", 'KDUMP_COMMANDLINE="root=kdump"', False),
    ],
)
def test_next_command_line_has_or_lacks_acpi_no_memhotplug(
    tmp_path: Path, name: str, line: str, expected: bool | None
) -> None:
    tree = build(tmp_path / "tree", name)
    path = tree / ("etc/default/kdump-tools" if name == "debian" else "etc/sysconfig/kdump")
    path.write_text(f"{path.read_text()}{line}\n")
    assert settings(tree).next_has_no_memhotplug is expected


def test_default_of_kdump_config_is_read_from_the_tool(tmp_path: Path) -> None:
    tree = build(tmp_path / "tree", "debian")
    assert settings(tree).appended == "reset_devices nr_cpus=1 irqpoll"
    (tree / "usr/sbin/kdump-config").unlink()
    assert settings(tree).appended is None
    assert settings(tree).next_has_no_memhotplug is None


def test_setting_that_is_empty_leaves_the_default_of_the_tool() -> None:
    for append in (None, Setting(1, "")):
        assert KdumpSettings(DEBIAN, "", append, "reset_devices", None, None).appended == "reset_devices"
    assert KdumpSettings(DEBIAN, "", Setting(1, "mine"), "reset_devices", None, None).appended == "mine"


def test_kdumpctl_that_calls_sudo_needs_it_installed(tmp_path: Path) -> None:
    tree = build(tmp_path / "tree", "redhat")
    assert not settings(tree).lacks_sudo
    tool = tree / "usr/bin/kdumpctl"
    tool.write_text(f'{tool.read_text()}\t[[ ${{KEYCTL_CMD[0]}} == sudo ]] && KEXEC="sudo -i $KEXEC"\n')
    assert settings(tree).lacks_sudo
    tool.write_text(tool_lines(settings(tree)))  # as a saved tree has it
    assert settings(tree).lacks_sudo
    (tree / "usr/bin/sudo").write_bytes(b"")
    assert not settings(tree).lacks_sudo
