"""The exit codes, the same for every command."""

from __future__ import annotations

from crash_hotplug.core.compare import Verdict
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError

DONE = 0
FAILED = 1
USAGE = 2
NO_IMAGE = 3
NOT_ACCURATE = 4
CANNOT_TELL = 5

MEANINGS = {
    DONE: "accurate, or done",
    FAILED: "failed (bad input)",
    USAGE: "wrong usage",
    NO_IMAGE: "no crash image is loaded",
    NOT_ACCURATE: "loaded, but not accurate",
    CANNOT_TELL: "cannot tell (privilege, lockdown, masked or missing files)",
}

HELP = "exit status:\n" + "".join(
    f"  {left}  {MEANINGS[left]:<25}{left + 3}  {MEANINGS[left + 3]}\n" for left in (DONE, FAILED, USAGE)
)
"""Both columns of codes, as each --help ends."""

_OF_VERDICT = {
    Verdict.ACCURATE: DONE,
    Verdict.NO_IMAGE: NO_IMAGE,
    Verdict.NOT_ACCURATE: NOT_ACCURATE,
    Verdict.CANNOT_TELL: CANNOT_TELL,
}


def of_verdict(verdict: Verdict) -> int:
    """Return the exit code that says *verdict*."""
    return _OF_VERDICT[verdict]


def of_error(error: CrashHotplugError) -> int:
    """Return the exit code for an error raised on purpose."""
    return CANNOT_TELL if isinstance(error, CannotTellError) else FAILED
