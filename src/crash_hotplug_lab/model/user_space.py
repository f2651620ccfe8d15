# SPDX-License-Identifier: MIT
"""What runs in user space on a model machine: kexec-tools behind udev, and this project's service.

Uevents drive both, and both hold the lock file that the distributions' wrappers hold.  The service runs the product's
own update (core/update.py); this module gives it the primitives.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

from crash_hotplug.core.crash_machine import KexecBusyError
from crash_hotplug.core.decision import Outcome, Report, Wants
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.loaded_image import read_loaded_image
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.reload import reload, update_or_reload
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.events import Event, EventKind, Handled
from crash_hotplug_lab.model.kexec_syscalls import crash_flags, kexec_file_load, kexec_load, load_plan
from crash_hotplug_lab.model.kimage import KexecSegment, ModelKimage
from crash_hotplug_lab.model.loader import CaptureKernel, LoadPlan
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.memory import AbsentMemoryError
from crash_hotplug_lab.model.policies import InPlace, Policy, Reload
from crash_hotplug_lab.model.profile import CrashHotplug
from crash_hotplug_lab.model.udev import UdevRules


class LoadCall(Enum):
    """Which system call loads the image."""

    KEXEC_LOAD = "kexec_load"
    """``kexec -p -c``."""
    KEXEC_FILE_LOAD = "kexec_file_load"
    """``kexec -p -s``; kdumpctl does so where it is told to (KEXEC_ARGS="-s")."""


@dataclass(frozen=True)
class Kexec:
    """How this machine's administrator loads the crash image."""

    files: CaptureKernel
    loader: LoadCall = LoadCall.KEXEC_LOAD
    hotplug: bool = False
    """``kexec --hotplug`` of kexec-tools 2.0.29, with the size the kernel asks for."""
    hotplug_size: int | None = None
    """``--hotplug-size=`` of the v6 patches, in bytes."""

    def load(self, machine: ModelMachine) -> Steps[None]:
        """Load the image.

        :raise ModelError: the kernel refuses
        :raise CannotTellError: it does not fit
        """
        if self.loader is LoadCall.KEXEC_FILE_LOAD:
            yield from kexec_file_load(machine, self.files)
            return
        plan = self._plan(machine)
        yield Step("kexec: machine read")
        hotplug = self.hotplug or self.hotplug_size is not None
        yield from load_plan(machine, plan, crash_flags(machine.profile, hotplug))

    def _plan(self, machine: ModelMachine) -> LoadPlan:
        plan_of_kexec_tools = machine.profile.arch.plan_of_kexec_tools
        return plan_of_kexec_tools(machine.profile, machine.sysfs_view(), self.files, self._room(machine))

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
        if self.loader is LoadCall.KEXEC_FILE_LOAD:
            yield from kexec_file_load(machine, None)
        else:
            yield from kexec_load(machine, 0, (), crash_flags(machine.profile, False))

    def reload(self, machine: ModelMachine, rules: UdevRules) -> Steps[str]:
        """Unload and load, as ``kdumpctl reload`` does.

        :return: what did it
        :raise ModelError: the kernel refuses, or udev's sandbox does
        """
        if rules.sandboxed:
            yield Step("udev: the sandbox refuses kexec_load")
            raise ModelError(errno.EPERM, "failed to unload kdump kernel: the sandbox of systemd-udevd refuses it")
        yield from self.unload(machine)
        yield from self.load(machine)
        return "unloaded and loaded again"


@dataclass(frozen=True)
class UserMachine:
    """A :class:`~crash_hotplug.core.update.CrashMachine` from user space: its lock is the lock file."""

    machine: ModelMachine

    def why_refused(self) -> str | None:
        """Nothing forbids kexec_load here."""
        return None

    def try_lock(self) -> bool:
        """``flock -n /run/lock/kdump``."""
        if self.machine.flock_taken:
            return False
        self.machine.flock_taken = True
        return True

    def why_locked(self) -> str:
        """Return the one reason that the model has."""
        return "the lock is taken: another process is loading a crash image"

    def unlock(self) -> None:
        """Close the lock file."""
        self.machine.flock_taken = False

    def image_loaded(self) -> bool:
        """Read /sys/kernel/kexec_crash_loaded."""
        return self.machine.crash_image is not None

    def observe(self) -> ModelObservation:
        """Open /proc/kcore."""
        return ModelObservation(self.machine)

    def kexec_load(self, entry_phys: int, segments: Sequence[NewSegment], updated_by_kernel: bool) -> Steps[None]:
        """Make the system call.

        :raise KexecBusyError: the kexec lock is taken
        :raise ModelError: the kernel refuses
        """
        machine = self.machine
        machine.whole_headers.update(s.data for s in segments if s.data.startswith(b"\x7fELF"))
        given = [KexecSegment(s.data, s.phys, s.memsz) for s in segments]
        try:
            yield from kexec_load(machine, entry_phys, given, crash_flags(machine.profile, updated_by_kernel))
        except ModelError as error:
            if error.number == errno.EBUSY:
                raise KexecBusyError(str(error)) from error
            raise


