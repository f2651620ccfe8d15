# SPDX-License-Identifier: MIT
"""The results of runs: records that go to ``result.json`` and come back from it, and KTAP."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from crash_hotplug_lab.in_guest.image_states import ACCURATE, NO_IMAGE, STALE
from crash_hotplug_lab.qemu.errors import LabError

SCHEMA = 1
FILE = "result.json"


class RunOutcome(str, Enum):
    """The outcome of a run, compared with the expectation of its scenario."""

    PASS = "pass"
    """As expected: an accurate dump, or a negative control that found the missing parts."""
    FAULT = "fault"
    """As expected, and wrong: a known fault of the kernel was reproduced."""
    FAIL = "fail"
    """Not as expected."""
    RECORDED = "recorded"
    """A panic at a random moment; there is no expectation, and the reason gives the result."""
    BROKEN = "broken"
    """The lab could not finish: the guest died or hung, or a step was refused."""
    SKIP = "skip"
    """The combination is known not to work, for the given reason."""


@dataclass
class Check:
    """One check of a run."""

    name: str
    ok: bool
    detail: str = ""


@dataclass
class TimelineEntry:
    """One entry of a run's time line."""

    at: float
    """Seconds since QEMU was started."""
    what: str
    detail: str = ""


@dataclass
class Moment:
    """The verdict of ``status`` at one moment, and the memory map behind it."""

    name: str
    at: float
    verdict: str
    reason: str
    ram: list[tuple[int, int]] = field(default_factory=list)
    """System RAM, physical, half-open."""
    described: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of the loaded elfcorehdr."""
    crashkernel: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class StormRecord:
    """The measurements of experiments/storm.py in the guest; times are seconds since the first event."""

    keeper: str
    """``watch``, ``reload`` or ``throttled``."""
    events: int
    """Kernel uevents of CPUs and memory blocks."""
    last_event: float
    ended: float
    """Time at which the keeper had nothing left to do."""
    images_loaded: int
    """Reloads, or updates in place."""
    looks: int
    """Times that the watch service looked at the machine; 0 for a keeper that only reloads."""
    cpu_seconds: float
    """CPU time of the keeper and of its children."""
    states: list[tuple[float, str]]
    """Start and name of each state of the loaded image (in_guest/image_states.py)."""
    samples: int
    samples_discarded: int
    """Samples during which the image was replaced."""
    sampler_cpu_seconds: float
    """CPU time of the program that took the samples."""
    status: str
    """The verdict of ``status`` at the end."""

    def intervals(self) -> list[tuple[float, float, str]]:
        """Return start, end and state of each interval."""
        ends = [*(since for since, _ in self.states[1:]), self.ended]
        return [(since, end, state) for (since, state), end in zip(self.states, ends)]

    def share(self, state: str) -> float:
        """Return the share of the time, from 0 to 1, in which the image was in a state."""
        return sum(end - since for since, end, found in self.intervals() if found == state) / self.ended

    @property
    def accurate_after(self) -> float | None:
        """Seconds from the last event until the image was accurate and stayed so; None where it never was."""
        since, state = self.states[-1]
        return max(0.0, since - self.last_event) if state == ACCURATE else None

    def __str__(self) -> str:
        """Return the figures for people."""
        after = "never" if self.accurate_after is None else f"{self.accurate_after:.1f} s after the last event"
        shares = ", ".join(f"{state} {self.share(state):.1%}" for state in (ACCURATE, STALE, NO_IMAGE))
        return (
            f"{self.keeper}: {self.events} events in {self.last_event:.1f} s; {self.images_loaded} images loaded, "
            f"{self.looks} looks, {self.cpu_seconds:.1f} s of CPU; accurate {after}; of {self.ended:.1f} s {shares}; "
            f"{self.samples} samples, {self.samples_discarded} discarded, {self.sampler_cpu_seconds:.1f} s of CPU; "
            f"status {self.status}"
        )


@dataclass
class Result:
    """One run of a scenario."""

    scenario: str
    title: str
    kernel: str
    """Name of the kernel: its key, with the architecture before it unless that is x86_64 (``arm64-6.1``)."""
    kernel_version: str
    kernel_release: str
    loader: str
    update: str
    outcome: str = RunOutcome.BROKEN.value
    reason: str = ""
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    events: list[TimelineEntry] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    dump: list[tuple[int, int]] = field(default_factory=list)
    """Physical ranges in the vmcore."""
    dimms: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Physical range of every DIMM that was ever plugged, as QEMU reported it."""
    audit: dict[str, list[dict[str, Any]]] | None = None
    """The audit of the vmcore, where there was one: ``findings`` and ``notes``, each with its kind and its ranges (or
    its CPU), as ``audit --json`` has them, without sentences."""
    number: int = 0
    """Number of the repetition, from 1, where runs are repeated."""
    files: str = ""
    """The run's directory, relative to the result file."""
    storm: StormRecord | None = None
    """The measurements of the scenario's storm, if it has one."""

    @property
    def name(self) -> str:
        """The run's name, also that of its directory."""
        return run_name(self.scenario, self.kernel, self.loader, self.update, self.number)

    def check(self, name: str, ok: bool, detail: str = "") -> bool:
        """Add a check and return whether it held."""
        self.checks.append(Check(name, ok, detail))
        return ok


