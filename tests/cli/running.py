# SPDX-License-Identifier: MIT
"""Run command lines in this process."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from crash_hotplug.cli.main import CRASH_HOTPLUG, Program, main
from crash_hotplug_lab.cli.main import CRASH_HOTPLUG_LAB


class Ran(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object that --json printed."""
        report = json.loads(self.out)
        assert report["schema"] == 1
        assert isinstance(report, dict)
        return report


def run(capsys: pytest.CaptureFixture[str], *arguments: object, program: Program = CRASH_HOTPLUG) -> Ran:
    """Run one command line."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments], program)
    return Ran(code, *capsys.readouterr())


def run_lab(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """Run one command line of the lab."""
    return run(capsys, *arguments, program=CRASH_HOTPLUG_LAB)
