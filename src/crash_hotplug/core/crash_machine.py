# SPDX-License-Identifier: MIT
"""What an update needs of a machine: its primitives, and what it observes of the loaded image.

A live machine (linux/loading/live_machine.py) and the model of crash_hotplug_lab implement it.
"""

from __future__ import annotations

from collections.abc import Sequence

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.core.records import Protocol
from crash_hotplug.core.steps import Steps


class ImageChangedError(CrashHotplugError):
    """Another process loaded or unloaded an image meanwhile: the plan is void, and nothing was changed."""


class KexecBusyError(CrashHotplugError):
    """Another process holds the kernel's kexec lock; nothing was changed."""

    def __init__(self, sentence: str, is_limited: bool = False) -> None:
        """Take the sentence for people.

        :param is_limited: whether the attempt counted against ``kernel.kexec_load_limit_panic``, and so would the next
        """
        super().__init__(sentence)
        self.is_limited = is_limited


class Observation(Protocol):
    """One observation of a machine.  All that it returns is of one moment as far as the machine can tell."""

    def identity(self) -> bytes:
        """Return what tells the image that is loaded now from any other; nothing where none is loaded.

        :raise CannotTellError: it cannot be read
        """

    def image(self) -> CrashImage:
        """Return the image that :meth:`identity` found last.

        :raise CannotTellError: it cannot be read
        """

    def machine(self) -> Machine:
        """Return what a header of this machine has to describe.

        :raise CannotTellError: it cannot be read
        """

    def mark_torn(self, sentence: str | None) -> None:
        """Remember that the image that was identified last is torn, and why; None: that it is proven to be whole."""

    def mark_unloaded(self, sentence: str | None) -> None:
        """Remember that nothing is loaded because of this update, and why; None: that an image is loaded again."""

    def read_phys(self, phys: int, length: int) -> bytes:
        """Return bytes at a physical address.

        :raise CannotTellError: they cannot be read
        """

    def confirm(self) -> None:
        """Check that everything that was read is what it was taken for.

        :raise ImageChangedError: the layout of the machine's memory changed meanwhile
        """

    def close(self) -> None:
        """End the observation."""


class CrashMachine(Protocol):
    """What an update needs of a machine: its primitives."""

    def why_refused(self) -> str | None:
        """Return what forbids kexec_load(2) on this machine, for people; None where nothing does."""

    def try_lock(self) -> bool:
        """Take the lock that keeps other updates and loads away; False where another process has it."""

    def why_locked(self) -> str:
        """Return why the last :meth:`try_lock` failed, for people."""

    def unlock(self) -> None:
        """Give the lock back."""

    def image_loaded(self) -> bool | None:
        """Whether a crash image is loaded; None where the kernel does not say."""

    def observe(self) -> Observation:
        """Begin an observation.

        :raise CannotTellError: the machine's memory cannot be read
        """

    def kexec_load(self, entry_phys: int, segments: Sequence[NewSegment], updated_by_kernel: bool) -> Steps[None]:
        """Load a crash image of these segments; memory of the reserved region that none of them covers stays.

        With no segments the loaded image is unloaded.

        :param updated_by_kernel: whether the kernel may update the header by itself
        :raise KexecBusyError: the kernel is loading an image already
        :raise CrashHotplugError: the kernel refused; the previous image may be gone
        """
