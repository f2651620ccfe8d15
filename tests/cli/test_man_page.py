"""Man pages: every command has one, and troff has no complaint."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from crash_hotplug.cli import man_page
from crash_hotplug.cli.main import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_has_every_option_and_the_exit_status(command: str) -> None:
    page = man_page.command_page(command)
    for part in (".SH NAME", ".SH SYNOPSIS", ".SH OPTIONS", "\\-\\-json", ".SH EXAMPLES", ".SH EXIT STATUS"):
        assert part in page


def test_the_main_page_names_every_command() -> None:
    assert all(f"crash\\-hotplug\\-{command}" in man_page.main_page() for command in COMMANDS)


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_no_complaint(tmp_path: Path) -> None:
    man_page.main(str(tmp_path))
    pages = sorted(tmp_path.iterdir())
    assert len(pages) == len(COMMANDS) + 1
    for path in pages:
        shown = subprocess.run(
            ["groff", "-man", "-ww", "-z", "-Tutf8", str(path)], capture_output=True, text=True, check=True
        )
        assert shown.stderr == ""
