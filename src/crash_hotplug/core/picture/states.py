# SPDX-License-Identifier: MIT
"""The state of each memory range and CPU in a picture.

The ranges come from the findings of the comparison, so that a picture shows what the verdict says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.finding import Comparison, Finding, Kind
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.summary import summarize

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crash_hotplug.core.dump.vmcore import Vmcore

MOST_BANDS = 32
"""Bands that a picture has at most."""

_MOST_SENTENCES = 6


class State(str, Enum):
    """The state of a memory range or a CPU; the value is the word in the picture."""

    DESCRIBED = "described"
    SAVED = "saved"
    LEFT_OUT = "left out"
    MISSING = "missing"
    GONE = "gone"
    RESERVED_DESCRIBED = "described, reserved"
    CRASHKERNEL = "crashkernel"
    CMA = "CMA"
    OFFLINE = "offline"
    LOW_MEMORY = "low memory"
    PARTLY = "partly described"
    NO_REGISTERS = "saved nothing"
    NOT_PRESENT = "not present"
    NOT_KNOWN = "not known"


class Part(NamedTuple):
    """The ranges of a band that have one state."""

    state: State
    size: int
    """Bytes."""
    ranges: int
    """How many they are."""


class Band(NamedTuple):
    """The memory from *start* to *end*, physical and half-open: one range, or neighbours that are drawn as one."""

    start: int
    end: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of the ranges, without the gaps between them."""
        return sum(part.size for part in self.parts)

    @property
    def ranges(self) -> int:
        """How many ranges the band has."""
        return sum(part.ranges for part in self.parts)


class CpuRow(NamedTuple):
    """The CPUs with one state."""

    state: State
    numbers: tuple[int, ...]
    """In ascending order; empty where only their number is known."""
    total: int


class Picture(NamedTuple):
    """The content of a picture."""

    title: str
    """The verdict and its sentence."""
    subtitle: str
    memory: tuple[Part, ...] = ()
    """The total of each state."""
    bands: tuple[Band, ...] = ()
    """In ascending order of addresses."""
    gap: str = "no RAM"
    """The meaning of a gap between bands."""
    cpus: tuple[CpuRow, ...] = ()
    shares: tuple[Part, ...] = ()
    """Of the described memory of a dump, what was saved and what was not; where the pages are is not known."""
    dump_level: str = ""
    """The dump level that left pages out, in words."""
    others: tuple[str, ...] = ()
    """The findings that are neither a band nor a CPU, each a sentence."""
    remark: str = ""
    """Why there is no memory map."""


def status_picture(title: str, subtitle: str, machine: Machine, header: ElfCoreHeader, result: Comparison) -> Picture:
    """Return the picture of a loaded header.

    :param machine: with the RAM of its capture kernel (:func:`~crash_hotplug.core.expected.with_capture_ram`)
    """
    memory = memory_by_state(machine, State.DESCRIBED, header.ram, result)
    picture = Picture(title, subtitle, cpus=_status_cpus(machine, result), others=_others(result))
    return with_memory(picture, memory)


def audit_picture(title: str, subtitle: str, vmcore: Vmcore, machine: Machine | None, result: Comparison) -> Picture:
    """Return the picture of a dump.

    :param machine: the machine that crashed; None where the dump was not compared with one
    """
    left_out, saved = vmcore.left_out_size, vmcore.saved_size
    is_whole = not vmcore.is_beginning and not any(f.kind is Kind.TRUNCATED for f in result.findings)
    state = State.SAVED if is_whole and left_out == 0 else State.DESCRIBED
    picture = Picture(
        title, subtitle, gap="hole: not described", cpus=_audit_cpus(vmcore, machine, result), others=_others(result)
    )
    if vmcore.why_ram_unknown is not None:
        return picture._replace(remark=f"The memory is not known: {vmcore.why_ram_unknown}.")
    if left_out and saved is not None:
        shares = (Part(State.SAVED, saved, 0), Part(State.LEFT_OUT, left_out, 0))
        level = "" if vmcore.dump_level is None else f", saved with dump level {vmcore.dump_level}"
        picture = picture._replace(shares=shares, dump_level=level)
    return with_memory(picture, memory_by_state(machine, state, vmcore.ram, result))


def with_memory(picture: Picture, memory: Mapping[State, RangeList]) -> Picture:
    """Return *picture* with the physical ranges of each state, which do not overlap."""
    totals = tuple(Part(state, ranges.size, len(ranges)) for state, ranges in memory.items() if ranges)
    return picture._replace(memory=totals, bands=tuple(bands(memory)))


