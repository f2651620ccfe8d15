"""``crash-hotplug doctor --fix`` and ``--undo``."""

from __future__ import annotations

import argparse
import difflib
import os
import sys

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.doctor_facts import after_fix
from crash_hotplug.cli.output import print_json
from crash_hotplug.core.doctor.hotplug_forecast import SERVICE
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.doctor.diagnosis import read_diagnosis
from crash_hotplug.linux.doctor.doctor_fix import Done, FixPlan, apply_fix, plan_fix, tell_udev, undo_fix
from crash_hotplug.linux.doctor.rooted_files import read_state
from crash_hotplug.linux.loading.live_machine import machine_name
from crash_hotplug.linux.sysroot import Sysroot


def run_fix(arguments: argparse.Namespace) -> int:
    """Write what lets the service do the work; the exit code is 1 where something had to be left alone."""
    sysroot = Sysroot(arguments.sysroot)
    _need_root(sysroot, arguments)
    if sysroot.is_live and machine_name() != "x86_64":
        raise CrashHotplugError(
            f"this machine is {machine_name()}: {SERVICE} works on x86_64 only; nothing was changed"
        )
    diagnosis = read_diagnosis(sysroot)
    if not diagnosis.service.is_installed:
        raise CrashHotplugError(
            f"{SERVICE} is not installed: without it nobody would do what udev's rules do now; nothing was changed"
        )
    plan = plan_fix(sysroot, diagnosis)
    if arguments.dry_run:
        done = Done([f"{wanted.path}: {wanted.why}" for wanted in plan.wanted], plan.left_alone)
        diffs = "".join(_diffs(sysroot, plan))
    else:
        done, diffs = apply_fix(sysroot, plan), ""
    told = [] if arguments.dry_run else _tell_udev(sysroot, done)
    return _show(arguments, "fix", done, [*told, *after_fix(diagnosis)], diffs)


def run_undo(arguments: argparse.Namespace) -> int:
    """Take back what --fix wrote; the exit code is 1 where something had to be left alone."""
    sysroot = Sysroot(arguments.sysroot)
    _need_root(sysroot, arguments)
    done = undo_fix(sysroot, arguments.dry_run)
    return _show(arguments, "undo", done, [] if arguments.dry_run else _tell_udev(sysroot, done), "")


def _need_root(sysroot: Sysroot, arguments: argparse.Namespace) -> None:
    if sysroot.is_live and not arguments.dry_run and os.geteuid() != 0:
        action = "--fix" if arguments.fix else "--undo"
        raise CrashHotplugError(f"{action} changes files in /etc: run as root; nothing was changed")


def _tell_udev(sysroot: Sysroot, done: Done) -> list[str]:
    if not sysroot.is_live or not any("/udev/rules.d/" in sentence for sentence in done.changed):
        return []
    said = tell_udev()
    return [] if said is None else [said]


def _diffs(sysroot: Sysroot, plan: FixPlan) -> list[str]:
    found: list[str] = []
    for wanted in plan.wanted:
        now = read_state(sysroot.directory or "/", wanted.path)
        before = [] if now is None else now.content.decode("utf-8", "replace").splitlines(keepends=True)
        after = wanted.content.decode("utf-8", "replace").splitlines(keepends=True)
        found += difflib.unified_diff(before, after, "/dev/null" if now is None else wanted.path, wanted.path)
    return found


def _show(arguments: argparse.Namespace, action: str, done: Done, to_do: list[str], diffs: str) -> int:
    code = exit_codes.FAILED if done.left_alone else exit_codes.DONE
    if arguments.json:
        report = {"command": "doctor", "action": action, "dry_run": arguments.dry_run, "changed": done.changed}
        print_json({**report, "left_alone": done.left_alone, "to_do": to_do, "diff": diffs})
        return code
    would = "would change" if arguments.dry_run else "changed"
    for sentence in done.changed:
        print(f"{would} {sentence}")
    if not done.changed:
        print("nothing to do" if action == "fix" else "nothing to take back")
    if diffs:
        print(f"\n{diffs}", end="")
    for sentence in done.left_alone:
        print(f"left alone: {sentence}", file=sys.stderr)
    for sentence in to_do:
        print(f"next: {sentence}")
    return code
