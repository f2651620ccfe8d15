# SPDX-License-Identifier: MIT
"""The kernel's own handler, v6 and merged: the header that it writes, and the events that it loses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.image import Kimage, Segment
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.steps import run
from crash_hotplug_lab.model.arch.x86_64 import default_profile
from crash_hotplug_lab.model.events import Event, EventKind, Handled
from crash_hotplug_lab.model.hotplug import add_memory
from crash_hotplug_lab.model.in_kernel import handle_event
from crash_hotplug_lab.model.loader import small_capture_kernel
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.policies import POLICIES, V6, KernelPolicy, Merged, policy_named
from crash_hotplug_lab.model.profile import CRASH_HOTPLUG_ELFCOREHDR_SZ
from crash_hotplug_lab.model.user_space import Kexec, LoadCall, keep_accurate

MEMORY = Event(EventKind.MEMORY_ONLINE)
FILES = small_capture_kernel()
DIMM = Range(4 << 30, 5 << 30)


def grown(policy: KernelPolicy) -> ModelMachine:
    """Return a machine with a DIMM that was added after the image was loaded for hot-plug; no handler has run."""
    machine = boot(default_profile("5.18.0" if isinstance(policy, V6) else "6.12.0", has_v6_patches=True))
    size = CRASH_HOTPLUG_ELFCOREHDR_SZ if isinstance(policy, V6) else None
    run(Kexec(FILES, hotplug=isinstance(policy, Merged), hotplug_size=size).load(machine))
    run(add_memory(machine, "dimm0", DIMM))
    return machine


def handled(machine: ModelMachine, policy: KernelPolicy, event: Event = MEMORY) -> Handled:
    return run(handle_event(machine, policy, event))


@pytest.mark.parametrize("policy", [V6(), Merged()])
def test_handler_writes_new_memory_and_releases_the_lock(policy: KernelPolicy) -> None:
    machine = grown(policy)
    assert handled(machine, policy).outcome is Outcome.UPDATED
    assert not machine.kexec_locked
    image = machine.loaded_crash_image()
    assert image is not None
    low = RangeList([machine.kernel_view().architecture.excluded_low_memory])
    assert parse_elfcorehdr(image.elfcorehdr).ram == machine.kernel_view().dumpable_ram.exclude(low)


@pytest.mark.parametrize("policy", [V6(), Merged()])
def test_handler_does_nothing_without_an_image(policy: KernelPolicy) -> None:
    machine = grown(policy)
    machine.crash_image = None
    assert handled(machine, policy).outcome is Outcome.NOT_LOADED
    assert not machine.kexec_locked


@pytest.mark.parametrize("policy", [V6(), Merged()])
def test_handler_loses_the_event_when_the_lock_is_taken(policy: KernelPolicy) -> None:
    machine = grown(policy)
    before = machine.memory.key
    machine.kexec_locked = True
    assert handled(machine, policy).outcome is Outcome.LOCK_BUSY
    assert machine.memory.key == before


def test_header_that_does_not_fit_leaves_the_old_one_whole() -> None:
    machine = grown(V6())
    run(add_memory(machine, "dimm1", Range(6 << 30, 7 << 30)))  # the kernel drops the backup region, and adds one range
    loaded, image = machine.crash_image, machine.loaded_crash_image()
    assert loaded is not None
    assert image is not None
    assert image.elfcorehdr_phys is not None
    size = parse_elfcorehdr(image.elfcorehdr).size
    segments = [Segment(s.phys, size, size) if s.phys == image.elfcorehdr_phys else s for s in loaded.kimage.segments]
    machine.crash_image = replace(loaded, kimage=Kimage(loaded.kimage.entry_phys, tuple(segments)))
    report = handled(machine, V6())
    assert (report.outcome, str(size) in report.sentence) == (Outcome.NO_ROOM, True)
    assert machine.memory.read(image.elfcorehdr_phys, size) == image.elfcorehdr[:size]
    assert not machine.kexec_locked


def test_v6_writes_the_same_header_again() -> None:
    machine = grown(V6())
    assert [handled(machine, V6()).outcome for _ in range(2)] == [Outcome.UPDATED] * 2


def test_merged_refuses_an_image_that_was_loaded_without_hotplug() -> None:
    machine = boot(default_profile("6.12.0"))
    run(Kexec(FILES).load(machine))
    assert handled(machine, Merged()).outcome is Outcome.REFUSED


def test_v6_leaves_out_the_leaving_cpu_that_is_still_present() -> None:
    machine = grown(V6())
    handled(machine, V6(), Event(EventKind.CPU_OFFLINE, cpu=1))
    image = machine.loaded_crash_image()
    assert image is not None
    assert len(parse_elfcorehdr(image.elfcorehdr).cpu_notes) == 1


def test_merged_and_in_place_describe_every_possible_cpu() -> None:
    merged, in_place = grown(Merged()), boot(default_profile("5.10.0"))
    handled(merged, Merged(), Event(EventKind.CPU_ONLINE, cpu=2))
    run(Kexec(FILES, LoadCall.KEXEC_LOAD).load(in_place))
    assert run(keep_accurate(in_place, Kexec(FILES))).outcome is Outcome.UPDATED
    for machine in (merged, in_place):
        image = machine.loaded_crash_image()
        assert image is not None
        assert len(parse_elfcorehdr(image.elfcorehdr).cpu_notes) == 8


def test_policies_are_found_by_name_only() -> None:
    for name, policy in POLICIES.items():
        assert (policy.name, policy_named(name)) == (name, policy)
    with pytest.raises(InputError, match="there is no policy 'fast'"):
        policy_named("fast")
