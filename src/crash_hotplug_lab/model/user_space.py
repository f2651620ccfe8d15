"""What runs in user space on a model machine: kexec-tools behind udev, and this project's service.

Both are driven by uevents and hold the lock file that the distributions' wrappers hold.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from enum import Enum

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.handler import (
    Event,
    EventKind,
    ImageChangedError,
    Method,
    Outcome,
    Policy,
    Report,
    Step,
    Steps,
    handle_event,
)
from crash_hotplug.core.image import CrashImage, Kimage
from crash_hotplug.core.image_marks import check_marks, marks_of
from crash_hotplug.core.in_place import control_pages_bound, segments_to_list
from crash_hotplug.core.machine import Machine
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.kexec_syscalls import (
    crash_flags,
    kexec_file_load,
    kexec_load,
    listed_from_memory,
    load_plan,
)
from crash_hotplug_lab.model.kimage import KexecSegment
from crash_hotplug_lab.model.loader import CaptureKernel, plan_of_kexec_tools
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.policies import Reload
from crash_hotplug_lab.model.profile import CrashHotplug
from crash_hotplug_lab.model.purgatory import purgatory_without_elfcorehdr, read_purgatory
from crash_hotplug_lab.model.udev import UdevRules


class Loader(Enum):
    """Which system call loads the image."""

    KEXEC_LOAD = "kexec_load"
    """``kexec -p -c``."""
    KEXEC_FILE_LOAD = "kexec_file_load"
    """``kexec -p -s``; kdumpctl does so where it is told to (KEXEC_ARGS="-s")."""


@dataclass(frozen=True)
class Kexec:
    """How this machine's administrator loads the crash image."""

    files: CaptureKernel
    loader: Loader = Loader.KEXEC_LOAD
    hotplug: bool = False
    """``kexec --hotplug`` of kexec-tools 2.0.29, with the size the kernel asks for."""
    hotplug_size: int | None = None
    """``--hotplug-size=`` of the v6 patches, in bytes."""

    def load(self, machine: ModelMachine) -> Steps[None]:
        """Load the image.

        :raise ModelError: the kernel refuses
        :raise CannotTellError: it does not fit
        """
        if self.loader is Loader.KEXEC_FILE_LOAD:
            yield from kexec_file_load(machine, self.files)
            return
        seen = machine.sysfs_view()
        yield Step("kexec: machine read", seen)
        plan = plan_of_kexec_tools(machine.profile, seen, self.files, self._room(machine))
        hotplug = self.hotplug or self.hotplug_size is not None
        yield from load_plan(machine, plan, crash_flags(machine.profile, hotplug))

    def _room(self, machine: ModelMachine) -> int | None:
        if self.hotplug_size is not None:
            return self.hotplug_size
        if self.hotplug and machine.profile.crash_hotplug is CrashHotplug.MERGED:
            return machine.profile.elfcorehdr_size
        return None

    def unload(self, machine: ModelMachine) -> Steps[None]:
        """Unload the image (``kexec -p -u``).

        :raise ModelError: the kernel refuses
        """
        if self.loader is Loader.KEXEC_FILE_LOAD:
            yield from kexec_file_load(machine, None)
        else:
            yield from kexec_load(machine, 0, (), crash_flags(machine.profile, False))


