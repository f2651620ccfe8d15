"""Settings that shell scripts source are read without a shell; the shell itself is asked whether that was right."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.doctor.shell_settings import append_assignment, read_setting
from crash_hotplug.core.errors import CannotTellError


def shell_value(text: str) -> str:
    script = f'{text}\nprintf %s "$A"'
    return subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("text", "line", "value"),
    [
        ("A=plain", 1, "plain"),
        ('# A="no"\nA="two words"  # comment', 2, "two words"),
        ("A='single $quoted'", 1, "single $quoted"),
        ('A=first\nA="last"', 2, "last"),
        ("  export A=exported", 1, "exported"),
        ('A=""', 1, ""),
        ("A=", 1, ""),
        ('A="it\'s"', 1, "it's"),
        ('A=one"two"', 1, "onetwo"),
        ('A="over\ntwo lines"', 1, "over\ntwo lines"),
    ],
)
def test_plain_text_is_what_the_shell_makes_of_it(text: str, line: int, value: str) -> None:
    assert read_setting(text, "A") == (line, value)
    assert shell_value(text) == value


@pytest.mark.parametrize("text", ['A="$B c"', "A=`date`", "A=$(date)", 'A="a" b', 'A="unended', "A=a;B=c"])
def test_what_the_shell_would_have_to_work_out_is_unknown(text: str) -> None:
    found = read_setting(text, "A")
    assert found is not None
    assert found.value is None


def test_a_setting_that_is_not_there() -> None:
    assert read_setting("# A=1\nAB=2\nBA=3", "A") is None


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\$`'), max_size=30))
def test_what_is_appended_is_read_again(value: str) -> None:
    text = append_assignment('A="before"', "A", value, ["why"])
    found = read_setting(text, "A")
    assert found == (3, value)
    assert text.startswith('A="before"\n# why\n')


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
def test_the_shell_reads_what_was_appended() -> None:
    assert shell_value(append_assignment("A=old", "A", "a b=c 'd'", [])) == "a b=c 'd'"


@pytest.mark.parametrize("value", ['a"b', "$x", "`x`", "a\\b", "a\nb"])
def test_what_a_shell_would_change_is_not_written(value: str) -> None:
    with pytest.raises(CannotTellError, match="edit it by hand"):
        append_assignment("", "A", value, [])
