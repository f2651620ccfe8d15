"""What a program that failed has said."""

from __future__ import annotations

import subprocess

import pytest

from crash_hotplug.linux.failed_program import why_failed


@pytest.mark.parametrize(
    ("out", "err", "sentence"),
    [
        ("", "", "exit code 7"),
        ("only this\n", "", "only this"),
        ("out", "one\ntwo\n three \nfour\n", "two; three; four"),
    ],
)
def test_the_last_lines_are_shown(out: str, err: str, sentence: str) -> None:
    assert why_failed(subprocess.CompletedProcess(["x"], 7, out, err)) == sentence
