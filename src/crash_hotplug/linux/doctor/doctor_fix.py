"""Let crash-hotplug's service do the work, in the way each distribution intends; and take exactly that back."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from crash_hotplug.core.doctor.rules_without_reload import WRITTEN_BY, without_reload
from crash_hotplug.core.doctor.shell_settings import append_assignment
from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.linux.doctor.diagnosis import Diagnosis
from crash_hotplug.linux.doctor.doctor_manifest import (
    DIRECTORY,
    PATH,
    Change,
    Manifest,
    digest,
    may_change,
    read_manifest,
    remove_manifest,
    write_manifest,
)
from crash_hotplug.linux.doctor.kdump_family import NO_MEMHOTPLUG, KdumpSettings
from crash_hotplug.linux.doctor.rooted_files import (
    FileState,
    clear_temporary,
    make_directories,
    missing_directories,
    open_directory,
    read_state,
    remove_file,
    replace_file,
)
from crash_hotplug.linux.doctor.rooted_path import read_config
from crash_hotplug.linux.doctor.udev_files import ADMIN, TEMPLATES, RulesFile
from crash_hotplug.linux.programs import SEARCH, run_tool, why_failed
from crash_hotplug.linux.sysroot import Sysroot


@dataclass(frozen=True)
class Wanted:
    """A file as --fix would have it."""

    path: str
    content: bytes
    why: str


@dataclass
class FixPlan:
    """What --fix would do."""

    wanted: list[Wanted] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    """What should change and is not touched, each a sentence."""


@dataclass
class Done:
    """What was done, each entry a sentence."""

    changed: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)


def plan_fix(sysroot: Sysroot, diagnosis: Diagnosis) -> FixPlan:
    """Work out what has to be written; nothing is written yet.

    :raise CannotTellError: a file may not be read
    :raise InputError: a file is not what it should be
    """
    root = sysroot.directory or "/"
    manifest = read_manifest(root) or Manifest()
    plan = FixPlan()
    for file in diagnosis.rules:
        wanted = _wanted_rules(sysroot, file, manifest)
        if wanted is not None:
            _add(root, manifest, plan, wanted)
    if diagnosis.settings is not None:
        _plan_settings(root, manifest, plan, diagnosis.settings)
    return plan


def _add(root: str, manifest: Manifest, plan: FixPlan, wanted: Wanted) -> None:
    try:
        now = read_state(root, wanted.path)
    except InputError as error:
        plan.left_alone.append(str(error))
        return
    change = manifest.changes.get(wanted.path)
    if now is not None and now.content == wanted.content:
        return
    if change is not None and not change.is_ours(now) and not change.is_before(now):
        plan.left_alone.append(f"{wanted.path} was changed by somebody since doctor wrote it")
    elif not may_change(wanted.path):
        plan.left_alone.append(f"{wanted.path} is no file that doctor changes")
    else:
        plan.wanted.append(wanted)


def _wanted_rules(sysroot: Sysroot, file: RulesFile, manifest: Manifest) -> Wanted | None:
    """Return the file that has to stand in /etc/udev/rules.d; None where the live one starts no reload anyway."""
    path = f"{ADMIN}/{file.name}"
    change = manifest.changes.get(path)
    if file.path == path and change is not None:
        base = _base_below(sysroot, file, change)
    elif file.path == path:
        base = (path, file.text)
    else:
        base = (TEMPLATES.get(file.name, file.path), file.text)
    if base is None:
        return None
    source, text = base
    if without_reload(text, ()) == text:
        return None
    changed = without_reload(text, _heading(source))
    return Wanted(path, changed.encode("utf-8", "surrogateescape"), f"{source} without the reloads of a hot-plug")


def _base_below(sysroot: Sysroot, file: RulesFile, change: Change) -> tuple[str, str] | None:
    """Return what our file was, or would now be, made from: its package may have brought a new one since."""
    if change.before is not None:
        return file.path, change.before.content.decode("utf-8", "surrogateescape")
    for path in (*file.hidden, TEMPLATES.get(file.name)):
        text = None if path is None else read_config(sysroot, path)
        if path is not None and text:
            return TEMPLATES.get(file.name, path), text
    return None


def _heading(source: str) -> list[str]:
    return [
        f"{WRITTEN_BY}: {source}",
        "without its reloads of the crash image at hot-plug events; crash-hotplug.service keeps the image accurate.",
        "crash-hotplug doctor --undo takes this file back.",
        "",
    ]


def _plan_settings(root: str, manifest: Manifest, plan: FixPlan, settings: KdumpSettings) -> None:
    family = settings.family
    if settings.text is None or settings.next_has_no_memhotplug is True:
        return
    appended = settings.appended
    if settings.next_has_no_memhotplug is None or appended is None:
        plan.left_alone.append(
            f"{family.settings}: {family.append} cannot be told without running it; add {NO_MEMHOTPLUG} by hand"
        )
        return
    value = f"{appended} {NO_MEMHOTPLUG}".strip()
    comment = [
        "Added by crash-hotplug doctor --fix (crash-hotplug doctor --undo takes it back):",
        "without it the capture kernel takes hot-added DIMMs for its own memory, and a dump lacks them.",
    ]
    text = append_assignment(settings.text, family.append, value, comment)
    why = f"{NO_MEMHOTPLUG} for the next capture kernel; {family.reload} lets it have it now"
    _add(root, manifest, plan, Wanted(family.settings, text.encode("utf-8", "surrogateescape"), why))


def apply_fix(sysroot: Sysroot, plan: FixPlan) -> Done:
    """Write what was planned.  Killed at any moment, the next --fix or --undo finishes or takes back what was begun.

    :raise CrashHotplugError: a file cannot be written
    """
    root = sysroot.directory or "/"
    done = Done(left_alone=list(plan.left_alone))
    if not plan.wanted:
        return done
    made = missing_directories(root, DIRECTORY)
    make_directories(root, DIRECTORY)
    with _alone(root):
        manifest = read_manifest(root) or Manifest()
        _note(manifest.directories, made)
        for wanted in plan.wanted:
            _note(manifest.directories, missing_directories(root, os.path.dirname(wanted.path)))
            change = manifest.changes.get(wanted.path)
            if change is None:
                change = manifest.changes[wanted.path] = Change(wanted.path, read_state(root, wanted.path))
            _note(change.written, [digest(wanted.content)])
        write_manifest(root, manifest)
        for wanted in plan.wanted:
            _write(root, manifest.changes[wanted.path], wanted)
            done.changed.append(f"{wanted.path}: {wanted.why}")
    return done


def _note(known: list[str], new: list[str]) -> None:
    known.extend(entry for entry in new if entry not in known)


def _write(root: str, change: Change, wanted: Wanted) -> None:
    make_directories(root, os.path.dirname(wanted.path))
    before = change.before
    ids = (os.geteuid(), os.getegid()) if before is None else (before.uid, before.gid)
    replace_file(root, wanted.path, FileState(wanted.content, 0o644 if before is None else before.mode, *ids))


def undo_fix(sysroot: Sysroot, dry_run: bool = False) -> Done:
    """Put back what was there before, but leave alone what somebody changed since.

    :raise CrashHotplugError: a file cannot be written
    """
    root = sysroot.directory or "/"
    done = Done()
    manifest = read_manifest(root)
    if manifest is None:
        if not dry_run:
            clear_temporary(root, PATH)
        return done
    with _alone(root):
        for change in list(manifest.changes.values()):
            try:
                now = read_state(root, change.path)
            except InputError as error:
                done.left_alone.append(str(error))
                continue
            if not change.is_ours(now) and not change.is_before(now):
                done.left_alone.append(f"{change.path} was changed by somebody since doctor wrote it")
                continue
            if change.is_ours(now):
                done.changed.append(f"{change.path}: {'removed' if change.before is None else 'as it was before'}")
            if not dry_run:
                _restore(root, change, now)
                del manifest.changes[change.path]
        if dry_run:
            return done
        if manifest.changes:
            write_manifest(root, manifest)
        else:
            remove_manifest(root, manifest)
    return done


def _restore(root: str, change: Change, now: FileState | None) -> None:
    clear_temporary(root, change.path)
    if not change.is_ours(now):
        return
    if change.before is None:
        remove_file(root, change.path)
    else:
        replace_file(root, change.path, change.before)


@contextmanager
def _alone(root: str) -> Iterator[None]:
    """Keep a second doctor out.

    :raise CrashHotplugError: another one is at work
    """
    with open_directory(root, DIRECTORY) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CrashHotplugError("another crash-hotplug doctor is at work") from None
        yield


def tell_udev() -> str | None:
    """Have systemd-udevd read its rules again; returns a sentence where that could not be done."""
    udevadm = shutil.which("udevadm", path=SEARCH)
    if udevadm is None:
        return "udevadm is not installed: udev has to be restarted to read its rules again"
    try:
        done = run_tool([udevadm, "control", "--reload"], seconds=30)
    except CrashHotplugError as error:
        return str(error)
    return f"udevadm control --reload failed: {why_failed(done)}" if done.returncode else None
