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

HELP = """\
exit status:
  0  accurate, or done        3  no crash image is loaded
  1  failed (bad input)       4  loaded, but not accurate
  2  wrong usage              5  cannot tell (privilege, lockdown, masked or missing files)
"""

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
