"""``crash-hotplug update``: bring the loaded crash image's header up to date, once."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import print_json, print_labelled
from crash_hotplug.core.handler import Outcome, Report
from crash_hotplug.core.handler_policies import InPlace
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.core.update_plan import UpdatePlan
from crash_hotplug.linux.live_machine import LiveMachine
from crash_hotplug.linux.update_once import LOOK, update_by_reload, update_in_place

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
_ANSWERED = (Outcome.UPDATED, Outcome.UNCHANGED, Outcome.NOT_LOADED, Outcome.LOCK_BUSY)
"""After these a reload is no answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "--strategy",
        choices=("auto", "in-place", "reload"),
        default="auto",
        help="in-place, or reload with kdumpctl or kdump-config; auto (default) reloads only where in place cannot be",
    )
    parser.add_argument("--dry-run", action="store_true", help="change nothing, print the plan")
    parser.add_argument(
        "--verify",
        choices=("quick", "full"),
        default="quick",
        help="quick (default) reads back what was written; full also hashes the whole image, before and after",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    live = LiveMachine(verify_full=arguments.verify == "full", say=_say)
    if arguments.dry_run:
        return _dry_run(live, arguments.json)
    started = time.perf_counter()
    report = _update(live, arguments.strategy)
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


def _update(live: LiveMachine, strategy: str) -> Report:
    if strategy == "reload":
        return update_by_reload("")
    report = update_in_place(live)
    if strategy == "in-place" or report.outcome in _ANSWERED:
        return report
    return update_by_reload(report.sentence)


def _dry_run(live: LiveMachine, as_json: bool) -> int:
    """Print the plan of an update in place; nothing is locked and nothing changed."""
    refused = live.why_refused()
    if refused is not None:
        return _say_dry_run(as_json, exit_codes.FAILED, refused, None)
    image = live.loaded_image()
    if image is None:
        return _say_dry_run(as_json, exit_codes.NO_IMAGE, "no crash image is loaded", None)
    reason = live.why_not_updatable(image)
    if reason is not None:
        return _say_dry_run(as_json, exit_codes.FAILED, reason, None)
    header = InPlace().header(live.read_machine(), image, LOOK)
    if image.elfcorehdr.startswith(header.to_bytes()):
        return _say_dry_run(as_json, exit_codes.DONE, "nothing to do: the header is right as it is", None)
    room = image.kimage.segment_at(image.elfcorehdr_phys or 0) if image.kimage is not None else None
    if room is not None and header.size > room.memsz:
        sentence = f"the header would move: it needs {header.size} bytes, its segment has {room.memsz}"
        return _say_dry_run(as_json, exit_codes.DONE, sentence, None)
    plan = live.plan(image, header.to_bytes())
    entries = count(len(header.program_headers), "entry", "entries")
    sentence = f"would list {count(len(plan.segments), 'segment')} and copy {human_size(plan.bytes_copied)}: {entries}"
    return _say_dry_run(as_json, exit_codes.DONE, sentence, plan)


def _say_dry_run(as_json: bool, code: int, sentence: str, plan: UpdatePlan | None) -> int:
    if as_json:
        outcome = "planned" if code == exit_codes.DONE else "refused" if code == exit_codes.FAILED else "not loaded"
        report: dict[str, Any] = {"command": "update", "outcome": outcome, "reason": sentence}
        print_json({**report, "plan": None if plan is None else _plan_json(plan)})
        return code
    print(sentence, file=sys.stdout if code == exit_codes.DONE else sys.stderr)
    if plan is not None:
        lines = [f"{s.phys:#x} {len(s.data)} of {s.memsz} bytes: {s.why}" for s in plan.segments]
        print_labelled("Listed", lines)
        print_labelled("Kept", [f"{kept.start:#x} {kept.size} bytes" for kept in plan.kept])
        hole = plan.control_pages
        print_labelled("Control pages", [f"below {hole.end:#x}, {human_size(hole.size)} at most"])
        print_labelled("Entry point", [hex(plan.entry_phys)])
    return code


def _plan_json(plan: UpdatePlan) -> dict[str, Any]:
    return {
        "entry": hex(plan.entry_phys),
        "segments": [
            {"phys": hex(s.phys), "bufsz": len(s.data), "memsz": s.memsz, "why": s.why} for s in plan.segments
        ],
        "kept": [{"start": hex(kept.start), "end": hex(kept.end), "size": kept.size} for kept in plan.kept],
        "control_pages_end": hex(plan.control_pages.end),
        "takes_over": plan.takes_over,
    }


def _say(what: str) -> None:
    if sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)
