"""The generic handler, over a machine that is nothing but its answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from crash_hotplug.core.elfcorehdr import Dialect, parse_elfcorehdr
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.steps import Step, Steps, run
from crash_hotplug.core.update import ImageChangedError, Outcome
from crash_hotplug_lab.model.events import Event, EventKind
from crash_hotplug_lab.model.in_kernel import handle_event
from crash_hotplug_lab.model.policies import Policy
from crash_hotplug_lab.model.policies import InPlace
from crash_hotplug.core.image import CrashImage, Kimage, Segment
from crash_hotplug.core.machine import Machine
from crash_hotplug_lab.model.policies import POLICIES, V6, Merged, Reload, policy_named
from tests import machines

AT = 512 << 20
CPU_2 = Event(EventKind.CPU_ONLINE, cpu=2)
MEMORY = Event(EventKind.MEMORY_ONLINE)


def image_of(machine: Machine, room: int = 4096) -> CrashImage:
    header = expected_elfcorehdr(machine, Dialect.KERNEL).to_bytes()
    return CrashImage(header, AT, cmdline=f"elfcorehdr={AT:#x}", kimage=Kimage(AT, (Segment(AT, room, len(header)),)))


@dataclass
class Answers:
    """A ``CrashImageMachine``."""

    now: Machine
    image: CrashImage | None
    busy: int = 0
    changes: int = 0
    reason: str | None = None
    locked: bool = False
    written: list[bytes] = field(default_factory=list)
    reloads: int = 0

    def try_lock(self) -> bool:
        self.busy -= 1
        self.locked = self.busy < 0
        return self.locked

    def unlock(self) -> None:
        assert self.locked
        self.locked = False

    def loaded_image(self) -> CrashImage | None:
        return self.image

    def why_not_updatable(self, image: CrashImage) -> str | None:
        return self.reason

    def read_machine(self) -> Machine:
        return self.now

    def replace_header(self, image: CrashImage, header: bytes) -> Steps[None]:
        yield Step("writing")
        if self.changes:
            self.changes -= 1
            raise ImageChangedError("somebody loaded")
        self.written.append(header)

    def reload(self) -> Steps[None]:
        yield Step("reloading")
        self.reloads += 1


def grown() -> Machine:
    return machines.machine(online=(0, 1, 2), ram=[machines.LOW_RAM, (1 << 20, 1 << 30), (4 << 30, 5 << 30)])


def test_new_memory_is_written_under_the_lock_and_the_lock_is_given_back() -> None:
    answers = Answers(grown(), image_of(machines.machine()))
    report = run(handle_event(answers, V6(), MEMORY))
    assert report.outcome is Outcome.UPDATED
    assert not answers.locked
    assert parse_elfcorehdr(answers.written[0]).ram == grown().dumpable_ram.exclude(
        type(grown().ram)([grown().architecture.excluded_low_memory])
    )


def test_without_an_image_nothing_is_done() -> None:
    answers = Answers(grown(), None)
    assert run(handle_event(answers, V6(), MEMORY)).outcome is Outcome.NOT_LOADED
    assert not answers.locked


@pytest.mark.parametrize("policy", [V6(), Merged()])
def test_kernel_loses_the_event_when_the_lock_is_taken(policy: Policy) -> None:
    answers = Answers(grown(), image_of(machines.machine()), busy=1)
    assert run(handle_event(answers, policy, MEMORY)).outcome is Outcome.LOCK_BUSY
    assert answers.written == []


def test_in_place_waits_for_the_lock() -> None:
    answers = Answers(grown(), image_of(machines.machine()), busy=5)
    steps = list(handle_event(answers, InPlace(), MEMORY))
    assert sum(step.waits for step in steps) == 5
    assert len(answers.written) == 1


def test_header_that_does_not_fit_leaves_the_old_one_whole() -> None:
    image = image_of(machines.machine(), room=4096)
    small = replace(image, kimage=Kimage(AT, (Segment(AT, len(image.elfcorehdr), len(image.elfcorehdr)),)))
    answers = Answers(grown(), small)
    report = run(handle_event(answers, V6(), MEMORY))
    assert report.outcome is Outcome.NO_ROOM
    assert str(len(image.elfcorehdr)) in report.sentence
    assert answers.written == []
    assert not answers.locked


def test_image_that_changed_meanwhile_is_looked_at_again() -> None:
    answers = Answers(grown(), image_of(machines.machine()), changes=2)
    assert run(handle_event(answers, InPlace(), MEMORY)).outcome is Outcome.UPDATED


def test_image_that_never_stops_changing_is_a_failure_not_a_hang() -> None:
    answers = Answers(grown(), image_of(machines.machine()), changes=1000)
    report = run(handle_event(answers, InPlace(), MEMORY))
    assert (report.outcome, report.sentence) == (Outcome.FAILED, "somebody loaded")
    assert not answers.locked


def test_refusal_gives_its_reason() -> None:
    answers = Answers(grown(), image_of(machines.machine()), reason="lockdown")
    report = run(handle_event(answers, InPlace(), MEMORY))
    assert (report.outcome, report.sentence) == (Outcome.REFUSED, "lockdown")


def test_same_header_is_not_written_again_by_in_place_but_by_the_kernel() -> None:
    now = machines.machine()
    for policy, outcome in ((InPlace(), Outcome.UNCHANGED), (V6(), Outcome.UPDATED)):
        assert run(handle_event(Answers(now, image_of(now)), policy, MEMORY)).outcome is outcome


def test_reload_reloads_and_looks_at_no_header() -> None:
    answers = Answers(grown(), None)
    report = run(handle_event(answers, Reload(), Event(EventKind.CPU_ADD, cpu=2)))
    assert (report.outcome, answers.reloads) == (Outcome.RELOADED, 1)


def test_kernel_hears_nothing_of_a_removal_but_in_place_looks() -> None:
    removal = Event(EventKind.MEMORY_REMOVE)
    answers = Answers(grown(), image_of(machines.machine()))
    assert run(handle_event(answers, Merged(), removal)).outcome is Outcome.IGNORED
    assert run(handle_event(answers, InPlace(), removal)).outcome is Outcome.UPDATED


def test_v6_leaves_out_the_cpu_on_its_way_out_which_is_still_present() -> None:
    now = machines.machine(online=(0, 1, 2))
    answers = Answers(now, image_of(now))
    run(handle_event(answers, V6(), Event(EventKind.CPU_OFFLINE, cpu=2)))
    assert len(parse_elfcorehdr(answers.written[0]).cpu_notes) == 2


def with_all_notes(machine: Machine) -> Machine:
    cpus = tuple(replace(cpu, crash_notes=machines.crash_notes(cpu.number)) for cpu in machine.cpus)
    return replace(machine, cpus=cpus)


@pytest.mark.parametrize("policy", [Merged(), InPlace()])
def test_merged_and_in_place_describe_every_possible_cpu(policy: Policy) -> None:
    before = machines.machine()
    answers = Answers(with_all_notes(grown()), image_of(before))
    run(handle_event(answers, policy, CPU_2))
    assert len(parse_elfcorehdr(answers.written[0]).cpu_notes) == 8


def test_in_place_describes_present_cpus_where_all_do_not_fit() -> None:
    before = machines.machine(possible=128)
    now = machines.machine(online=(0, 1, 2), possible=128)
    now = replace(now, cpus=tuple(replace(c, crash_notes=machines.crash_notes(c.number)) for c in now.cpus))
    answers = Answers(now, image_of(before))
    assert run(handle_event(answers, InPlace(), CPU_2)).outcome is Outcome.UPDATED
    assert len(parse_elfcorehdr(answers.written[0]).cpu_notes) == 3


def test_policies_are_found_by_name_only() -> None:
    assert set(POLICIES) == {"reload", "reload-throttled", "v6", "merged", "in-place"}
    with pytest.raises(InputError, match="there is no policy 'fast'"):
        policy_named("fast")
