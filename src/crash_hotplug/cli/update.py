"""``crash-hotplug update``: bring the loaded crash image's header up to date, once."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, NamedTuple

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, memory_ranges
from crash_hotplug.cli.output import print_json, print_labelled, progress
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.handler import Outcome, Report
from crash_hotplug.core.handler_policies import in_place_header
from crash_hotplug.core.image import elfcorehdr_room
from crash_hotplug.core.move_header import MAX_MEMORY_RANGES
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.core.update_plan import UpdatePlan
from crash_hotplug.linux.loading.call_time import CallTime, estimate_call
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.loading.update_once import ANSWERED, header_with_room, update_by_reload, update_in_place

DESCRIPTION = """\
Brings the elfcorehdr of the loaded crash image up to date in place, by one small kexec_load: kernel and
initrd of the image stay where they are, and nothing is read from disk.  Whoever loaded the image does not
matter.  From then on the header describes every possible CPU, so that CPUs may come and go without an update.
"""
EXAMPLES = """\
examples:
  crash-hotplug update                       as root, after CPUs or memory came or went
  crash-hotplug update --dry-run             show what would be listed and copied
  crash-hotplug update --verify full         and hash the whole image, as purgatory will
  crash-hotplug update --strategy in-place   never reload
"""
_CODES = {
    Outcome.UPDATED: exit_codes.DONE,
    Outcome.UNCHANGED: exit_codes.DONE,
    Outcome.RELOADED: exit_codes.DONE,
    Outcome.NOT_LOADED: exit_codes.NO_IMAGE,
    Outcome.CANNOT_TELL: exit_codes.CANNOT_TELL,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "--strategy",
        choices=("auto", "in-place", "reload"),
        default="auto",
        help="in-place, or reload with kdumpctl, kdump-config, or as `crash-hotplug load` did; "
        "auto (default) reloads only where in place cannot be",
    )
    parser.add_argument(
        "--max-memory-ranges",
        type=memory_ranges,
        default=MAX_MEMORY_RANGES,
        metavar="N",
        help=f"memory ranges that a header which outgrew its segment gets room for ({MAX_MEMORY_RANGES})",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="change nothing, print the plan and about how long it would take"
    )
    parser.add_argument(
        "--verify",
        choices=("quick", "full"),
        default="quick",
        help="quick (default) reads back what was written; full also hashes the whole image, before and after",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    live = LiveMachine(verify_full=arguments.verify == "full", say=progress)
    if arguments.dry_run:
        return _dry_run(live, arguments.max_memory_ranges, arguments.json)
    started = time.perf_counter()
    report = _update(live, arguments.strategy, arguments.max_memory_ranges)
    seconds = time.perf_counter() - started
    if arguments.json:
        print_json({
            "command": "update",
            "outcome": report.outcome.value,
            "reason": report.sentence,
            "seconds": round(seconds, 6),
            "kexec_load_seconds": round(live.kexec_seconds, 6),
        })  # fmt: skip
    else:
        call = f", {live.kexec_seconds * 1e3:.1f} ms of it kexec_load" if live.kexec_seconds else ""
        stream = sys.stdout if _CODES.get(report.outcome) == exit_codes.DONE else sys.stderr
        print(f"{report.outcome.value}: {report.sentence} ({seconds * 1e3:.0f} ms{call})", file=stream)
    return _CODES.get(report.outcome, exit_codes.FAILED)


def _update(live: LiveMachine, strategy: str, ranges: int) -> Report:
    if strategy == "reload":
        return update_by_reload("", progress)
    report = update_in_place(live, ranges)
    if strategy == "in-place" or report.outcome in ANSWERED:
        return report
    return update_by_reload(report.sentence, progress)


class DryRun(NamedTuple):
    """What an update in place would do."""

    code: int
    sentence: str
    plan: UpdatePlan | None = None
    call: CallTime | None = None


def _dry_run(live: LiveMachine, ranges: int, as_json: bool) -> int:
    """Print the plan of an update in place; nothing is locked and nothing changed."""
    found = _plan(live, ranges)
    if as_json:
        outcomes = {exit_codes.DONE: "planned", exit_codes.FAILED: "refused"}
        report: dict[str, Any] = {"command": "update", "outcome": outcomes.get(found.code, "not loaded")}
        report["reason"] = found.sentence
        print_json({**report, "plan": None if found.plan is None else _plan_json(found.plan, found.call)})
    else:
        print(found.sentence, file=sys.stdout if found.code == exit_codes.DONE else sys.stderr)
        if found.plan is not None and found.call is not None:
            _show_plan(found.plan, found.call)
    return found.code


def _plan(live: LiveMachine, ranges: int) -> DryRun:
    refused = live.why_refused()
    if refused is not None:
        return DryRun(exit_codes.FAILED, refused)
    image = live.loaded_image()
    if image is None:
        return DryRun(exit_codes.NO_IMAGE, "no crash image is loaded")
    refused = live.why_not_updatable(image)
    if refused is not None:
        return DryRun(exit_codes.FAILED, refused)
    machine = live.read_machine()
    header = in_place_header(machine, image, None)
    if image.elfcorehdr.startswith(header.to_bytes()):
        return DryRun(exit_codes.DONE, "nothing to do: the header is right as it is")
    room = elfcorehdr_room(image, machine.crashkernel, None) or 0
    how = ""
    if header.size > room:
        try:
            header, needed = header_with_room(machine, image, ranges)
            plan = live.plan_move(image, needed, header.to_bytes())
            how = f"the header outgrew its {room} bytes and would move to a place of {needed}; "
        except CannotTellError as error:
            header = in_place_header(machine, image, room)
            if header.size > room:
                raise
            if image.elfcorehdr.startswith(header.to_bytes()):
                sentence = f"nothing to do: the header describes the present CPUs, and cannot move: {error}"
                return DryRun(exit_codes.DONE, sentence)
            plan = live.plan(image, header.to_bytes())
            how = f"present CPUs only, for the header cannot move: {error}; "
    else:
        plan = live.plan(image, header.to_bytes())
    entries = count(len(header.program_headers), "entry", "entries")
    what = f"would list {count(len(plan.segments), 'segment')} and copy {human_size(plan.bytes_copied)}: {entries}"
    return DryRun(exit_codes.DONE, how + what, plan, estimate_call(plan, machine.crashkernel))


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
        "takes_over": plan.takes_over,
        "time_without_image": estimated,
    }
