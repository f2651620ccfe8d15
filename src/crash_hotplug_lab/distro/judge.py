# SPDX-License-Identifier: MIT
"""Judges a run of a full guest by its uevents, its journal, its kexec calls, the loaded header and the dump."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash_hotplug.core.finding import Kind
from crash_hotplug.core.ranges import RangeList
from crash_hotplug_lab.distro import kexec_calls
from crash_hotplug_lab.distro.family import DEBIAN, Family
from crash_hotplug_lab.distro.kexec_calls import KexecCall
from crash_hotplug_lab.distro.sides import CORRECTED, LAST_RESORT, LOCKS, RELOAD, RULE, WITH, WITHOUT
from crash_hotplug_lab.qemu import dump
from crash_hotplug_lab.qemu.judge import found_findings
from crash_hotplug_lab.qemu.results import Result, RunOutcome

_SECONDS_ALLOWED = 1.0
"""Between the last event and an accurate header: the service's own limit (``--max-delay``)."""
_SECONDS_AFTER_A_RACE = 15.0
"""The same where another image was loaded a moment ago, which the service hashes first."""


@dataclass(frozen=True)
class Reloads:
    """Numbers of reloads by the family's tools."""

    unloaded: int
    loaded: int
    failed: int

    def __str__(self) -> str:
        """Return the numbers in words."""
        return f"kexec unloaded {self.unloaded} times and loaded {self.loaded} times; {self.failed} reloads failed"


@dataclass(frozen=True)
class TimedUevent:
    """A uevent of a CPU or a memory block, as udev received it."""

    at: float
    """Monotonic time in the guest, seconds."""
    action: str
    device: str


@dataclass(frozen=True)
class Recorded:
    """All that was recorded between two snapshots: before CPUs and DIMMs were plugged, and before the panic."""

    family: Family
    events: list[TimedUevent]
    journal: list[tuple[float, str]]
    """Time and text of each line."""
    calls: list[KexecCall]
    cpu_seconds: float
    """CPU time of all services."""
    kernel_updates: bool = False
    """Whether the kernel updates the header by itself."""

    @property
    def relevant(self) -> list[TimedUevent]:
        """The events for which the family's rule starts a reload."""
        return [event for event in self.events if self.family.reacts_to(event.device, event.action)]

    @property
    def last_event(self) -> float:
        """The time of the last of them."""
        return max((event.at for event in self.relevant), default=0.0)

    @property
    def reloads(self) -> Reloads:
        """The reloads by the family's tools."""
        failed = sum(re.search(self.family.failed, line) is not None for _, line in self.journal)
        return Reloads(*kexec_calls.reloads(self.calls), failed)

    @property
    def answers(self) -> list[float]:
        """The times at which the service reported an update, or that there is nothing to do."""
        pattern = r" crash-hotplug\[\d+\]: .*(: updated: |nothing to do)"
        return [at for at, line in self.journal if re.search(pattern, line)]

    @property
    def seconds_until_right(self) -> float | None:
        """The seconds from the last event to the service's answer to it; None without an answer."""
        last = self.last_event
        return next((at - last for at in self.answers if at >= last), None)

    def seconds_stale(self, side: str) -> float | None:
        """Return the seconds in which the image lacked an event; None where it did not come to include the last."""
        if side in (WITH, LOCKS):
            answers = [(at, at) for at in self.answers]
        else:
            answers = [(call.start, call.end) for call in self.calls if call.loads and call.succeeded]
        return kexec_calls.seconds_stale([event.at for event in self.relevant], answers)

    def figures(self, side: str) -> str:
        """Return the figures of a table: reloads, seconds stale, seconds without an image, CPU time."""
        stale = self.seconds_stale(side)
        if self.kernel_updates:
            lasting = "the kernel updates the header"
        else:
            lasting = "stale to the end" if stale is None else f"stale for {stale:.2f} s"
        without = kexec_calls.seconds_without_image(self.calls)
        lost = "no image at the end" if without is None else f"{without:.3f} s without an image"
        return (
            f"{len(self.relevant)} events for the rule; {self.reloads}; {lasting}; {lost}; "
            f"{self.cpu_seconds:.1f} s of CPU time"
        )


