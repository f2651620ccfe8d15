# SPDX-License-Identifier: MIT
"""The kernel's own handling of hot-plug, v6 and merged: ``crash_handle_hotplug_event()`` behind its notifiers."""

from __future__ import annotations

from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.sizes import count
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.events import Event, Handled
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.notifier import NotifierChain
from crash_hotplug_lab.model.policies import KernelPolicy, Merged
from crash_hotplug_lab.model.profile import CrashHotplug

MEMORY_PRIORITY = 0
"""Both versions subscribe to the memory notifiers with priority 0."""


def install_in_kernel_handler(machine: ModelMachine, policy: KernelPolicy, takes_image_out: bool = True) -> None:
    """Subscribe to the notifiers as the kernel with this policy does.

    v6 is called at CPUHP_AP_ONLINE_DYN, where a CPU that stops still runs; merged at CPUHP_BP_PREPARE_DYN.

    :param takes_image_out: whether ``kexec_crash_image`` is NULL while the header is written; False only to show what
        that prevents
    """
    cpu_chain: NotifierChain[Event] = machine.cpuhp_prepare if isinstance(policy, Merged) else machine.cpuhp_online

    def called(event: Event) -> Steps[None]:
        yield from _notified(machine, policy, event, takes_image_out)

    cpu_chain.register("crash/cpuhp", called)
    machine.memory_chain.register("crash_memory_notifier", called, MEMORY_PRIORITY)


def _notified(machine: ModelMachine, policy: KernelPolicy, event: Event, takes_image_out: bool) -> Steps[None]:
    waits_for_its_turn = machine.profile.crash_hotplug is CrashHotplug.MERGED
    if waits_for_its_turn:
        yield from machine.take_lock("crash_hotplug_locked")
    try:
        handled = yield from handle_event(machine, policy, event, takes_image_out)
    finally:
        if waits_for_its_turn:
            machine.crash_hotplug_locked = False
    machine.reports.append(handled)
    yield Step(f"kernel handler: {handled.outcome.value}")


def handle_event(
    machine: ModelMachine, policy: KernelPolicy, event: Event, takes_image_out: bool = True
) -> Steps[Handled]:
    """Rewrite the header after *event*: ``kexec_trylock()``, and the event is lost where that fails."""
    if machine.kexec_locked:
        yield Step("handler: lock is busy, event lost")
        return Handled(event, Outcome.LOCK_BUSY, "the kexec lock is taken: another process loads an image")
    machine.kexec_locked = True
    try:
        yield Step("handler: lock taken")
        image = machine.loaded_crash_image()
        yield Step("handler: image looked up")
        outcome, sentence, header = _decide(machine, policy, event, image)
        if image is not None and image.elfcorehdr_phys is not None and header:
            yield from replace_header(machine, image.elfcorehdr_phys, header, takes_image_out)
        return Handled(event, outcome, sentence)
    except CrashHotplugError as error:
        outcome = Outcome.CANNOT_TELL if isinstance(error, CannotTellError) else Outcome.FAILED
        return Handled(event, outcome, str(error))
    finally:
        machine.kexec_locked = False


def _decide(
    machine: ModelMachine, policy: KernelPolicy, event: Event, image: CrashImage | None
) -> tuple[Outcome, str, bytes]:
    """Return what comes of an event, why, and the header to be written, if one is."""
    loaded = machine.crash_image
    if image is None or loaded is None:
        return Outcome.NOT_LOADED, "no crash image is loaded", b""
    if image.elfcorehdr_phys is None:
        return Outcome.CANNOT_TELL, "unable to locate the elfcorehdr segment", b""
    # image->hotplug_support: the loader said that the digest leaves the elfcorehdr out.
    if not loaded.hotplug_support and machine.profile.version >= (6, 6):
        return Outcome.REFUSED, "the image was loaded without --hotplug: its digest covers the elfcorehdr", b""
    header = policy.header(machine.kernel_view(), image, event)
    if header is None:
        return Outcome.UNCHANGED, "the header describes every possible CPU already", b""
    segment = loaded.kimage.segment_at(image.elfcorehdr_phys)
    room = 0 if segment is None else segment.range.end - image.elfcorehdr_phys
    if header.size > room:
        sentence = f"the new elfcorehdr has {header.size} bytes, its segment {room}: the old one stays"
        return Outcome.NO_ROOM, sentence, b""
    entries = count(len(header.program_headers), "entry", "entries")
    return Outcome.UPDATED, f"{entries} written", header.to_bytes()


def replace_header(machine: ModelMachine, phys: int, header: bytes, takes_image_out: bool = True) -> Steps[None]:
    """``arch_crash_handle_hotplug_event()``: take the image out, copy, put it back.

    :param phys: physical address of the header that is there
    """
    machine.whole_headers.add(header)
    installed = machine.crash_image
    if takes_image_out:
        machine.crash_image = None
        yield Step("kernel: kexec_crash_image taken out")
    middle = len(header) // 2
    machine.memory.write(phys, header[:middle])
    yield Step("kernel: half of the header written")
    machine.memory.write(phys + middle, header[middle:])
    yield Step("kernel: header written")
    machine.crash_image = installed
    yield Step("kernel: kexec_crash_image put back")
