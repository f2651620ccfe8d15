"""What the lab raises: one sentence for the person at the terminal, shown by the command line and nowhere else."""

from __future__ import annotations

from crash_hotplug.core.errors import CrashHotplugError


class LabError(CrashHotplugError):
    """Something the lab needs is missing or did not work; ``str()`` is the sentence to show."""


class GuestError(LabError):
    """The guest died, hung, or answered that a step failed; the serial log says more."""


class StuckError(GuestError):
    """The guest goes nowhere after its panic."""

    def __init__(self, addresses: list[int]) -> None:
        """Take where each CPU is."""
        super().__init__("the guest goes nowhere after its panic; its CPUs are at " + ", ".join(map(hex, addresses)))
        self.addresses = addresses
