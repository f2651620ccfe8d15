# SPDX-License-Identifier: MIT
"""Shell settings, compared with a shell's own result, and the sandbox that unit files describe."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.doctor.settings_files import Sandbox, append_assignment, read_setting, sandbox_of, unit_settings
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
def test_plain_value_is_the_one_that_the_shell_reads(text: str, line: int, value: str) -> None:
    assert read_setting(text, "A") == (line, value)
    assert shell_value(text) == value


@pytest.mark.parametrize("text", ['A="$B c"', "A=`date`", "A=$(date)", 'A="a" b', 'A="unended', "A=a;B=c"])
def test_value_that_only_a_shell_can_expand_is_unknown(text: str) -> None:
    found = read_setting(text, "A")
    assert found is not None
    assert found.value is None


def test_missing_setting_is_none() -> None:
    assert read_setting("# A=1\nAB=2\nBA=3", "A") is None


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\$`'), max_size=30))
def test_appended_assignment_is_read_again(value: str) -> None:
    text = append_assignment('A="before"', "A", value, ["why"])
    found = read_setting(text, "A")
    assert found == (3, value)
    assert text.startswith('A="before"\n# why\n')


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
def test_appended_assignment_is_read_by_a_shell() -> None:
    assert shell_value(append_assignment("A=old", "A", "a b=c 'd'", [])) == "a b=c 'd'"


@pytest.mark.parametrize("value", ['a"b', "$x", "`x`", "a\\b", "a\nb"])
def test_value_that_a_shell_would_change_is_not_written(value: str) -> None:
    with pytest.raises(CannotTellError, match="edit it by hand"):
        append_assignment("", "A", value, [])


def service(*lines: str) -> str:
    return "[Unit]\nSystemCallFilter=@reboot\n[Service]\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), Sandbox.OPEN),
        (("SystemCallFilter=@system-service @module @raw-io bpf", "SystemCallFilter=~@clock"), Sandbox.NO_SYSTEM_CALL),
        (("SystemCallFilter=@system-service kexec_load kexec_file_load",), Sandbox.OPEN),
        (("SystemCallFilter=@system-service @reboot",), Sandbox.OPEN),
        (("SystemCallFilter=@system-service @privileged", "SystemCallFilter=~@reboot"), Sandbox.NO_SYSTEM_CALL),
        (("SystemCallFilter=@system-service kexec_load",), Sandbox.ONE_SYSTEM_CALL),
        (("SystemCallFilter=~@clock",), Sandbox.OPEN),
        (("SystemCallFilter=~@reboot:EPERM",), Sandbox.NO_SYSTEM_CALL),
        (("SystemCallFilter=~kexec_load:EPERM kexec_file_load",), Sandbox.NO_SYSTEM_CALL),
        (("SystemCallFilter=@system-service", "SystemCallFilter="), Sandbox.OPEN),
        (("SystemCallFilter=@system-service \\", "  @reboot"), Sandbox.OPEN),
        (("# SystemCallFilter=@system-service",), Sandbox.OPEN),
        (("CapabilityBoundingSet=~CAP_SYS_TIME CAP_WAKE_ALARM",), Sandbox.OPEN),
        (("CapabilityBoundingSet=~CAP_SYS_BOOT",), Sandbox.NO_CAPABILITY),
        (("CapabilityBoundingSet=CAP_SYS_ADMIN",), Sandbox.NO_CAPABILITY),
        (("CapabilityBoundingSet=CAP_SYS_ADMIN", "CapabilityBoundingSet=cap_sys_boot"), Sandbox.OPEN),
        (("CapabilityBoundingSet=",), Sandbox.NO_CAPABILITY),
        (("CapabilityBoundingSet=", "CapabilityBoundingSet=~"), Sandbox.OPEN),
    ],
)
def test_sandbox_of_a_service(lines: tuple[str, ...], expected: Sandbox) -> None:
    assert sandbox_of([service(*lines)]) is expected


def test_drop_in_is_applied_after_the_unit() -> None:
    unit = service("SystemCallFilter=@system-service")
    assert sandbox_of([unit]) is Sandbox.NO_SYSTEM_CALL
    assert sandbox_of([unit, "[Service]\nSystemCallFilter=@reboot\n"]) is Sandbox.OPEN


def test_unit_settings_reads_one_section_only() -> None:
    assert unit_settings(["[A]\nx=1\n[B]\nx=2\n"], "B", "x") == ["2"]


def test_two_lists_that_allow_one_call_each_allow_both() -> None:
    filters = "[Service]\nSystemCallFilter=kexec_load\nSystemCallFilter=kexec_file_load\n"
    assert sandbox_of([filters]) is Sandbox.OPEN


def test_setting_in_a_comment_is_none() -> None:
    assert unit_settings(["[Service]\n#A=1\n; A=2\n"], "Service", "A") == []


def test_value_longer_than_any_command_line_is_not_read() -> None:
    assert read_setting(f"A={'x' * 8192}", "A") == (1, "x" * 8192)
    assert read_setting(f"A={'x' * 8193}", "A") == (1, None)
