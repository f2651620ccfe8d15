"""The kernel's own handling of hot-plug, v6 and merged: notifiers that call the generic handler.

The handler and the policies are core/handler.py and core/handler_policies.py; this is the interface's implementation
from inside the kernel, and where it subscribes.
"""

from __future__ import annotations

from dataclasses import dataclass

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.handler import Event, Policy, Step, Steps, handle_event
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.machine import Machine
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.notifier import NotifierChain
from crash_hotplug_lab.model.policies import Merged
from crash_hotplug_lab.model.profile import CrashHotplug

MEMORY_PRIORITY = 0
"""Both versions subscribe to the memory notifiers with priority 0."""


@dataclass
class KernelMachine:
    """A :class:`~crash_hotplug.core.handler.CrashImageMachine` inside the kernel: its lock is the kexec lock."""

    machine: ModelMachine
    takes_image_out: bool = True
    """Whether ``kexec_crash_image`` is NULL while the header is written; False only to see what that prevents."""

    def try_lock(self) -> bool:
        """``kexec_trylock()``."""
        if self.machine.kexec_locked:
            return False
        self.machine.kexec_locked = True
        return True

    def unlock(self) -> None:
        """``kexec_unlock()``."""
        self.machine.kexec_locked = False

    def loaded_image(self) -> CrashImage | None:
        """Return the image, whose elfcorehdr segment is found by its ELF magic.

        :raise CannotTellError: no segment is an elfcorehdr
        """
        image = self.machine.loaded_crash_image()
        if image is not None and image.elfcorehdr_phys is None:
            raise CannotTellError("unable to locate the elfcorehdr segment")
        return image

    def why_not_updatable(self, image: CrashImage) -> str | None:
        """``image->hotplug_support``: the loader said that the digest leaves the elfcorehdr out."""
        loaded = self.machine.crash_image
        if loaded is not None and not loaded.hotplug_support and self.machine.profile.version >= (6, 6):
            return "the image was loaded without --hotplug: its digest covers the elfcorehdr"
        return None

    def read_machine(self) -> Machine:
        """Return the kernel's own view."""
        return self.machine.kernel_view()

    def replace_header(self, image: CrashImage, header: bytes) -> Steps[None]:
        """``arch_crash_handle_hotplug_event()``: take the image out, copy, put it back."""
        assert image.elfcorehdr_phys is not None
        machine, at = self.machine, image.elfcorehdr_phys
        machine.whole_headers.add(header)
        installed = machine.crash_image
        if self.takes_image_out:
            machine.crash_image = None
            yield Step("kernel: kexec_crash_image taken out", installed)
        middle = len(header) // 2
        machine.memory.write(at, header[:middle])
        yield Step("kernel: half of the header written")
        machine.memory.write(at + middle, header[middle:])
        yield Step("kernel: header written")
        machine.crash_image = installed
        yield Step("kernel: kexec_crash_image put back")

    def reload(self) -> Steps[None]:
        """The kernel never loads an image by itself.

        :raise InputError: always
        """
        raise InputError("the kernel does not reload a crash image")
        yield  # a generator like the other implementations'


def install_in_kernel_handler(machine: ModelMachine, policy: Policy, takes_image_out: bool = True) -> None:
    """Subscribe to the notifiers as the kernel with this policy does.

    v6 is called at CPUHP_AP_ONLINE_DYN, where a CPU that stops still runs; merged at CPUHP_BP_PREPARE_DYN.
    """
    cpu_chain: NotifierChain[Event] = machine.cpuhp_prepare if isinstance(policy, Merged) else machine.cpuhp_online

    def called(event: Event) -> Steps[None]:
        yield from _notified(machine, policy, event, takes_image_out)

    cpu_chain.register("crash/cpuhp", called)
    machine.memory_chain.register("crash_memory_notifier", called, MEMORY_PRIORITY)


def _notified(machine: ModelMachine, policy: Policy, event: Event, takes_image_out: bool) -> Steps[None]:
    waits_for_its_turn = machine.profile.crash_hotplug is CrashHotplug.MERGED
    if waits_for_its_turn:
        yield from machine.take_lock("crash_hotplug_locked")
    try:
        report = yield from handle_event(KernelMachine(machine, takes_image_out), policy, event)
    finally:
        if waits_for_its_turn:
            machine.crash_hotplug_locked = False
    machine.reports.append(report)
    yield Step(f"kernel handler: {report.outcome.value}")
