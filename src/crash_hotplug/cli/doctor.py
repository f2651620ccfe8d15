"""``crash-hotplug doctor``: what will happen at the next hot-plug, and why?"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, add_sysroot
from crash_hotplug.cli.doctor_facts import Fact, advice, facts
from crash_hotplug.cli.output import BAD, GOOD, UNSURE, print_headline, print_json, print_labelled
from crash_hotplug.core.doctor.hotplug_forecast import Outcome, forecast, overall
from crash_hotplug.linux.doctor.diagnosis import Diagnosis, read_diagnosis
from crash_hotplug.linux.sysroot import Sysroot

DESCRIPTION = """\
Tells what will happen at the next hot-plug of a CPU or of memory, and why: who reacts, the kernel, a udev
rule or crash-hotplug's own service, and whether it works.  Then each fact, with the file that says so.
The exit status is 0 where whatever comes or goes next will be handled, 4 where it will not.

--fix lets the service do the work: udev's rules files are hidden by one of the same name in
/etc/udev/rules.d without the reloads of a hot-plug, and the settings of kdump-tools or kdumpctl give the
capture kernel acpi_no_memhotplug.  --undo takes exactly that back.  What was there before is kept in
/var/lib/crash-hotplug/doctor.json; a file that somebody changed since is left alone.
"""
EXAMPLES = """\
examples:
  crash-hotplug doctor                     this machine; best as root
  crash-hotplug doctor --fix --dry-run     what would be written, as a diff
  crash-hotplug doctor --fix && systemctl enable --now crash-hotplug.service
  crash-hotplug doctor --undo
  crash-hotplug doctor --sysroot /mnt      another machine's root, or a tree that snapshot saved
"""
_WRAPPER = textwrap.TextWrapper(
    width=120, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_sysroot(parser)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--fix", action="store_true", help="write what lets crash-hotplug's service do the work")
    action.add_argument("--undo", action="store_true", help="take back what --fix wrote")
    parser.add_argument("--dry-run", action="store_true", help="with --fix or --undo: only tell what would be done")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :return: 0 where the next hot-plug will be handled, 4 where it will not, 3 without an image, 5 where none can tell
    """
    if arguments.fix or arguments.undo:
        # Imported here: whoever only asks needs none of it.
        from crash_hotplug.cli.doctor_fix import run_fix, run_undo  # noqa: PLC0415

        return run_fix(arguments) if arguments.fix else run_undo(arguments)
    if arguments.dry_run:
        print("crash-hotplug doctor: --dry-run goes with --fix or --undo", file=sys.stderr)
        return exit_codes.USAGE
    diagnosis = read_diagnosis(Sysroot(arguments.sysroot))
    outcomes = forecast(diagnosis.situation)
    word, sentence, code = _verdict(diagnosis, outcomes)
    found = facts(diagnosis)
    if arguments.json:
        print_json(_report(word, sentence, outcomes, found, advice(diagnosis)))
    else:
        _show(word, sentence, code, outcomes if diagnosis.state.image_loaded is not False else [], found)
        _show_advice(advice(diagnosis))
    return code


def _verdict(diagnosis: Diagnosis, outcomes: Sequence[Outcome]) -> tuple[str, str, int]:
    if diagnosis.state.image_loaded is False:
        return "no crash image", "none is loaded, so no hot-plug matters; a panic now leaves no dump", 3
    handled = overall(diagnosis.situation, outcomes)
    told = _group([outcome for outcome in outcomes if outcome.is_handled is handled])
    if handled:
        return "handled", told, exit_codes.DONE
    if handled is False:
        return "not handled", told, exit_codes.NOT_ACCURATE
    if diagnosis.state.image_loaded is None:
        told = "whether a crash image is loaded is not known (no kexec_crash_loaded)"
    return "cannot tell", told, exit_codes.CANNOT_TELL


def _group(outcomes: Sequence[Outcome]) -> str:
    """Say each sentence once, behind what it is about: "CPUs and added memory: ..."."""
    by_sentence: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_sentence.setdefault(outcome.sentence, []).append(outcome)
    return "; ".join(f"{_subjects(group)}: {sentence}" for sentence, group in by_sentence.items())


def _subjects(outcomes: Sequence[Outcome]) -> str:
    words = []
    for subsystem, both in (("cpu", "CPUs"), ("memory", "memory")):
        labels = [outcome.change.label for outcome in outcomes if outcome.change.subsystem == subsystem]
        words += [both] if len(labels) == 2 else labels
    return " and ".join(words)


def _show(word: str, sentence: str, code: int, outcomes: Sequence[Outcome], found: Sequence[Fact]) -> None:
    print_headline(word, sentence, {exit_codes.DONE: GOOD, exit_codes.CANNOT_TELL: UNSURE}.get(code, BAD))
    if len({outcome.sentence for outcome in outcomes}) > 1:
        print("\nAt the next hot-plug")
        signs = {True: "handled", False: "not handled", None: "cannot tell"}
        for outcome in outcomes:
            print_labelled(f"  {outcome.change.label}", [f"{signs[outcome.is_handled]}: {outcome.sentence}"], 18)
    for topic in dict.fromkeys(fact.topic for fact in found):
        print(f"\n{topic}")
        for fact in found:
            if fact.topic == topic:
                print(_WRAPPER.fill(f"{fact.sentence}  [{fact.source}]"))


def _show_advice(lines: Sequence[str]) -> None:
    if lines:
        print("\nTo do")
        for line in lines:
            print(f"  {line}")


def _report(
    word: str, sentence: str, outcomes: Sequence[Outcome], found: Sequence[Fact], to_do: Sequence[str]
) -> dict[str, Any]:
    return {
        "command": "doctor",
        "verdict": word,
        "reason": sentence,
        "next_hotplug": [
            {"change": outcome.change.label, "handled": outcome.is_handled, "reason": outcome.sentence}
            for outcome in outcomes
        ],
        "facts": [fact._asdict() for fact in found],
        "to_do": list(to_do),
    }
