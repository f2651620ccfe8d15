# SPDX-License-Identifier: MIT
"""Exceptions of the lab.  ``str()`` of each is one sentence for the user, which the command line prints."""

from __future__ import annotations

from crash_hotplug.core.errors import CrashHotplugError


class LabError(CrashHotplugError):
    """A tool, file or step that the lab needs is missing or failed."""


class GuestError(LabError):
    """The guest died, hung, or reported that a step failed; the serial log has the details."""


class StuckError(GuestError):
    """The guest hangs after its panic."""

    def __init__(self, addresses: list[int]) -> None:
        """Take the instruction pointer of each CPU."""
        super().__init__("the guest hangs after its panic; its CPUs are at " + ", ".join(map(hex, addresses)))
        self.addresses = addresses
