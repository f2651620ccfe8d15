# SPDX-License-Identifier: MIT
"""``crash-hotplug doctor``: report how the next hot-plug will be handled; ``--fix`` and ``--undo``."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator, Sequence

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, add_sysroot
from crash_hotplug.cli.doctor_report import advice, advice_after_fix, facts, judge, report, show, warnings_after_fix
from crash_hotplug.cli.output import print_json, printable
from crash_hotplug.core.arch.supported import NAMES, architecture_named
from crash_hotplug.core.doctor.forecast import SERVICE, forecast
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.doctor.diagnosis import read_diagnosis
from crash_hotplug.linux.doctor.fix import FixPlan, apply_fix, plan_fix, tell_udev, undo_fix
from crash_hotplug.linux.doctor.rooted_files import read_state
from crash_hotplug.linux.loading.live_machine import machine_name
from crash_hotplug.linux.sysroot import Sysroot, open_sysroot

DESCRIPTION = """\
Reports what will handle the next hot-plug of CPUs or memory (the kernel, a udev rule or crash-hotplug's
service) and whether it will succeed.  Then lists the facts, each with the file that it was read from.
The exit status is 0 if every kind of hot-plug will be handled, and 4 if one will not.

--fix disables the distribution's reloads in favour of the service.  It writes copies of the distribution's rules
files without their reloads into /etc/udev/rules.d, where they hide the originals.  It adds acpi_no_memhotplug to
the capture kernel's command line in the settings of kdump-tools or kdumpctl.  --undo restores every file.
/var/lib/crash-hotplug/doctor.json keeps the previous files.  A file that was changed after --fix is left alone.
"""
EXAMPLES = """\
examples:
  crash-hotplug doctor                     this machine; as root for all facts
  crash-hotplug doctor --fix --dry-run     show the changes as a diff
  crash-hotplug doctor --fix && systemctl enable --now crash-hotplug.service
  crash-hotplug doctor --undo
  crash-hotplug doctor --sysroot /mnt      another machine's root, or a tree that snapshot saved
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_sysroot(parser)
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--fix", action="store_true", help="disable the distribution's reloads in favour of the service"
    )
    action.add_argument("--undo", action="store_true", help="restore the files that --fix changed")
    parser.add_argument("--dry-run", action="store_true", help="with --fix or --undo: only show the changes")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :return: 0 if the next hot-plug will be handled, 4 if not, 3 without an image, 5 if that is not known
    :raise UsageError: --dry-run has nothing to show
    """
    sysroot = open_sysroot(arguments.sysroot)
    if arguments.fix or arguments.undo:
        if sysroot.is_live and not arguments.dry_run and os.geteuid() != 0:
            action = "--fix" if arguments.fix else "--undo"
            raise CrashHotplugError(f"{action} changes files in /etc: run as root; nothing was changed")
        return _fix(sysroot, arguments) if arguments.fix else _undo(sysroot, arguments)
    if arguments.dry_run:
        raise exit_codes.UsageError("--dry-run requires --fix or --undo")
    diagnosis = read_diagnosis(sysroot)
    forecasts = forecast(diagnosis.situation)
    verdict = judge(diagnosis, forecasts)
    found, to_do = facts(diagnosis), advice(diagnosis)
    if arguments.json:
        print_json(report(verdict, forecasts, found, to_do))
    else:
        show(verdict, forecasts if diagnosis.state.image_loaded is not False else [], found, to_do)
    return verdict.code


def _fix(sysroot: Sysroot, arguments: argparse.Namespace) -> int:
    """Disable the distribution's reloads; the exit code is 1 if a file had to be left alone."""
    if sysroot.is_live and architecture_named(machine_name()) is None:
        raise CrashHotplugError(
            f"this machine is {machine_name()}: {SERVICE} works on {NAMES} only; nothing was changed"
        )
    diagnosis = read_diagnosis(sysroot)
    if not diagnosis.service.is_installed:
        raise CrashHotplugError(
            f"{SERVICE} is not installed: without it nothing would replace the udev rules; nothing was changed"
        )
    plan = plan_fix(sysroot, diagnosis)
    diffs = "".join(_diffs(sysroot, plan)) if arguments.dry_run else ""
    if not arguments.dry_run:
        apply_fix(sysroot, plan)
    to_do = [*_tell_udev(sysroot, arguments, plan.changed), *advice_after_fix(diagnosis)]
    warnings = warnings_after_fix(diagnosis)
    return _show_changes(arguments, "fix", plan.changed, plan.left_alone, to_do, diffs, warnings)


def _undo(sysroot: Sysroot, arguments: argparse.Namespace) -> int:
    """Restore the files that --fix changed; the exit code is 1 if a file had to be left alone."""
    undone = undo_fix(sysroot, arguments.dry_run)
    to_do = _tell_udev(sysroot, arguments, undone.changed)
    return _show_changes(arguments, "undo", undone.changed, undone.left_alone, to_do)


def _tell_udev(sysroot: Sysroot, arguments: argparse.Namespace, changed: Sequence[str]) -> list[str]:
    said = tell_udev() if sysroot.is_live and changed and not arguments.dry_run else None
    return [] if said is None else [said]


def _diffs(sysroot: Sysroot, plan: FixPlan) -> Iterator[str]:
    for wanted in plan.wanted:
        now = read_state(sysroot.root_for_writing(), wanted.path)
        before = [] if now is None else now.content.decode("utf-8", "replace").splitlines(keepends=True)
        after = wanted.content.decode("utf-8", "replace").splitlines(keepends=True)
        yield from difflib.unified_diff(before, after, "/dev/null" if now is None else wanted.path, wanted.path)


def _show_changes(
    arguments: argparse.Namespace,
    action: str,
    changed: Sequence[str],
    left_alone: Sequence[str],
    to_do: Sequence[str],
    diffs: str = "",
    warnings: Sequence[str] = (),
) -> int:
    code = exit_codes.FAILED if left_alone else exit_codes.DONE
    if arguments.json:
        done = {"command": "doctor", "action": action, "dry_run": arguments.dry_run, "changed": changed}
        print_json({**done, "left_alone": left_alone, "to_do": to_do, "diff": diffs, "warnings": list(warnings)})
        return code
    for sentence in changed:
        print(f"{'would change' if arguments.dry_run else 'changed'} {printable(sentence)}")
    if not changed:
        print("nothing to change" if action == "fix" else "nothing to restore")
    if diffs:
        print("", *map(printable, diffs.splitlines()), sep="\n")
    for sentence in left_alone:
        print(f"left alone: {printable(sentence)}", file=sys.stderr)
    for sentence in warnings:
        print(f"warning: {sentence}", file=sys.stderr)
    for sentence in to_do:
        print(f"next: {printable(sentence)}")
    return code