def stays_stale(family: Family, side: str, kernel_updates: bool) -> bool:
    """Return whether nothing brings the header of a side up to date."""
    return side == WITHOUT and not family.rule_works and not kernel_updates


def breaks_off(family: Family, side: str, kernel_updates: bool) -> bool:
    """Return whether the dump of a side breaks off: Debian's capture kernel adds the DIMMs of its header to itself."""
    return family is DEBIAN and side in (WITHOUT, RULE) and not stays_stale(family, side, kernel_updates)


def parse_events(monitor: str) -> list[TimedUevent]:
    """Parse the output of ``udevadm monitor --kernel``."""
    found = re.findall(r"^KERNEL\[([\d.]+)\] (\S+) +(\S+) ", monitor, re.MULTILINE)
    return [TimedUevent(float(at), action, device.rpartition("/")[2]) for at, action, device in found]


def journal_since(journal: str, mark: float) -> list[tuple[float, str]]:
    """Return time and text of a journal's lines (``short-monotonic``) from a time on."""
    lines = []
    for line in journal.splitlines():
        found = re.match(r"\[ *([\d.]+)\] ", line)
        if found and float(found.group(1)) >= mark:
            lines.append((float(found.group(1)), line))
    return lines


def judge_hotplug(result: Result, side: str, recorded: Recorded, trees: tuple[Path, Path]) -> None:
    """Judge the time between two snapshots, whose directories are given."""
    family, relevant, seen = recorded.family, len(recorded.relevant), recorded.reloads
    said = f"{relevant} events that {family.rule} is about; {seen}"
    same = _header_of(trees[0]) == _header_of(trees[1])
    verdict, reason = result.moments[-1].verdict, result.moments[-1].reason
    rule_yields = recorded.kernel_updates and family.rule_yields
    if side == WITHOUT and not family.rule_works and not rule_yields:
        result.check("every reload by the rule failed", seen == Reloads(0, 0, seen.failed) and seen.failed > 0, said)
    if stays_stale(family, side, recorded.kernel_updates):
        result.check("the header stayed as it was", same)
        result.check("the image is not accurate", verdict == "not accurate", reason)
        return
    if side in (WITH, LOCKS):
        by_rule = seen == Reloads(0, 0, 0) or side == LOCKS
        result.check("no reload by the rule", by_rule and relevant > 0, said)
        allowed = _SECONDS_ALLOWED if side == WITH else _SECONDS_AFTER_A_RACE
        seconds = recorded.seconds_until_right
        took = "the service said nothing of the last event" if seconds is None else f"{seconds:.2f} s"
        ok = seconds is not None and seconds <= allowed
        result.check(f"accurate within {allowed:.0f} s of the last event", ok, took)
    elif side == LAST_RESORT:
        few = 0 < seen.loaded < relevant and seen.failed == 0
        result.check(f"fewer reloads than events, by the service through {family.says}", few, said)
    elif side == RELOAD:
        result.check(f"one reload, by {family.says}", seen.loaded == 1 and seen.failed == 0, said)
    elif rule_yields:
        result.check("no reload by the rule: the kernel updates the header", seen == Reloads(0, 0, 0), said)
    elif side in (RULE, CORRECTED) or family.rule_works:
        _judge_rule(result, recorded, said)
    result.check("the header was brought up to date", not same)
    result.check("the image is accurate", verdict == "accurate", reason)


