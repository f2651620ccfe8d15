# SPDX-License-Identifier: MIT
"""The errors that the project raises on purpose.  Each message is a sentence for people.

The command line turns them into exit codes (cli/exit_codes.py); nothing else exits.
"""

from __future__ import annotations


class CrashHotplugError(Exception):
    """Base of all errors raised on purpose."""


class InputError(CrashHotplugError):
    """A file or a value is invalid: truncated, corrupt, or of another architecture."""


class CannotTellError(CrashHotplugError):
    """The data for an answer cannot be read: no privilege, lockdown, a masked or missing file."""


class NoRoomError(CrashHotplugError):
    """A result is larger than its place.  Nothing was changed."""
