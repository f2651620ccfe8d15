# SPDX-License-Identifier: MIT
"""The error that the model's kernel returns."""

from __future__ import annotations

import errno
import os

from crash_hotplug.core.errors import CrashHotplugError


class ModelError(CrashHotplugError):
    """The model's kernel refused a request; the message names the error number."""

    def __init__(self, number: int, sentence: str) -> None:
        """Take a number of errno and the sentence of the failure."""
        super().__init__(f"{sentence} ({errno.errorcode[number]}, {os.strerror(number)})")
        self.number = number
