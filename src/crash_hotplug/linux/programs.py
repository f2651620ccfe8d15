# SPDX-License-Identifier: MIT
"""Run the system's own programs as root: their directories, and the reason of a failure in a sentence."""

from __future__ import annotations

import subprocess

from crash_hotplug.core.errors import CrashHotplugError

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Directories of root's programs, for shutil.which().  PATH is not used: a service may have none, and a user's PATH
may name another program."""
_LINES = 3


def run_tool(command: list[str], seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a program to its end.

    :raise CrashHotplugError: it cannot be started, or did not end in time
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CrashHotplugError(f"{' '.join(command[:2])} did not finish: {error}") from error


def why_failed(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last lines that a failed program printed, or its exit code if it printed nothing."""
    # More than one line: kdumpctl's last is "Starting kdump: [FAILED]", and the reason is in the lines before it.
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return "; ".join(line.strip() for line in said[-_LINES:]) or f"exit code {done.returncode}"
