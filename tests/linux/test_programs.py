# SPDX-License-Identifier: MIT
"""Running the system's own programs, and the sentence when one fails."""

from __future__ import annotations

import pytest

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.programs import run_tool, why_failed


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("exit 7", "exit code 7"),
        ("echo only this; exit 1", "only this"),
        ("echo out; printf 'one\\ntwo\\n three \\nfour\\n' >&2; exit 1", "two; three; four"),
    ],
)
def test_why_failed_is_the_last_lines_of_the_program_or_its_exit_code(script: str, sentence: str) -> None:
    assert why_failed(run_tool(["/bin/sh", "-c", script])) == sentence


def test_program_that_does_not_start_or_end_is_an_error() -> None:
    with pytest.raises(CrashHotplugError, match=r"^/nowhere/kexec --help did not finish: .*No such file"):
        run_tool(["/nowhere/kexec", "--help"])
    with pytest.raises(CrashHotplugError, match=r"^/bin/sleep 60 did not finish: .*timed out"):
        run_tool(["/bin/sleep", "60"], seconds=0.05)
