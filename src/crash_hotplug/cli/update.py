# SPDX-License-Identifier: MIT
"""``crash-hotplug update``: bring the loaded crash image's header up to date, once."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import closing

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, memory_ranges
from crash_hotplug.cli.output import print_json, print_labelled, printable, progress
from crash_hotplug.core.decision import Outcome, Report, Wants, decide, make_plan
from crash_hotplug.core.elf import ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.plan import MAX_MEMORY_RANGES, UpdatePlan
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.reload import update_or_reload
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.core.steps import Steps
from crash_hotplug.core.update import update
from crash_hotplug.linux.loading.live_machine import LiveMachine, run_patiently

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crash_hotplug.linux.loading.call_time import CallTime
    from crash_hotplug.linux.loading.reload import ReloadParts

DESCRIPTION = """\
Brings the elfcorehdr of the loaded crash image up to date in place, with one small kexec_load: the image's
kernel and initrd stay where they are, and nothing is read from disk.  It works for an image from any loader.
The header then describes every possible CPU, so that CPU hot-plug needs no further update.
"""
EXAMPLES = """\
examples:
  crash-hotplug update                       as root, after CPUs or memory came or went
  crash-hotplug update --dry-run             show the segments that would be listed and copied
  crash-hotplug update --verify full         also hash the whole image, as purgatory will
  crash-hotplug update --strategy in-place   never reload
"""
RELOAD_PARTS: ReloadParts | None = None
"""The parts with which an image is reloaded; None for the system's own tools."""
_CODES = {
    Outcome.UPDATED: exit_codes.DONE,
    Outcome.UNCHANGED: exit_codes.DONE,
    Outcome.RELOADED: exit_codes.DONE,
    Outcome.NOT_LOADED: exit_codes.NO_IMAGE,
    Outcome.CANNOT_TELL: exit_codes.CANNOT_TELL,
}
_PLANNED = "planned"
DRY_RUN_CODES = {
    _PLANNED: exit_codes.DONE,
    Outcome.REFUSED.value: exit_codes.FAILED,
    Outcome.NOT_LOADED.value: exit_codes.NO_IMAGE,
    Outcome.NO_ROOM.value: exit_codes.CANNOT_TELL,
}
"""The exit code of a dry run, by its outcome for JSON."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "--strategy",
        choices=("auto", "in-place", "reload"),
        default="auto",
        help="in-place, or reload with kdumpctl, kdump-config, load-once.sh, or the record of `crash-hotplug load`; "
        "auto (default) reloads only if an update in place is impossible, and unloads an image for a moment where the "
        "kernel has unmapped it (arm64 before 6.4)",
    )
    parser.add_argument(
        "--max-memory-ranges",
        type=memory_ranges,
        default=MAX_MEMORY_RANGES,
        metavar="N",
        help=f"memory ranges for which a header gets room if it outgrew its segment (default {MAX_MEMORY_RANGES})",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="change nothing; print the plan and the estimated time without an image"
    )
    parser.add_argument(
        "--verify",
        choices=("quick", "full"),
        default="quick",
        help="quick (default) reads the written parts back; full also hashes the whole image, before and after",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :raise CannotTellError: a file of the kernel cannot be read, or is truncated; `status` ends as this command then
    :raise UsageError: options do not fit together
    """
    if arguments.strategy == "reload" and arguments.dry_run:
        raise exit_codes.UsageError("--dry-run shows an update in place: it does not go with --strategy reload")
    if arguments.strategy == "reload" and arguments.verify == "full":
        raise exit_codes.UsageError("--verify full is about an update in place: it does not go with --strategy reload")
    if arguments.strategy == "reload" and arguments.max_memory_ranges != MAX_MEMORY_RANGES:
        raise exit_codes.UsageError(
            "--max-memory-ranges is about an update in place: it does not go with --strategy reload"
        )
    try:
        return _run(arguments)
    except InputError as error:
        raise CannotTellError(str(error)) from error


def _run(arguments: argparse.Namespace) -> int:
    machine = LiveMachine()
    wants = Wants(memory_ranges=arguments.max_memory_ranges, verify_full=arguments.verify == "full")
    if arguments.dry_run:
        return dry_run(machine, wants, arguments.json)
    started = time.perf_counter()
    report = run_patiently(_steps(machine, arguments.strategy, wants))
    seconds = time.perf_counter() - started
    if arguments.json:
        print_json({
            "command": "update",
            "outcome": report.outcome.value,
            "reason": report.sentence,
            "seconds": round(seconds, 6),
            "kexec_load_seconds": round(machine.kexec_seconds, 6),
        })  # fmt: skip
    else:
        call = (
            f", {machine.kexec_seconds * 1e3:.1f} ms of it without an image, at most" if machine.kexec_seconds else ""
        )
        stream = sys.stdout if _CODES.get(report.outcome) == exit_codes.DONE else sys.stderr
        print(f"{report.outcome.value}: {printable(report.sentence)} ({seconds * 1e3:.0f} ms{call})", file=stream)
    return _CODES.get(report.outcome, exit_codes.FAILED)


