# SPDX-License-Identifier: MIT
"""Text out of files on a terminal: nothing that a terminal acts on is printed."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest

from crash_hotplug.cli.output import limited, print_json, printable
from tests.cli.running import run, run_lab
from tests.trees import tree

SCENARIO = r"""title = "title\u001b[2J"
description = "first line\n  more\u0007 lines"
policies = ["in-place"]
[[step]]
do = "add-cpu"
cpu = 2
[[step]]
do = "panic"
cpu = 0
"""
HOSTILE = "\x1b[2J\x07\x9b31m\u202e"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("6.1.0-50-cloud-amd64", "6.1.0-50-cloud-amd64"),
        ("Größe 4 GiB\tGHz", "Größe 4 GiB\tGHz"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\r\nb\0\x7f\x9b", "a\\r\\nb\\x00\\x7f\\x9b"),
        ("\u202eevil", "\\u202eevil"),
        ("\udcff", "\\udcff"),
    ],
)
def test_printable_escapes_what_a_terminal_may_act_on(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_json_of_an_iterator_is_that_of_its_list(capsys: pytest.CaptureFixture[str]) -> None:
    """Findings are made while they are printed, so that 100,000 of them are never all in memory as objects."""
    print_any = inspect.unwrap(print_json)  # without the check against a command's schema
    for items in ([], [1], [{"a": [1, 2]}, {"b": "c"}]):
        print_any({"items": items})
        from_list = capsys.readouterr().out
        print_any({"items": iter(items)})
        assert capsys.readouterr().out == from_list
        assert json.loads(from_list)["items"] == items
        assert len(from_list.splitlines()) == 4 + (len(items) + 1 if items else 0)


def assert_safe(output: str) -> None:
    assert not set(output) & {"\x1b", "\x07", "\x9b", "\u202e"}


@pytest.mark.parametrize("command", ["status", "audit"])
def test_path_in_an_error_is_printed_safely(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    place = tmp_path / f"a{HOSTILE}b"
    shutil.copytree(tree("6.1-c", 0), place)
    (place / "proc/iomem").write_text("nothing\n")
    option = ["--sysroot", place] if command == "status" else [place]
    ran = run(capsys, command, *option)
    assert ran.code == 1
    assert "\\x1b[2J\\x07\\x9b31m\\u202e" in ran.err
    assert_safe(ran.err)


def test_title_and_path_of_a_scenario_are_printed_safely(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scenario = tmp_path / "s.toml"
    scenario.write_text(SCENARIO)
    dumps = tmp_path / f"d{HOSTILE}"
    ran = run_lab(capsys, "simulate", str(scenario), "--policy", "in-place", "--output", str(dumps))
    assert ran.code == 0, ran.err
    assert "title\\x1b[2J" in ran.out
    assert "\n  more\\x07 lines\n" in ran.out
    assert "/d\\x1b[2J" in ran.out
    assert_safe(ran.out + ran.err)


@pytest.mark.parametrize(("lines", "last"), [(20, "line 19"), (21, "... and 1 more (--json lists all)")])
def test_lines_over_twenty_are_counted(lines: int, last: str) -> None:
    assert limited([f"line {number}" for number in range(lines)])[-1] == last