def memory_by_state(
    machine: Machine | None, state: State, described: RangeList, result: Comparison
) -> dict[State, RangeList]:
    """Return the physical ranges of each state; they do not overlap.

    :param state: the state of described RAM
    """
    lost = [f for f in result.findings if f.kind in (Kind.MEMORY_MISSING, Kind.BACKUP_REGION_DROPPED)]
    layers = [
        (State.GONE, _ranges(result.findings, Kind.MEMORY_GONE)),
        (State.RESERVED_DESCRIBED, _ranges(result.findings, Kind.CRASHKERNEL_DESCRIBED)),
        (State.MISSING, RangeList(r for finding in lost for r in finding.ranges)),
        (State.OFFLINE, _ranges(result.notes, Kind.MEMORY_OFFLINE_NOT_DESCRIBED)),
    ]
    if machine is not None:
        layers += [(State.CRASHKERNEL, machine.crashkernel), (State.CMA, machine.capture_ram)]
    layers.append((state, described))
    if machine is not None:
        layers.append((State.LOW_MEMORY, machine.ram.intersect(RangeList([machine.architecture.excluded_low_memory]))))
    taken, by_state = RangeList(), {}
    for layer, ranges in layers:
        by_state[layer] = ranges.exclude(taken)
        taken = taken.union(ranges)
    return by_state


def _ranges(findings: Iterable[Finding], kind: Kind) -> RangeList:
    return RangeList(r for finding in findings if finding.kind is kind for r in finding.ranges)


def _others(result: Comparison) -> tuple[str, ...]:
    sentences = summarize(f for f in result.findings if f.kind not in _DRAWN and f.cpu is None)
    left = len(sentences) - _MOST_SENTENCES
    return tuple(sentences) if left <= 0 else (*sentences[:_MOST_SENTENCES], f"and {left:,} more")


def bands(memory: Mapping[State, RangeList], most: int = MOST_BANDS) -> list[Band]:
    """Return the bands of a memory map, in ascending order and at most *most*.

    Each range has a band of its own where that is possible.  Otherwise neighbours of one state share a band, and then
    neighbours of any state.
    """
    pieces = sorted((r.start, r.end, state) for state, ranges in memory.items() for r in ranges)
    made = [Band(start, end, (Part(state, end - start, 1),)) for start, end, state in pieces]
    if len(made) > most:
        runs: list[list[Band]] = []
        for band in made:
            if runs and runs[-1][0].parts[0].state is band.parts[0].state:
                runs[-1].append(band)
            else:
                runs.append([band])
        made = [_joined(run) for run in runs]
    number = len(made)
    if number > most:
        made = [_joined(made[number * at // most : number * (at + 1) // most]) for at in range(most)]
    return made


def _joined(neighbours: list[Band]) -> Band:
    totals: dict[State, Part] = {}
    for band in neighbours:
        for state, size, ranges in band.parts:
            before = totals.get(state, Part(state, 0, 0))
            totals[state] = Part(state, before.size + size, before.ranges + ranges)
    return Band(neighbours[0].start, neighbours[-1].end, tuple(totals.values()))


def _status_cpus(machine: Machine, result: Comparison) -> tuple[CpuRow, ...]:
    found = {}
    for finding in (*result.findings, *result.notes):
        if finding.cpu is not None and finding.kind in _CPU_STATES:
            found[finding.cpu] = _CPU_STATES[finding.kind]
    rows: dict[State, list[int]] = {}
    for cpu in machine.cpus:
        state = State.DESCRIBED
        if not cpu.present:
            state = State.NOT_PRESENT
        elif cpu.crash_notes is None:
            state = State.NOT_KNOWN
        rows.setdefault(found.get(cpu.number, state), []).append(cpu.number)
    return tuple(CpuRow(state, tuple(rows[state]), len(rows[state])) for state in State if state in rows)


_DRAWN = (
    Kind.MEMORY_GONE,
    Kind.CRASHKERNEL_DESCRIBED,
    Kind.MEMORY_MISSING,
    Kind.BACKUP_REGION_DROPPED,
)
_CPU_STATES = {
    Kind.CPU_MISSING: State.MISSING,
    Kind.CPU_NOTES_TOO_SMALL: State.PARTLY,
    Kind.CPU_OFFLINE_NOT_DESCRIBED: State.OFFLINE,
}


def _audit_cpus(vmcore: Vmcore, machine: Machine | None, result: Comparison) -> tuple[CpuRow, ...]:
    if vmcore.why_no_notes is not None:
        return ()
    rows = [CpuRow(State.SAVED, (), vmcore.saved_cpus)] if vmcore.saved_cpus else []
    short = 0 if machine is None or vmcore.notes_cut else len(machine.online_cpus) - vmcore.saved_cpus
    for kind in (Kind.CPU_MISSING, Kind.CPU_NOTES_TOO_SMALL):
        numbers = tuple(sorted({f.cpu for f in result.findings if f.kind is kind and f.cpu is not None}))
        if numbers:
            rows.append(CpuRow(_CPU_STATES[kind], numbers, len(numbers)))
            short -= len(numbers)
    if short > 0:
        rows.append(CpuRow(State.NO_REGISTERS, (), short))
    return tuple(rows)
