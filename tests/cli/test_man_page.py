# SPDX-License-Identifier: MIT
"""Man pages: every command has one, and troff has no complaint."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from crash_hotplug.cli import exit_codes, man_page
from crash_hotplug.cli.command_tree import read_commands
from crash_hotplug.cli.main import CRASH_HOTPLUG


@pytest.mark.parametrize("command", CRASH_HOTPLUG.commands)
def test_page_of_a_command_has_every_option_and_the_exit_status(command: str) -> None:
    page = man_page.pages()[f"crash-hotplug-{command}.8"]
    for part in (".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", "\\-\\-json", ".SH EXAMPLES", ".SH EXIT STATUS"):
        assert part in page
    found = next(found for found in read_commands() if found.name == command)
    options = [name for option in found.options for name in option.names]
    assert "--help" in options
    assert [name for name in options if name.replace("-", "\\-") not in page] == []


def test_main_page_names_every_command_and_exit_code() -> None:
    page = man_page.pages()["crash-hotplug.8"]
    assert all(f".BR crash\\-hotplug\\-{command} (8)" in page for command in CRASH_HOTPLUG.commands)
    assert all(f".B {code}\n{meaning}" in page for code, meaning in exit_codes.MEANINGS.items())
    assert ".SH FILES" in page
    assert ".SH SEE ALSO" in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_reports_nothing(tmp_path: Path) -> None:
    man_page.main(str(tmp_path))
    (tmp_path / "control").write_text(".TH CONTROL 8\n.SH NAME\ncontrol \\- a macro that there is not\n.XY\n")
    complaints = {path.name: groff(path) for path in tmp_path.iterdir()}
    assert "XY" in complaints.pop("control")
    assert len(complaints) == len(CRASH_HOTPLUG.commands) + 1
    assert not any(complaints.values())


def groff(page: Path) -> str:
    command = ["groff", "-man", "-ww", "-z", "-Tutf8", str(page)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr
