"""The live machine as the generic handler sees it: its crash image is updated in place by one small kexec_load.

How and why that works is told in docs/in-place.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.handler import ImageChangedError, MixedImageError, Step, Steps
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.image_marks import check_marks, marks_of
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.move_header import plan_move
from crash_hotplug.core.update_plan import UpdatePlan, check_result, plan_update, verify_digest, why_no_plan
from crash_hotplug.linux.crash_image import find_crash_image, read_identity
from crash_hotplug.linux.iomem import read_iomem
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_state import read_kexec_state, why_locked_down, why_no_load
from crash_hotplug.linux.loading.kdump_lock import LockBusyError, kdump_locks
from crash_hotplug.linux.loading.kexec_load import KEXEC_UPDATE_ELFCOREHDR, KexecBusyError, load_crash_image
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.memory_encryption import memory_encryption
from crash_hotplug.linux.sysroot import Sysroot

LOCK_SECONDS = 10.0
_BUSY_RETRIES = 20
_BUSY_PAUSE = 0.05


def machine_name() -> str:
    """Return what ``uname -m`` prints."""
    return os.uname().machine


class LiveMachine:
    """A :class:`~crash_hotplug.core.handler.CrashImageMachine` over the running kernel."""

    def __init__(
        self,
        sysroot: Sysroot | None = None,
        verify_full: bool = False,
        say: Callable[[str], None] = lambda _what: None,
    ) -> None:
        """Take the running machine; nothing is read yet.

        :param sysroot: where to read it
        :param verify_full: compute the digest over the whole image before and after each update
        :param say: told what takes more than a moment
        """
        self._sysroot = sysroot or Sysroot()
        self._verify_full = verify_full
        self._say = say
        self._locks = ExitStack()
        self._identity = b""
        self.kexec_seconds = 0.0
        """How long the last kexec_load took: at most as long there was no image."""

    def try_lock(self) -> bool:
        """Take the locks of the distributions' wrappers; False where one stays taken."""
        try:
            self._locks.enter_context(kdump_locks(LOCK_SECONDS))
        except LockBusyError:
            return False
        return True

    def unlock(self) -> None:
        """Give the locks back."""
        self._locks.close()

    def read_machine(self) -> Machine:
        """Return the machine as it is now; errors as :func:`~crash_hotplug.linux.machine_reader.read_machine`."""
        return read_machine(self._sysroot, only_for_header=True)

    def loaded_image(self) -> CrashImage | None:
        """Return the loaded image, or None.

        :raise CannotTellError: it cannot be found or read
        :raise CrashHotplugError: a full verification was asked for, and the image is damaged
        """
        if read_kexec_state(self._sysroot).image_loaded is False:
            return None
        self._identity = self._read_identity()
        if not self._identity:
            return None
        image = find_crash_image(self._sysroot, read_iomem(self._sysroot).crashkernel)
        if self._verify_full:
            self._verify_digest(image)
        return image

    def why_not_updatable(self, image: CrashImage) -> str | None:
        """Return why kexec_load would be refused or could not be done safely; None where nothing speaks against it.

        :raise CannotTellError: it cannot be told
        """
        refused = self.why_refused()
        if refused is not None:
            return refused
        machine = self.read_machine()
        encryption = memory_encryption(self._sysroot, machine.vmcoreinfo)
        if encryption is not None:
            return f"memory is encrypted ({encryption}); an update in place was never tried there"
        return why_no_plan(image, machine)

    def why_refused(self) -> str | None:
        """Return what forbids kexec_load(2) on this machine, whatever is loaded; None where nothing does."""
        state = read_kexec_state(self._sysroot)
        machine = machine_name()
        if machine != "x86_64":
            return f"this machine is {machine}: an update in place is known to be safe on x86_64 only"
        return why_locked_down(state) or why_no_load(state)

    def plan(self, image: CrashImage, header: bytes) -> UpdatePlan:
        """Plan to replace the header of *image*; errors as :func:`~crash_hotplug.core.update_plan.plan_update`."""
        with Kcore(self._sysroot) as kcore:
            return plan_update(image, self.read_machine(), header, kcore.read_phys)

    def replace_header(self, image: CrashImage, header: bytes) -> Steps[None]:
        """Put *header* into the image with one kexec_load of the segments that have to be listed.

        :raise ImageChangedError: *image* is loaded no more; nothing was done
        :raise MixedImageError: another image was loaded at that moment; it has to be loaded anew
        :raise CannotTellError: it cannot be done safely; nothing was done
        :raise CrashHotplugError: the kernel refused, or what is loaded afterwards is not what was meant
        """
        plan = self.plan(image, header)
        yield Step("in place: planned", plan)
        self._carry_out(plan, header)
        yield Step("in place: loaded")

    def plan_move(self, image: CrashImage, room: int, header: bytes) -> UpdatePlan:
        """Plan to move the header; errors as :func:`~crash_hotplug.core.move_header.plan_move`."""
        with Kcore(self._sysroot) as kcore:
            return plan_move(image, self.read_machine(), room, kcore.read_phys, header)

    def make_room(self, image: CrashImage, room: int, header: bytes | None = None) -> Steps[None]:
        """Put *header* (else the one of *image*) into a new place of *room* bytes; errors as :meth:`replace_header`."""
        header = image.elfcorehdr if header is None else header
        plan = self.plan_move(image, room, header)
        yield Step("move: planned", plan)
        self._carry_out(plan, header)
        yield Step("move: loaded")

    def reload(self) -> Steps[None]:
        """Not done here: the machine's own tool does it (linux/loading/reload.py)."""
        raise CrashHotplugError("a full reload is not done in place")
        yield Step("")

    def _carry_out(self, plan: UpdatePlan, header: bytes) -> None:
        if plan.takes_over:
            self._say("the image is hashed once, to take its elfcorehdr out of purgatory's digest")
        flags = self._flags()
        with Kcore(self._sysroot) as kcore:
            marks = marks_of(plan.kept, kcore.read_phys)
        for attempt in range(_BUSY_RETRIES):
            if self._read_identity() != self._identity:
                raise ImageChangedError("somebody else loaded or unloaded an image meanwhile")
            started = time.perf_counter()
            try:
                load_crash_image(plan.entry_phys, plan.segments, flags)
                break
            except KexecBusyError:
                if attempt == _BUSY_RETRIES - 1:
                    raise
                time.sleep(_BUSY_PAUSE)
            except CrashHotplugError as error:
                if not self._read_identity():
                    raise CrashHotplugError(f"{error}; no crash image is loaded now: load one") from error
                raise
        self.kexec_seconds = time.perf_counter() - started
        with Kcore(self._sysroot) as kcore:
            check_marks(marks, kcore.read_phys)
        self._check(plan, header)

    def _check(self, plan: UpdatePlan, header: bytes) -> None:
        """Read back what was loaded.

        :raise MixedImageError: it may leave no dump, and has to be loaded anew
        :raise CrashHotplugError: it is not what was meant
        """
        now = find_crash_image(self._sysroot, read_iomem(self._sysroot).crashkernel)
        if now.kimage is None:
            raise CrashHotplugError("what was loaded cannot be read back: reload the crash image")
        check_result(plan, now.kimage, now.elfcorehdr, header)
        # A digest that we wrote is computed once more: only that speaks for every byte that was not listed.
        if self._verify_full or plan.takes_over:
            try:
                self._verify_digest(now)
            except CannotTellError:
                raise
            except CrashHotplugError as error:
                raise MixedImageError(str(error)) from error

    def _verify_digest(self, image: CrashImage) -> None:
        self._say("the whole image is hashed")
        with Kcore(self._sysroot) as kcore:
            verify_digest(image, self.read_machine(), kcore.read_phys)

    def _read_identity(self) -> bytes:
        with Kcore(self._sysroot) as kcore:
            return read_identity(self._sysroot, kcore)

    def _flags(self) -> int:
        # Whoever loaded the image said whether the kernel (6.6 and newer) may update it; that goes on.
        return KEXEC_UPDATE_ELFCOREHDR if read_kexec_state(self._sysroot).kernel_updates_image else 0
