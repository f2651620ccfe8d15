# SPDX-License-Identifier: MIT
"""Judges a run of a full Debian guest by its uevents, its journal, the loaded header and the dump."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.verdict import Kind
from crash_hotplug_lab.distro.sides import LAST_RESORT, RELOAD, RULE, WITH, WITHOUT
from crash_hotplug_lab.qemu import dump
from crash_hotplug_lab.qemu.judge import found_findings
from crash_hotplug_lab.qemu.results import Result, RunOutcome

_SECONDS_ALLOWED = 1.0
"""Between the last event and an accurate header: the service's own limit (``--max-delay``)."""


@dataclass(frozen=True)
class Reloads:
    """Numbers of kdump-config's reloads, counted in the journal."""

    unloaded: int
    loaded: int
    failed: int

    def __str__(self) -> str:
        """Return the numbers in words."""
        return f"kdump-config: {self.unloaded} unloaded, {self.loaded} loaded, {self.failed} failed to unload"


@dataclass(frozen=True)
class TimedUevent:
    """A uevent of a CPU or a memory block, as udev received it."""

    at: float
    """Monotonic time in the guest, seconds."""
    action: str
    device: str

    @property
    def is_debians(self) -> bool:
        """Whether Debian's 50-kdump-tools.rules starts a reload for it."""
        if self.device.startswith("memory"):
            return self.action in ("online", "offline")
        return self.device.startswith("cpu") and self.action in ("add", "remove", "online")


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


def reloads(journal: list[tuple[float, str]]) -> Reloads:
    """Count the reloads of kdump-config."""
    said = [line.rpartition("]: ")[2] for _, line in journal if " kdump-config[" in line]
    return Reloads(
        said.count("unloaded kdump kernel"),
        said.count("loaded kdump kernel"),
        said.count("failed to unload kdump kernel"),
    )


def seconds_until_right(events: list[TimedUevent], journal: list[tuple[float, str]]) -> float | None:
    """Return the seconds from the last event to the service's answer to it in the journal; None without an answer."""
    last = max((event.at for event in events if event.is_debians), default=0.0)
    said = [at for at, line in journal if re.search(r" crash-hotplug\[\d+\]: .*(: updated: |nothing to do)", line)]
    return next((at - last for at in said if at >= last), None)


def judge_hotplug(
    result: Result, side: str, events: list[TimedUevent], journal: list[tuple[float, str]], trees: tuple[Path, Path]
) -> None:
    """Judge the time between two snapshots: before CPUs and DIMMs were plugged, and before the panic."""
    relevant = sum(event.is_debians for event in events)
    seen = reloads(journal)
    said = f"{relevant} events that Debian's rule is about; {seen}"
    same = _header_of(trees[0]) == _header_of(trees[1])
    verdict, reason = result.moments[-1].verdict, result.moments[-1].reason
    if side == WITHOUT:
        result.check("every reload by Debian's rule failed", seen == Reloads(0, 0, relevant) and relevant > 0, said)
        result.check("the header stayed as it was", same)
        result.check("the image is not accurate", verdict == "not accurate", reason)
        return
    if side == WITH:
        result.check("no reload by Debian's rule", seen == Reloads(0, 0, 0) and relevant > 0, said)
        seconds = seconds_until_right(events, journal)
        took = "the service said nothing of the last event" if seconds is None else f"{seconds:.2f} s"
        ok = seconds is not None and seconds <= _SECONDS_ALLOWED
        result.check(f"accurate within {_SECONDS_ALLOWED:.0f} s of the last event", ok, took)
    elif side == LAST_RESORT:
        few = 0 < seen.unloaded == seen.loaded < relevant and seen.failed == 0
        result.check("fewer reloads than events, by the service through kdump-config", few, said)
    elif side == RELOAD:
        result.check("one reload, by kdump-config", seen == Reloads(1, 1, 0), said)
    else:
        result.check("a reload for every event", seen == Reloads(relevant, relevant, 0) and relevant > 0, said)
        last = max((at for at, line in journal if line.endswith("]: loaded kdump kernel")), default=0.0)
        late = last - max((event.at for event in events if event.is_debians), default=0.0)
        result.check("the last reload is over", late > 0, f"{late:.2f} s after the last event")
    result.check("the header was brought up to date", not same)
    result.check("the image is accurate", verdict == "accurate", reason)


def judge_dump(
    result: Result,
    side: str,
    dumps: list[Path],
    tree: Path,
    plugged: tuple[list[tuple[int, int]], list[int]],
    planted: tuple[int, int],
) -> None:
    """Judge the dump that kdump-tools saved by itself.

    :param tree: the snapshot taken shortly before the panic
    :param plugged: physical ranges of the DIMMs, and numbers of the CPUs
    :param planted: physical address and value of a word in one of the DIMMs
    """
    if not result.check("kdump-tools saved a dump by itself", len(dumps) == 1, ", ".join(d.name for d in dumps)):
        return
    (vmcore,) = dumps
    report = dump.audit(vmcore, tree)
    result.dump = dump.ranges(vmcore)
    wanted: set[tuple[str, Any]] = set()
    if side == WITHOUT:
        wanted = {(Kind.MEMORY_MISSING.value, (r.start, r.end)) for r in RangeList(plugged[0])}
        wanted |= {(Kind.CPU_MISSING.value, cpu) for cpu in plugged[1]}
    said = "; ".join(finding["sentence"] for finding in report["findings"]) or "nothing is missing"
    what = "audit finds all that was plugged missing" if side == WITHOUT else "audit finds the dump complete"
    result.check(what, found_findings(report) == wanted, said)
    phys, word = planted
    read = dump.word_at(vmcore, phys)
    shown = f"{word:#x} at phys {phys:#x}; " + ("not in the dump" if read is None else f"the dump has {read:#x}")
    result.check("the word planted in the last DIMM", read == (None if side == WITHOUT else word), shown)


def judge_broken_dump(result: Result, serial_log: Path) -> None:
    """Judge the dump of a capture kernel without ``acpi_no_memhotplug``: it cannot be read to its end.

    That capture kernel finds the DIMMs in ACPI and adds them to itself, and /proc/vmcore answers EFAULT there.
    """
    said = serial_log.read_text(errors="replace")
    found = re.search(r"Can't read the dump memory\(/proc/vmcore\)\. Bad address", said)
    result.check("makedumpfile cannot read the DIMMs", found is not None, found.group() if found else "it could")


def conclude(result: Result, side: str, storm: bool) -> None:
    """Fill in outcome and reason."""
    failed = [check for check in result.checks if not check.ok]
    result.outcome = (RunOutcome.FAIL if failed else RunOutcome.PASS).value
    if failed:
        result.reason = "; ".join(f"{c.name}: {c.detail}" if c.detail else c.name for c in failed)
    elif side == RULE and not storm:
        result.outcome = RunOutcome.FAULT.value
        result.reason = (
            "the dump breaks off in spite of a reload per event: the capture kernel adds the DIMMs to itself"
        )
    elif not result.dump:
        result.reason = "the header stays stale, as expected" if side == WITHOUT else "the header is accurate"
    elif side == WITHOUT:
        result.reason = "the dump lacks all added CPUs and DIMMs, as expected"
    else:
        result.reason = "the dump is complete"


def _header_of(tree: Path) -> bytes:
    return (tree / "crash-image/elfcorehdr").read_bytes()
