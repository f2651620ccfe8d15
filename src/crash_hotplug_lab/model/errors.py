"""The error that the model's kernel returns."""

from __future__ import annotations

import errno
import os

from crash_hotplug.core.errors import CrashHotplugError


class ModelError(CrashHotplugError):
    """The kernel of the model refused; the message names the error number."""

    def __init__(self, number: int, sentence: str) -> None:
        """Take an error number of errno and what happened."""
        super().__init__(f"{sentence} ({errno.errorcode[number]}, {os.strerror(number)})")
        self.number = number
