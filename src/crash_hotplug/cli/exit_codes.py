# SPDX-License-Identifier: MIT
"""The exit codes, the same for every command."""

from __future__ import annotations

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crash_hotplug.core.finding import Verdict

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
    "accurate": DONE,
    "no crash image": NO_IMAGE,
    "not accurate": NOT_ACCURATE,
    "cannot tell": CANNOT_TELL,
}


class UsageError(CrashHotplugError):
    """Options or their values do not fit together; the message is a sentence."""


def of_verdict(verdict: Verdict) -> int:
    """Return the exit code that says *verdict*."""
    return _OF_VERDICT[verdict.value]


def of_error(error: CrashHotplugError) -> int:
    """Return the exit code for an error raised on purpose."""
    if isinstance(error, UsageError):
        return USAGE
    return CANNOT_TELL if isinstance(error, CannotTellError) else FAILED
