# SPDX-License-Identifier: MIT
"""Judges a run: compares the plugged CPUs and DIMMs, the snapshot and the vmcore with the expectations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crash_hotplug.core.finding import Kind
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import open_sysroot
from crash_hotplug_lab.qemu import dump
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.results import Result, RunOutcome
from crash_hotplug_lab.scenario.records import BLOCK_SIZE, Expectation, Scenario

if TYPE_CHECKING:
    from crash_hotplug.core.machine import Machine
    from crash_hotplug_lab.qemu.guest_run import Observed


def judge(result: Result, scenario: Scenario, seen: Observed) -> None:
    """Fill in the checks, outcome and reason of the result, the plugged DIMMs and the findings of the audit."""
    result.dimms = dict(seen.dimms)
    expectation = scenario.expect[result.update]
    if scenario.ends_without_dump:
        result.outcome, result.reason = RunOutcome.PASS.value, "every step was taken"
        return
    if expectation.record:
        _record(result, seen)
        return
    if not expectation.dump:
        _judge_no_dump(result, seen)
    elif seen.vmcore is None:
        why = seen.vmcore_error or ("" if seen.capture_started else "no capture kernel started")
        result.check("vmcore", False, why or result.reason)
    elif seen.snapshot is not None:
        try:
            _judge_dump(result, expectation, seen, seen.vmcore, seen.snapshot)
        except LabError as error:
            result.check("vmcore", False, str(error))
    failed = [check for check in result.checks if not check.ok]
    if failed:
        result.outcome = RunOutcome.FAIL.value
        result.reason = "; ".join(f"{c.name}: {c.detail}" if c.detail else c.name for c in failed)
    else:
        expects_fault = expectation.findings or expectation.fault_kinds or not expectation.dump
        fault = bool(expectation.fault and expects_fault)
        result.outcome = (RunOutcome.FAULT if fault else RunOutcome.PASS).value
        result.reason = expectation.fault if fault else _success(expectation)


def _record(result: Result, seen: Observed) -> None:
    """Record the result of a panic at a random moment: no dump, a complete dump or a stale one."""
    result.outcome = RunOutcome.RECORDED.value
    if seen.vmcore is None:
        why = seen.vmcore_error or ("no capture kernel started" if not seen.capture_started else "")
        result.reason = f"no dump: {why}"
        return
    result.dump = dump.ranges(seen.vmcore, seen.architecture)
    described = RangeList(result.dump)
    lacking = [name for name in seen.online if not described.covers(RangeList([seen.dimms[name]]))]
    gone = [name for name, place in seen.gone.items() if described.intersect(RangeList([place]))]
    if lacking:
        result.reason = f"stale dump: lacks {len(lacking)} of {len(seen.online)} DIMMs"
    elif gone:
        result.reason = "stale dump: has a DIMM that was gone"
    else:
        result.reason = f"complete dump, {len(seen.online)} DIMMs"


def _success(expectation: Expectation) -> str:
    if not expectation.dump:
        return "no complete dump, as expected"
    return "the audit found the missing parts, as expected" if expectation.findings else "the dump is complete"


def _judge_no_dump(result: Result, seen: Observed) -> None:
    why = seen.vmcore_error or ("no capture kernel started" if not seen.capture_started else "")
    result.check("no complete vmcore", seen.vmcore is None, why)
    if seen.stuck_at and seen.snapshot is not None:
        # a digest that does not match ends in a loop in purgatory (kexec/arch/../purgatory, verify_sha256_digest)
        start, end = dump.crash_image(seen.snapshot).purgatory
        inside = [address for address in seen.stuck_at if start <= address < end]
        shown = f"a CPU is at {inside[0]:#x}, in " if inside else "no CPU is in "
        result.check("purgatory refused the image", bool(inside), f"{shown}purgatory's segment {start:#x} to {end:#x}")


def _judge_dump(result: Result, expectation: Expectation, seen: Observed, vmcore: Path, snapshot: Path) -> None:
    _judge_truth(result, seen, read_machine(open_sysroot(str(snapshot))))
    if seen.unplugged:
        _judge_unplugged(result, seen, dump.own_command("status", "--sysroot", str(snapshot), "--json"))
    report = dump.audit(vmcore, snapshot)
    result.dump = dump.ranges(vmcore, seen.architecture)
    result.audit = without_sentences(report)
    wanted, found = wanted_findings(expectation, seen.dimms), found_findings(report)
    added = {kind.value for kind in expectation.fault_kinds}
    if added <= {kind for kind, _about in found}:
        found = {finding for finding in found if finding[0] not in added}
    result.check(
        "audit", wanted == found, _sentences(report) if wanted == found else f"found {found}, expected {wanted}"
    )
    accepted, said = dump.accepted_by_makedumpfile(vmcore, seen.architecture)
    if accepted is None:
        result.check("makedumpfile is left out", True, f"it reads no dump of such a kernel: {said}")
    else:
        result.check("makedumpfile -l -d 31", accepted, said)
    missing = [range_ for name, range_ in seen.dimms.items() if (Kind.MEMORY_MISSING.value, range_) in wanted]
    for phys, value in seen.words:
        lost = any(start <= phys < end for start, end in missing)
        read = dump.word_at(vmcore, phys)
        if lost:
            result.check("planted word is not in the dump", read is None, f"phys {phys:#x} is not described")
        else:
            shown = "nothing" if read is None else hex(read)
            result.check("planted word", read == value, f"{value:#x} at phys {phys:#x}; the vmcore has {shown}")
    for start, end in seen.unplugged:
        held = dump.contents(vmcore, start, end)
        ok = held in (dump.ZEROS, dump.NOT_DESCRIBED)
        result.check("memory that is not plugged reads as zeros", ok, f"{start:#x} to {end:#x}: {held}")
    _judge_registers(result, expectation, seen, dump.cpus(vmcore, seen.architecture))


def _judge_truth(result: Result, seen: Observed, machine: Machine) -> None:
    """Compare the guest's snapshot, as the product reads it, with the CPUs and DIMMs that QEMU plugged."""
    present = len(machine.present_cpus)
    result.check("CPUs: QMP and the snapshot agree", present == seen.cpu_count, f"{seen.cpu_count} and {present}")
    ram = machine.ram
    plugged = RangeList(Range(start, end) for start, end, _ in seen.plugged)
    gone = RangeList(Range(*r) for r in seen.dimms.values()).exclude(plugged)
    agree = not plugged.exclude(ram) and not ram.intersect(gone)
    result.check("memory: QMP and the snapshot agree", agree, f"{len(seen.plugged)} DIMMs plugged")