@dataclass
class UserMachine:
    """A :class:`~crash_hotplug.core.handler.CrashImageMachine` from user space: its lock is the lock file."""

    machine: ModelMachine
    kexec: Kexec
    rules: UdevRules
    taken_over: tuple[int, Kimage] | None = None
    """The image of the last update and its segments: the kernel knows only of those that the last call listed."""

    def try_lock(self) -> bool:
        """``flock -n /run/lock/kdump``."""
        if self.machine.flock_taken:
            return False
        self.machine.flock_taken = True
        return True

    def unlock(self) -> None:
        """Close the lock file."""
        self.machine.flock_taken = False

    def loaded_image(self) -> CrashImage | None:
        """Read the image through /proc/kcore."""
        loaded, memory = self.machine.crash_image, self.machine.memory
        if loaded is None:
            return None
        if self.taken_over is not None and self.taken_over[0] == loaded.number:
            image = replace(loaded, kimage=self.taken_over[1]).read(memory)
        else:
            image = loaded.read(memory)
        backup = read_purgatory(memory, loaded.kimage.entry_phys).backup
        return image if backup is None else replace(image, backup_region_phys=backup[1])

    def why_not_updatable(self, image: CrashImage) -> str | None:
        """Return why not: without an elfcorehdr or ``struct kimage`` nothing can be planned."""
        if image.elfcorehdr_phys is None or image.kimage is None:
            return "the image has no elfcorehdr that could be replaced"
        return None

    def read_machine(self) -> Machine:
        """Read /proc and /sys, and through kcore where CPUs that are not there yet will save their registers."""
        return self.machine.kernel_view()

    def replace_header(self, image: CrashImage, header: bytes) -> Steps[None]:
        """One kexec_load of the elfcorehdr's segment and of what has to be listed with it.

        At the first update purgatory comes with it: its digest must leave the elfcorehdr out from then on.

        :raise ImageChangedError: another image is loaded than the one that was looked at
        :raise MixedImageError: another one was loaded between that look and the kernel's own lock
        """
        machine, kimage = self.machine, image.kimage
        assert kimage is not None
        assert image.elfcorehdr_phys is not None
        segment = kimage.segment_at(image.elfcorehdr_phys)
        assert segment is not None
        changed = self._take_over(image)
        changed[segment.phys] = header
        control = control_pages_bound(machine.ram)
        listed = segments_to_list(kimage, changed, machine.profile.reserved, control)
        buffers = [
            KexecSegment(changed[s.phys], s.phys, s.memsz) if s.phys in changed else listed_from_memory(machine, [s])[0]
            for s in listed
        ]
        before = machine.crash_image
        yield Step("in place: planned", (tuple(buffers), before))
        machine.whole_headers.add(header)
        flags = crash_flags(machine.profile, machine.profile.crash_hotplug is CrashHotplug.MERGED)
        while True:
            if self.loaded_image() != image:
                raise ImageChangedError("another crash image was loaded meanwhile")
            marks = marks_of((s.range for s in kimage.segments if s not in listed), machine.memory.read)
            try:
                yield from kexec_load(machine, kimage.entry_phys, buffers, flags)
                break
            except ModelError as error:
                if error.number != errno.EBUSY:
                    raise
            yield Step("in place: waits for the kexec lock", waits=True)
        check_marks(marks, machine.memory.read)
        if machine.crash_image is not None:
            self.taken_over = (machine.crash_image.number, kimage)

    def _take_over(self, image: CrashImage) -> dict[int, bytes]:
        """Return purgatory with a digest without the elfcorehdr, by physical address; nothing where it is so."""
        kimage, loaded = image.kimage, self.machine.crash_image
        assert kimage is not None
        assert image.elfcorehdr_phys is not None
        if loaded is not None and self.taken_over is not None and self.taken_over[0] == loaded.number:
            return {}
        purgatory = kimage.segment_at(kimage.entry_phys)
        if purgatory is None:
            raise CannotTellError("the entry point lies in no segment")
        contents = tuple((s.phys, s.memsz, self.machine.memory.region(s.phys, s.memsz)) for s in kimage.segments)
        updated = purgatory_without_elfcorehdr(kimage, purgatory, image.elfcorehdr_phys, contents)
        return {} if updated is None else {purgatory.phys: updated}

    def reload(self) -> Steps[None]:
        """Unload and load, as ``kdumpctl reload`` does.

        :raise ModelError: the kernel refuses, or udev's sandbox does
        """
        if self.rules.sandboxed:
            yield Step("udev: the sandbox refuses kexec_load")
            raise ModelError(errno.EPERM, "failed to unload kdump kernel: the sandbox of systemd-udevd refuses it")
        yield from self.kexec.unload(self.machine)
        yield from self.kexec.load(self.machine)


IDLE = Step("service: idle", waits=True)
"""What the service does while nothing happens; it remembers nothing of what it did before."""


def service(machine: ModelMachine, policy: Policy, kexec: Kexec, rules: UdevRules) -> Steps[None]:
    """Run forever: react to uevents, and where the policy looks at the machine, look again when all is quiet.

    A uevent may come before what it tells of is done: memory is still in /proc/iomem when its removal is told.
    Only another look, at the next heartbeat, sees that.
    """
    user = UserMachine(machine, kexec, rules)
    while True:
        if not machine.uevents:
            yield IDLE
            if policy.method is Method.REPLACE and not machine.uevents:
                yield from _handle(user, policy, Event(EventKind.LOOK))
            continue
        events = machine.uevents
        if getattr(policy, "throttled", False):
            yield Step("throttle: waits for more events")
            events = machine.uevents
        else:
            events = events[:1]
        machine.uevents = machine.uevents[len(events) :]
        yield Step("udev: events taken", events)
        reasons = [event for event in events if policy.method is Method.REPLACE or rules.reacts_to(machine, event)]
        if reasons:
            yield from _handle(user, policy, reasons[-1])


def _handle(user: UserMachine, policy: Policy, event: Event) -> Steps[None]:
    report = yield from handle_or_reload(user, policy, event)
    user.machine.reports.append(report)
    yield Step(f"service: {report.outcome.value}")


def handle_or_reload(user: UserMachine, policy: Policy, event: Event) -> Steps[Report]:
    """Handle an event; an image that came to be a mix of two is loaded anew."""
    report = yield from handle_event(user, policy, event)
    if report.outcome is not Outcome.MIXED:
        return report
    yield Step("service: what is loaded is a mix")
    reloaded = yield from handle_event(user, Reload(), Event(EventKind.CPU_ADD))
    return replace(reloaded, sentence=f"{reloaded.sentence}: {report.sentence}")


def settle(machine: ModelMachine, running: Steps[None]) -> None:
    """Let the service work until it has nothing to do, and look once more at the quiet machine."""
    idle = 0
    while idle < 2:
        idle = idle + 1 if next(running) == IDLE and not machine.uevents else idle
