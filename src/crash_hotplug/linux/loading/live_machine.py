# SPDX-License-Identifier: MIT
"""The running machine as an update needs it: the primitives of core/crash_machine.py, and nothing else."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

from crash_hotplug.core.arch.supported import NAMES, architecture_named
from crash_hotplug.core.crash_machine import ImageChangedError, KexecBusyError
from crash_hotplug.core.decision import why_not_updatable
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.core.steps import Steps, run
from crash_hotplug.linux.crash_image import read_identified_image, read_identity
from crash_hotplug.linux.iomem import Iomem, read_iomem
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_state import (
    kernel_updates_image,
    memory_encryption,
    read_image_loaded,
    read_kexec_state,
    why_locked_down,
    why_no_load,
)
from crash_hotplug.linux.loading.kdump_lock import LockBusyError, kdump_locks
from crash_hotplug.linux.loading.system_calls import KEXEC_UPDATE_ELFCOREHDR, KexecError, kexec_load
from crash_hotplug.linux.machine_reader import read_described_machine
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug.linux.torn_image import mark_torn

PATIENCE_SECONDS = 10.0
"""How long a lock that stays taken is waited for."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _Result = TypeVar("_Result")


def machine_name() -> str:
    """Return what ``uname -m`` prints."""
    return os.uname().machine


class LiveMachine:
    """A :class:`~crash_hotplug.core.update.CrashMachine` over the running kernel."""

    def __init__(
        self,
        sysroot: Sysroot | None = None,
        load: Callable[[int, Sequence[NewSegment], int], None] = kexec_load,
        locks: Callable[[], AbstractContextManager[None]] = kdump_locks,
        hardware: str | None = None,
    ) -> None:
        """Take the running machine; nothing is read yet.

        :param sysroot: where to read it
        :param load: the system call; a test passes another one, as for the rest
        :param locks: takes the locks of the distributions' wrappers
        :param hardware: what ``uname -m`` prints
        """
        self.sysroot = sysroot or Sysroot()
        self._load, self._locks = load, locks
        self._hardware = machine_name() if hardware is None else hardware
        self._held = ExitStack()
        self._why_locked = ""
        self._unloaded_at: float | None = None
        """When the image was unloaded to be read; None where it is not."""
        self.kexec_seconds = 0.0
        """How long the kexec_loads took, and what lay between an unload and a load: at most as long was no image."""

    def why_refused(self) -> str | None:
        """Return what forbids kexec_load(2) on this machine, whatever is loaded; None where nothing does."""
        state = read_kexec_state(self.sysroot)
        if architecture_named(self._hardware) is None:
            return f"this machine is {self._hardware}: an update in place is known to be safe on {NAMES} only"
        return why_locked_down(state) or why_no_load(state)

    def try_lock(self) -> bool:
        """Begin an update: take the locks of the distributions' wrappers; False where one is taken.

        :raise CannotTellError: one may not be opened
        :raise CrashHotplugError: one cannot be opened or made
        """
        self.kexec_seconds = 0.0
        try:
            self._held.enter_context(self._locks())
        except LockBusyError as error:
            self._why_locked = str(error)
            return False
        return True

    def why_locked(self) -> str:
        """Return which lock the last :meth:`try_lock` found taken, and by which process."""
        return self._why_locked

    def unlock(self) -> None:
        """Give the locks back."""
        self._held.close()

    def image_loaded(self) -> bool | None:
        """Whether a crash image is loaded; None where the kernel does not say."""
        return read_image_loaded(self.sysroot)

    def observe(self) -> LiveObservation:
        """Open /proc/kcore for one observation."""
        return LiveObservation(self.sysroot)

    def kexec_load(self, entry_phys: int, segments: Sequence[NewSegment], updated_by_kernel: bool) -> Steps[None]:
        """Make the system call; it is one step of its own."""
        # Whoever loaded the image said whether the kernel (6.6 and newer) may update it; that stays so.
        flags = KEXEC_UPDATE_ELFCOREHDR if updated_by_kernel else 0
        started = self._unloaded_at or time.perf_counter()
        try:
            self._load(entry_phys, segments, flags)
        except KexecError as error:
            if error.number == errno.EBUSY:
                limit = read_kexec_state(self.sysroot).load_limit
                raise KexecBusyError(str(error), is_limited=limit is not None and limit >= 0) from error
            raise
        if segments:
            self.kexec_seconds += time.perf_counter() - started
        self._unloaded_at = None if segments else started
        return
        yield


