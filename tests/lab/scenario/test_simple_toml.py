# SPDX-License-Identifier: MIT
"""The reader for old Pythons reads each bundled scenario as tomllib does, and refuses what it cannot read."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from crash_hotplug_lab.scenario.file import DIRECTORY
from crash_hotplug_lab.scenario.simple_toml import loads

if sys.version_info >= (3, 11):
    import tomllib

    def test_every_bundled_scenario_is_read_as_tomllib_reads_it() -> None:
        for path in DIRECTORY.glob("*.toml"):
            assert loads(path.read_text()) == tomllib.loads(path.read_text()), path.name


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", {}),
        ('a = "x # y" # z\r\nb=-7', {"a": "x # y", "b": -7}),
        (r'a = "\"\\\n\u0041"', {"a": '"\\\nA'}),
        ("a = 'b\\'", {"a": "b\\"}),
        ('a = """\nx \\\n   y"z\n"""', {"a": 'x y"z\n'}),
        ("a = [\n 1, # one\n 2,\n]\nb = []", {"a": [1, 2], "b": []}),
        ("[a]\nx = { y = [{ z = true }], w = false }", {"a": {"x": {"y": [{"z": True}], "w": False}}}),
        ("[[a]]\nb = 1\n[[a.b-c]]\n[a.d]\n[[a]]", {"a": [{"b": 1, "b-c": [{}], "d": {}}, {}]}),
    ],
)
def test_what_the_scenarios_use_is_read(text: str, content: dict[str, Any]) -> None:
    assert loads(text) == content


@pytest.mark.parametrize(
    "text",
    [
        *("a = 1\na = 2", "[a]\n[a]", "[[a]]\n[a]", "a = 1\n[a.b]", "a = 1\n[[a]]", "a = { b = 1, b = 2 }"),
        *("[a", "[]", "[a..b]", "[a b]", "[[a]", "[a]b = 1", "{", "= 1", "a", "a =", "a == 1", "a = 1 b = 2"),
        *("a = 1, b = 2", "a = [1 2]", "a = [1,,2]", "a = { b = 1, }", "a = 1]", "a = yes", "a = b", 'a = "x'),
        *(r'a = "\x"', "a = 01", "a = 0x1", "a = 1_0", "a = 1979-05-27", "a.b = 1", "a = '''x'''", "\0"),
    ],
)
def test_anything_else_is_an_error_with_its_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"line 3.* needs Python 3.11 or the package tomli") as raised:
        loads("\n" * (2 - text.count("\n")) + text)
    assert "\n" not in str(raised.value)