def _judge_rule(result: Result, recorded: Recorded, said: str) -> None:
    """Judge a rule whose reloads succeed."""
    seen, relevant = recorded.reloads, len(recorded.relevant)
    if recorded.family is DEBIAN:
        result.check("a reload for every event", seen == Reloads(relevant, relevant, 0) and relevant > 0, said)
    else:
        # load-once.sh fails in the journal, too, where it only leaves its job to the process that has the lock
        none_failed = all(call.succeeded for call in recorded.calls)
        result.check("reloads by the rule, and no call of kexec failed", seen.loaded > 0 and none_failed, said)
    last = max((call.end for call in recorded.calls if call.loads and call.succeeded), default=0.0)
    late = last - recorded.last_event
    result.check("the last reload is over", late > 0, f"{late:.2f} s after the last event")


def judge_dump(
    result: Result,
    stale: bool,
    dumps: list[Path],
    tree: Path,
    plugged: tuple[list[tuple[int, int]], list[int]],
    planted: tuple[int, int],
) -> None:
    """Judge the dump that the family's tools saved by themselves.

    :param stale: whether the loaded image describes none of the DIMMs and CPUs that were plugged
    :param tree: the snapshot taken shortly before the panic
    :param plugged: physical ranges of the DIMMs, and numbers of the CPUs
    :param planted: physical address and value of a word in one of the DIMMs
    """
    if not result.check(
        "one dump was saved, by the distribution's tools", len(dumps) == 1, ", ".join(d.name for d in dumps)
    ):
        return
    (vmcore,) = dumps
    report = dump.audit(vmcore, tree)
    result.dump = dump.ranges(vmcore)
    wanted: set[tuple[str, Any]] = set()
    if stale:
        wanted = {(Kind.MEMORY_MISSING.value, (r.start, r.end)) for r in RangeList(plugged[0])}
        wanted |= {(Kind.CPU_MISSING.value, cpu) for cpu in plugged[1]}
    said = "; ".join(finding["sentence"] for finding in report["findings"]) or "nothing is missing"
    what = "audit finds all that was plugged missing" if stale else "audit finds the dump complete"
    result.check(what, found_findings(report) == wanted, said)
    phys, word = planted
    read = dump.word_at(vmcore, phys)
    shown = f"{word:#x} at phys {phys:#x}; " + ("not in the dump" if read is None else f"the dump has {read:#x}")
    result.check("the word planted in the last DIMM", read == (None if stale else word), shown)


def judge_broken_dump(result: Result, serial_log: Path) -> None:
    """Judge the dump of a capture kernel without ``acpi_no_memhotplug``: it cannot be read to its end.

    That capture kernel finds the DIMMs in ACPI and adds them to itself, and /proc/vmcore answers EFAULT there.
    """
    said = serial_log.read_text(errors="replace")
    found = re.search(r"Can't read the dump memory\(/proc/vmcore\)\. Bad address", said)
    result.check("makedumpfile cannot read the DIMMs", found is not None, found.group() if found else "it could")


def conclude(result: Result, side: str, storm: bool, family: Family = DEBIAN, kernel_updates: bool = False) -> None:
    """Fill in outcome and reason."""
    stale = stays_stale(family, side, kernel_updates)
    failed = [check for check in result.checks if not check.ok]
    result.outcome = (RunOutcome.FAIL if failed else RunOutcome.PASS).value
    if failed:
        result.reason = "; ".join(f"{c.name}: {c.detail}" if c.detail else c.name for c in failed)
    elif breaks_off(family, side, kernel_updates) and not storm:
        result.outcome = RunOutcome.FAULT.value
        result.reason = (
            "the dump breaks off although the header is accurate: the capture kernel adds the DIMMs to itself"
        )
    elif not result.dump:
        result.reason = "the header stays stale, as expected" if stale else "the header is accurate"
    elif stale:
        result.reason = "the dump lacks all added CPUs and DIMMs, as expected"
    else:
        result.reason = "the dump is complete"


def _header_of(tree: Path) -> bytes:
    """Return the header of the loaded image; nothing where none was loaded."""
    path = tree / "crash-image/elfcorehdr"
    return path.read_bytes() if path.exists() else b""