@dataclass
class ModelObservation:
    """One observation of a model machine."""

    model: ModelMachine
    loaded: ModelKimage | None = None
    """The image that was identified last."""

    def mark_torn(self, sentence: str | None) -> None:
        """Do nothing: no later command of the model asks."""

    def mark_unloaded(self, sentence: str | None) -> None:
        """Do nothing: no kernel of the model unmaps an image."""

    def identity(self) -> bytes:
        """Return the number of the loaded image, which no other image of this machine has."""
        self.loaded = self.model.crash_image
        return b"" if self.loaded is None else self.loaded.number.to_bytes(8, "little")

    def image(self) -> CrashImage:
        """Read the image through /proc/kcore."""
        if self.loaded is None:
            raise CannotTellError("the crash image was unloaded while it was being looked at")
        machine = self.machine()
        low = machine.ram.intersect(RangeList([machine.architecture.backup_region_source]))
        updated = self.model.profile.crash_hotplug is CrashHotplug.MERGED and self.loaded.hotplug_support
        crashkernel, kimage = machine.crashkernel, self.loaded.kimage
        return read_loaded_image(
            machine.architecture, kimage, crashkernel, low[0] if low else None, self.read_phys, updated
        )

    def machine(self) -> Machine:
        """Read /proc and /sys, and through kcore where CPUs that are not there yet will save their registers."""
        return self.model.kernel_view()

    def read_phys(self, phys: int, length: int) -> bytes:
        """Read physical memory.

        :raise CannotTellError: there is none
        """
        try:
            return self.model.memory.read(phys, length)
        except AbsentMemoryError as error:
            raise CannotTellError(str(error)) from error

    def confirm(self) -> None:
        """Nothing moves in this /proc/kcore."""

    def close(self) -> None:
        """Close /proc/kcore."""


IDLE = Step("service: idle", waits=True)
"""What the service does while nothing happens; it remembers nothing of what it did before."""
LOOK = Event(EventKind.LOOK)


def service(machine: ModelMachine, policy: Policy, kexec: Kexec, rules: UdevRules) -> Steps[None]:
    """Run forever: react to uevents, and where the policy looks at the machine, look again when all is quiet.

    A uevent may come before what it tells of is done: memory is still in /proc/iomem when its removal is told.
    Only another look, at the next heartbeat, sees that.
    """
    while True:
        if machine.uevents:
            yield from _react(machine, policy, kexec, rules)
        else:
            yield IDLE
            if isinstance(policy, InPlace) and not machine.uevents:
                yield from keep_accurate(machine, kexec)


def _react(machine: ModelMachine, policy: Policy, kexec: Kexec, rules: UdevRules) -> Steps[None]:
    """Take the events that are there, and do what the policy does."""
    if isinstance(policy, InPlace):
        event = machine.uevents[-1]
        machine.uevents = ()  # the service takes all of them; that there were any is all that counts
        yield Step("service: events taken")
        yield from keep_accurate(machine, kexec, event)
        return
    if isinstance(policy, Reload) and policy.throttled:
        yield Step("throttle: waits for more events")
        events = machine.uevents
    else:
        events = machine.uevents[:1]
    machine.uevents = machine.uevents[len(events) :]
    yield Step("udev: events taken")
    reasons = [event for event in events if rules.reacts_to(machine, event)]
    if reasons:
        yield from _reload_behind_udev(machine, kexec, rules, reasons[-1])


def keep_accurate(machine: ModelMachine, kexec: Kexec, event: Event = LOOK) -> Steps[Report]:
    """Update in place as the service does, and reload where that cannot be."""
    user = UserMachine(machine)
    report = yield from update_or_reload(user, Wants(), partial(_reload_by_hand, user, kexec))
    yield from _tell(machine, Handled(event, *report))
    return report


def _reload_by_hand(user: UserMachine, kexec: Kexec, reason: str) -> Steps[Report]:
    """Reload outside of udev's sandbox, with the tool's own lock."""
    yield Step("service: reloads")
    return (yield from reload(user, partial(_under_lock, user, kexec), reason))


def _under_lock(user: UserMachine, kexec: Kexec) -> Steps[str]:
    yield from user.machine.take_lock("flock_taken")
    try:
        yield from kexec.unload(user.machine)
        yield from kexec.load(user.machine)
    finally:
        user.unlock()
    return "unloaded and loaded again"


def _reload_behind_udev(machine: ModelMachine, kexec: Kexec, rules: UdevRules, event: Event) -> Steps[None]:
    yield from machine.take_lock("flock_taken")
    try:
        sentence = yield from kexec.reload(machine, rules)
        handled = Handled(event, Outcome.RELOADED, sentence)
    except CrashHotplugError as error:
        outcome = Outcome.CANNOT_TELL if isinstance(error, CannotTellError) else Outcome.FAILED
        handled = Handled(event, outcome, str(error))
    finally:
        machine.flock_taken = False
    yield from _tell(machine, handled)


def _tell(machine: ModelMachine, handled: Handled) -> Steps[None]:
    machine.reports.append(handled)
    yield Step(f"service: {handled.outcome.value}")


def settle(machine: ModelMachine, running: Steps[None]) -> None:
    """Let the service work until it has nothing to do, and look once more at the quiet machine."""
    idle = 0
    while idle < 2:
        idle = idle + 1 if next(running) == IDLE and not machine.uevents else idle