def _steps(machine: LiveMachine, strategy: str, wants: Wants) -> Steps[Report]:
    # Imported here: most updates reload nothing, and wait for every import.
    def by_reload(reason: str) -> Steps[Report]:
        from crash_hotplug.linux.loading.reload import ReloadParts, update_by_reload  # noqa: PLC0415

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the previous image is then put back
        return update_by_reload(machine, reason, progress, RELOAD_PARTS or ReloadParts())

    def is_reload_possible() -> bool:
        from crash_hotplug.linux.loading.reload import ReloadParts, can_reload  # noqa: PLC0415

        return can_reload(RELOAD_PARTS or ReloadParts())

    if strategy == "reload":
        return by_reload("")
    if strategy == "in-place":
        return update(machine, wants, progress)
    return update_or_reload(machine, wants, by_reload, progress, is_reload_possible)


class DryRun(NamedTuple):
    """The result of a dry run: the plan of an update in place, or the reason why there is none."""

    outcome: str
    """A key of :data:`DRY_RUN_CODES`."""
    sentence: str
    plan: UpdatePlan | None = None
    call: CallTime | None = None

    @property
    def code(self) -> int:
        """The exit code."""
        return DRY_RUN_CODES[self.outcome]


def dry_run(machine: LiveMachine, wants: Wants, as_json: bool) -> int:
    """Print the plan of an update in place; nothing is locked and nothing changed."""
    found = _plan(machine, wants)
    if as_json:
        report: dict[str, Any] = {"command": "update", "outcome": found.outcome}
        report["reason"] = found.sentence
        print_json({**report, "plan": None if found.plan is None else _plan_json(found.plan, found.call)})
    else:
        print(printable(found.sentence), file=sys.stdout if found.code == exit_codes.DONE else sys.stderr)
        if found.plan is not None and found.call is not None:
            _show_plan(found.plan, found.call)
    return found.code


def _plan(live: LiveMachine, wants: Wants) -> DryRun:
    from crash_hotplug.linux.loading.call_time import estimate_call  # noqa: PLC0415 needs ctypes and mmap

    refused = live.why_refused()
    if refused is not None:
        return DryRun(Outcome.REFUSED.value, refused)
    if live.image_loaded() is False:
        return DryRun(Outcome.NOT_LOADED.value, "no crash image is loaded")
    with closing(live.observe()) as observation:
        if not observation.identity():
            return DryRun(Outcome.NOT_LOADED.value, "no crash image is loaded")
        image, machine = observation.image(), observation.machine()
        decision = decide(image, machine, observation.read_phys, wants)
        if decision.outcome is Outcome.UNCHANGED:
            return DryRun(_PLANNED, f"nothing to do: {decision.sentence}")
        if decision.outcome is not Outcome.UPDATED:
            outcome = Outcome.NO_ROOM if decision.outcome is Outcome.NO_ROOM else Outcome.REFUSED  # TORN, too
            return DryRun(outcome.value, decision.sentence)
        plan = make_plan(decision, image, machine, observation.read_phys, progress)
    how = ""
    if decision.move is not None:
        how = f"the header outgrew its {decision.room} bytes and would move to a place of {decision.move.room}; "
    elif decision.why_stays is not None:
        how = f"present CPUs only, because the header cannot move: {decision.why_stays}; "
    what = f"would list {count(len(plan.segments), 'segment')} and copy {human_size(plan.bytes_copied)}: "
    entries = count((len(decision.header) - ELF_HEADER_SIZE) // PROGRAM_HEADER_SIZE, "entry", "entries")
    return DryRun(_PLANNED, how + what + entries, plan, estimate_call(plan, machine.crashkernel))


def _show_plan(plan: UpdatePlan, call: CallTime) -> None:
    lines = [f"{s.phys:#x} {len(s.data)} of {s.memsz} bytes: {s.why}" for s in plan.segments]
    print_labelled("Listed", lines)
    print_labelled("Kept", [f"{kept.start:#x} {kept.size} bytes" for kept in plan.kept])
    hole = plan.control_pages
    print_labelled("Control pages", [f"below {hole.end:#x}, {human_size(hole.size)} at most"])
    print_labelled("Entry point", [hex(plan.entry_phys)])
    print_labelled("No image for", [f"about {call.seconds * 1e3:.1g} ms: {call.basis}"])


def _plan_json(plan: UpdatePlan, call: CallTime | None) -> dict[str, Any]:
    estimated = None if call is None else {"seconds": round(call.seconds, 6), "basis": call.basis}
    return {
        "entry": hex(plan.entry_phys),
        "segments": [
            {"phys": hex(s.phys), "bufsz": len(s.data), "memsz": s.memsz, "why": s.why} for s in plan.segments
        ],
        "kept": [{"start": hex(kept.start), "end": hex(kept.end), "size": kept.size} for kept in plan.kept],
        "control_pages_end": hex(plan.control_pages.end),
        "control_pages_size": plan.control_pages.size,
        "takes_over": plan.excludes_elfcorehdr,
        "time_without_image": estimated,
    }
