"""A program that failed, in a sentence."""

from __future__ import annotations

import subprocess

_LINES = 3


def why_failed(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last lines that a program which failed has said, or its exit code where it said nothing.

    More than the last line: that of kdumpctl is "Starting kdump: [FAILED]", and the reason stands before it.
    """
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return "; ".join(line.strip() for line in said[-_LINES:]) or f"exit code {done.returncode}"