def run_name(scenario: str, kernel: str, loader: str, update: str, number: int) -> str:
    """Return the name of a run: ``hot-add-6.1-c-reload``, with its number where runs are repeated."""
    return "-".join([scenario, kernel, loader, update, *([str(number)] if number else [])])


def as_json(results: list[Result], facts: dict[str, Any]) -> dict[str, Any]:
    """Return the results of some runs for JSON; ``facts`` describe the machine they ran on."""
    return {"schema": SCHEMA, "command": "lab run", **facts, "runs": [_with_hex(asdict(r)) for r in results]}


def write(results: list[Result], directory: Path, facts: dict[str, Any]) -> Path:
    """Write :func:`as_json` to the result file of a directory, and return its path."""
    path = directory / FILE
    path.write_text(json.dumps(as_json(results, facts), indent=1) + "\n")
    return path


def read(directory: Path) -> tuple[list[Result], dict[str, Any]]:
    """Read results back, with the facts of the machine.

    :raise LabError: there is no result file, or it is not one
    """
    path = directory / FILE
    try:
        content = json.loads(path.read_text())
        runs = [_from_json(run) for run in content.pop("runs")]
    except OSError:
        raise LabError(f"there is no {path}; `crash-hotplug-lab run` writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise LabError(f"{path} is not a result file of this version") from None
    return runs, content


def _with_hex(run: dict[str, Any]) -> dict[str, Any]:
    run["dimms"] = {name: [hex(start), hex(end)] for name, (start, end) in run["dimms"].items()}
    for holder in (run, *run["moments"]):
        for key in ("ram", "described", "crashkernel", "dump"):
            if key in holder:
                holder[key] = [[hex(start), hex(end)] for start, end in holder[key]]
    return run


def _from_json(run: dict[str, Any]) -> Result:
    run["dimms"] = {name: (int(start, 16), int(end, 16)) for name, (start, end) in run.get("dimms", {}).items()}
    for holder in (run, *run["moments"]):
        for key in ("ram", "described", "crashkernel", "dump"):
            if key in holder:
                holder[key] = [(int(start, 16), int(end, 16)) for start, end in holder[key]]
    run["checks"] = [Check(**c) for c in run["checks"]]
    run["events"] = [TimelineEntry(**e) for e in run["events"]]
    run["moments"] = [Moment(**m) for m in run["moments"]]
    if run.get("storm"):
        run["storm"] = StormRecord(**{**run["storm"], "states": [(at, state) for at, state in run["storm"]["states"]]})
    return Result(**run)


def ktap_lines(results: list[Result]) -> list[str]:
    """Return a KTAP document (Documentation/dev-tools/ktap.rst): a test for each run, a subtest for each check."""
    out = ["KTAP version 1", f"1..{len(results)}"]
    for number, result in enumerate(results, 1):
        if result.checks:
            out += ["  KTAP version 1", f"  1..{len(result.checks)}"]
            for place, check in enumerate(result.checks, 1):
                detail = f" # {_plain(check.detail)}" if check.detail and not check.ok else ""
                out.append(f"  {'ok' if check.ok else 'not ok'} {place} {_plain(check.name)}{detail}")
        out.append(f"{_ktap_word(result)} {number} {_plain(result.name)}{_ktap_directive(result)}")
    return out


def _ktap_word(result: Result) -> str:
    return "not ok" if result.outcome in (RunOutcome.FAIL.value, RunOutcome.BROKEN.value) else "ok"


def _ktap_directive(result: Result) -> str:
    if result.outcome == RunOutcome.SKIP.value:
        return f" # SKIP {_plain(result.reason)}"
    if result.outcome == RunOutcome.FAULT.value:
        return f" # XFAIL {_plain(result.reason)}"
    return "" if result.outcome == RunOutcome.PASS.value else f" # {_plain(result.reason)}"


def _plain(text: str) -> str:
    return text.replace("#", "").replace("\n", " ")