def why_live_image_not_updatable(live: LiveMachine, image: CrashImage, machine: Machine) -> str | None:
    """Return why the loaded image of the live machine cannot be updated in place; None where it can.

    :param machine: what was read of it already
    :raise CannotTellError: it cannot be told
    """
    refused = live.why_refused()
    if refused is not None:
        return refused
    with Kcore(live.sysroot) as kcore:
        encryption = memory_encryption(live.sysroot, kcore, machine.vmcoreinfo)
    return why_not_updatable(image, machine._replace(memory_encryption=encryption))


class LiveObservation:
    """One observation of the running machine: /proc/kcore is opened once, /proc/iomem read once."""

    def __init__(self, sysroot: Sysroot) -> None:
        """Open /proc/kcore.

        :raise CannotTellError: it cannot be opened
        """
        self._sysroot = sysroot
        self._kcore = Kcore(sysroot)
        self._identity = b""
        self._iomem: Iomem | None = None

    def identity(self) -> bytes:
        """Return pointer and bytes of the loaded image's ``struct kimage``; nothing where none is loaded."""
        self._identity = read_identity(self._sysroot, self._kcore)
        return self._identity

    def image(self) -> CrashImage:
        """Read the image of the last :meth:`identity` out of the reserved region."""
        iomem = self._read_iomem()
        updated = kernel_updates_image(self._sysroot)
        return read_identified_image(self._sysroot, self._kcore, self._identity, iomem.crashkernel, iomem.ram, updated)

    def mark_torn(self, sentence: str | None) -> None:
        """Write it to /run/crash-hotplug, for the next update and for ``status``."""
        mark_torn(self._sysroot, self._identity, sentence)

    def mark_unloaded(self, sentence: str | None) -> None:
        """Write it to /run/crash-hotplug, for the next start of the service."""
        mark_torn(self._sysroot, b"", sentence)

    def machine(self) -> Machine:
        """Read what a header has to describe."""
        machine = read_described_machine(self._sysroot, self._kcore, self._read_iomem())
        encryption = memory_encryption(self._sysroot, self._kcore, machine.vmcoreinfo)
        return machine._replace(memory_encryption=encryption)

    def read_phys(self, phys: int, length: int) -> bytes:
        """Read physical memory through /proc/kcore."""
        return self._kcore.read_phys(phys, length)

    def confirm(self) -> None:
        """Compare the headers of /proc/kcore with those that were read first."""
        if self._kcore.has_moved():
            raise ImageChangedError("memory came or went while /proc/kcore was read")

    def close(self) -> None:
        """Close /proc/kcore."""
        self._kcore.close()

    def _read_iomem(self) -> Iomem:
        if self._iomem is None:
            self._iomem = read_iomem(self._sysroot)
        return self._iomem


class Patience:
    """Pauses at each step that waits, a little longer each time, and gives up after a while."""

    def __init__(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Take how long to wait in all."""
        self._deadline = time.monotonic() + seconds
        self._pause = _SHORTEST_PAUSE

    def __call__(self) -> bool:
        """Pause; False where the time is over."""
        if time.monotonic() >= self._deadline:
            return False
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return True


def run_patiently(steps: Steps[_Result], seconds: float = PATIENCE_SECONDS) -> _Result:
    """Take all steps of a live machine; a lock that stays taken is waited for so long, and no longer."""
    return run(steps, Patience(seconds))