def _judge_unplugged(result: Result, seen: Observed, status: dict[str, Any]) -> None:
    """Compare what status notes as not plugged with what QEMU has not plugged of the described memory."""
    noted = [note for note in status["notes"] if note["kind"] == Kind.MEMORY_NOT_PLUGGED.value]
    found = RangeList(Range(int(r["start"], 16), int(r["end"], 16)) for note in noted for r in note["ranges"])
    described = RangeList(Range(int(r["start"], 16), int(r["end"], 16)) for r in status["memory"]["described"])
    wanted = RangeList(Range(*r) for r in seen.unplugged).intersect(described)
    result.check("memory that is not plugged: QMP and status agree", found == wanted, f"{found}")


def _judge_registers(result: Result, expectation: Expectation, seen: Observed, cpus: list[dump.SavedCpu]) -> None:
    undescribed = {f.cpu for f in expectation.findings if f.kind is Kind.CPU_MISSING}
    if seen.busy_cpu is not None:
        # An interrupt may have the CPU when it is stopped; it saves the kernel's registers then, under the same process
        notes = [cpu for cpu in cpus if cpu.pid == seen.busy_pid]
        found = any(cpu.registers == seen.registers or cpu.in_kernel for cpu in notes)
        lost = seen.busy_cpu in undescribed
        word = "not in" if lost else "in"
        where = ", stopped in the kernel" if any(cpu.in_kernel for cpu in notes) else ""
        result.check(
            f"CPU {seen.busy_cpu}'s registers are {word} the dump", found is not lost, f"{len(cpus)} CPUs saved{where}"
        )
    if seen.panic_cpu not in undescribed:
        # notes are positional and left out for CPUs that saved nothing; here every CPU that is described is online
        place = seen.panic_cpu
        ok = place < len(cpus) and cpus[place].pid == seen.panic_pid
        pids = ", ".join(str(cpu.pid) for cpu in cpus)
        result.check(f"the panic was on CPU {place}", ok, f"process {seen.panic_pid}; notes are of processes {pids}")


def wanted_findings(expectation: Expectation, dimms: Mapping[str, tuple[int, int]]) -> set[tuple[str, Any]]:
    """Return the expected findings as kinds with a CPU or a physical range; adjacent ranges are merged.

    :param dimms: physical range of each DIMM
    """
    wanted: set[tuple[str, Any]] = set()
    memory: dict[str, list[Range]] = {}
    for finding in expectation.findings:
        if finding.dimm is not None:
            start, end = dimms[finding.dimm]
            if finding.block is not None:
                start, end = start + finding.block * BLOCK_SIZE, start + (finding.block + 1) * BLOCK_SIZE
            memory.setdefault(finding.kind.value, []).append(Range(start, end))
        else:
            wanted.add((finding.kind.value, finding.cpu))
    for kind, ranges in memory.items():
        wanted |= {(kind, (r.start, r.end)) for r in RangeList(ranges)}
    return wanted


def found_findings(report: dict[str, Any]) -> set[tuple[str, Any]]:
    """Return the findings of an audit in the same form.

    :param report: the audit's JSON, with or without sentences
    """
    found: set[tuple[str, Any]] = set()
    for finding in report["findings"]:
        if finding.get("ranges") and "cpu" not in finding:
            merged = RangeList(Range(int(r["start"], 16), int(r["end"], 16)) for r in finding["ranges"])
            found |= {(finding["kind"], (r.start, r.end)) for r in merged}
        else:
            found.add((finding["kind"], finding.get("cpu")))
    return found


def without_sentences(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return an audit's findings and notes with kind, ranges and CPU only, independent of the sentences."""
    kept = ("kind", "ranges", "cpu")
    return {part: [{k: f[k] for k in kept if f.get(k) not in (None, [])} for f in report[part]]
            for part in ("findings", "notes")}  # fmt: skip


def _sentences(report: dict[str, Any]) -> str:
    said = [f["sentence"] for f in report["findings"]] + [f"note: {n['sentence']}" for n in report["notes"]]
    return "; ".join(said) or "nothing is missing"
