"""The live machine as the generic handler sees it: its crash image is updated in place by one small kexec_load.

How and why that works is told in docs/in-place.md.
"""

from __future__ import annotations

from contextlib import ExitStack

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.handler import ImageChangedError, Step, Steps
from crash_hotplug.core.image import CrashImage, Kimage
from crash_hotplug.core.in_place import (
    control_pages_bound,
    find_digest_table,
    purgatory_phys,
    segments_to_list,
    without_elfcorehdr,
)
from crash_hotplug.core.machine import Machine
from crash_hotplug.linux import kallsyms
from crash_hotplug.linux.crash_image import find_crash_image
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kdump_lock import LockBusyError, kdump_locks
from crash_hotplug.linux.kexec_load import KEXEC_UPDATE_ELFCOREHDR, NewSegment, load_crash_image
from crash_hotplug.linux.kexec_state import read_kexec_state
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot

LOCK_SECONDS = 10.0


class LiveMachine:
    """A :class:`~crash_hotplug.core.handler.CrashImageMachine` over the running kernel."""

    def __init__(self) -> None:
        """Take the running machine; nothing is read yet."""
        self._sysroot = Sysroot()
        self._locks = ExitStack()
        self._pointer_virt = 0

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
        return read_machine(self._sysroot)

    def loaded_image(self) -> CrashImage | None:
        """Return the loaded image, or None.

        :raise CannotTellError: it cannot be found or read
        """
        if read_kexec_state(self._sysroot).image_loaded is False:
            return None
        self._pointer_virt = self._read_pointer()
        return find_crash_image(self._sysroot, self.read_machine().crashkernel)

    def why_not_updatable(self, image: CrashImage) -> str | None:
        """Return why kexec_load would be refused or could not be done safely; None where nothing speaks against it."""
        state = read_kexec_state(self._sysroot)
        if state.lockdown not in (None, "none"):
            return f"lockdown ({state.lockdown}) forbids kexec_load"
        if state.load_disabled:
            return "kernel.kexec_load_disabled forbids loading until the next boot"
        if state.load_limit == 0:
            return "kernel.kexec_load_limit_panic allows no more loads"
        if image.kimage is None or image.elfcorehdr_phys is None:
            return "struct kimage could not be read"
        return None

    def replace_header(self, image: CrashImage, header: bytes) -> Steps[None]:
        """Put *header* into the image with one kexec_load of the segments that have to be listed.

        :raise ImageChangedError: *image* is loaded no more; nothing was done
        :raise CannotTellError: it cannot be done safely; nothing was done
        :raise CrashHotplugError: the kernel refused, or what is loaded afterwards is not what was meant
        """
        if image.kimage is None or image.elfcorehdr_phys is None:
            raise CannotTellError("struct kimage could not be read")
        segments = self._plan(image.kimage, image.elfcorehdr_phys, header)
        yield Step("in place: planned", tuple(s.phys for s in segments))
        if self._read_pointer() != self._pointer_virt:
            raise ImageChangedError("somebody else loaded or unloaded an image meanwhile")
        load_crash_image(image.kimage.entry_phys, segments, self._flags())
        yield Step("in place: loaded")
        self._verify(image, header, {s.phys for s in segments})

    def reload(self) -> Steps[None]:
        """Not done here: the machine's own tool does it (linux/reload.py)."""
        raise CrashHotplugError("a full reload is not this machine's")
        yield Step("")

    def _read_pointer(self) -> int:
        with Kcore(self._sysroot) as kcore:
            symbol = kallsyms.read_symbols(self._sysroot, ("kexec_crash_image",)).get("kexec_crash_image")
            if symbol is None:
                raise kallsyms.explain_masked(self._sysroot)
            return int.from_bytes(kcore.read_virt(symbol, 8), "little")

    def _flags(self) -> int:
        # Kernels that can update the header by themselves go on doing so only where the loader says it may be.
        return 0 if read_kexec_state(self._sysroot).elfcorehdr_size is None else KEXEC_UPDATE_ELFCOREHDR

    def _plan(self, kimage: Kimage, elfcorehdr_phys: int, header: bytes) -> list[NewSegment]:
        machine = self.read_machine()
        purgatory = purgatory_phys(kimage)
        reserved = next(r for r in machine.crashkernel if r.start <= elfcorehdr_phys < r.end)
        bound = control_pages_bound(machine.ram)
        listed = segments_to_list(kimage, (purgatory, elfcorehdr_phys), reserved, bound)
        with Kcore(self._sysroot) as kcore:
            contents = {s.phys: kcore.read_phys(s.phys, s.memsz) for s in listed}
            table = find_digest_table(contents[purgatory], kimage, kcore.read_phys)
            changed = without_elfcorehdr(contents[purgatory], table, elfcorehdr_phys, kcore.read_phys)
        contents[purgatory] = changed or contents[purgatory]
        contents[elfcorehdr_phys] = header
        return [NewSegment(s.phys, contents[s.phys], s.memsz) for s in listed]

    def _verify(self, image: CrashImage, header: bytes, listed: set[int]) -> None:
        now = find_crash_image(self._sysroot, self.read_machine().crashkernel)
        if now.kimage is None or not now.elfcorehdr.startswith(header):
            raise CrashHotplugError("the header that was written is not the one that is there: reload the crash image")
        unlisted = [s.phys for s in (image.kimage.segments if image.kimage else ()) if s.phys not in listed]
        control = now.kimage.control_page_phys
        if control is None or any(phys < control for phys in unlisted):
            raise CrashHotplugError("control pages may have overwritten a segment: reload the crash image")
