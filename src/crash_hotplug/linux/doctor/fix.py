# SPDX-License-Identifier: MIT
"""``doctor --fix`` disables the distribution's reloads in favour of the service; ``--undo`` restores every file.

The manifest keeps the data for --undo: the previous content of each changed file, and digests of the written contents.
It is on the disk before the first file is changed, so a run that was killed can be finished or undone.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from crash_hotplug.core.doctor.settings_files import append_assignment
from crash_hotplug.core.doctor.udev_rules import WRITTEN_BY, without_reload
from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.linux.doctor.config_files import ADMIN_RULES, TEMPLATES, RulesFile
from crash_hotplug.linux.doctor.diagnosis import Diagnosis
from crash_hotplug.linux.doctor.kdump_family import NO_MEMHOTPLUG, KdumpSettings
from crash_hotplug.linux.doctor.rooted_files import (
    FileState,
    make_directories,
    missing_directories,
    open_directory,
    read_config,
    read_state,
    remove_directory,
    remove_file,
    replace_file,
    to_bytes,
    to_text,
)
from crash_hotplug.linux.programs import SEARCH, run_tool, why_failed
from crash_hotplug.linux.sysroot import Sysroot

DIRECTORY = "/var/lib/crash-hotplug"
MANIFEST = f"{DIRECTORY}/doctor.json"
_SCHEMA = 1
_MAY_CHANGE = re.compile(r"/etc/(?:udev/rules\.d/[^/\0]+\.rules|default/kdump-tools|sysconfig/kdump(?:-tools)?)")
"""No other file is ever written or restored, whatever a manifest says."""
_MAY_MAKE = re.compile(r"/(?:etc|var)(?:/[\w.-]+)*")
"""Directories that a manifest may name."""


@dataclass
class ChangedFile:
    """A file that --fix changed or is about to change."""

    path: str
    before: FileState | None
    """The file before the first --fix; None where there was none."""
    written: list[str] = field(default_factory=list)
    """SHA-256 of every content that --fix was about to write, in hexadecimal."""

    def is_written(self, now: FileState | None) -> bool:
        """Whether --fix wrote the file that is there now."""
        return now is not None and _digest(now.content) in self.written

    def is_known(self, now: FileState | None) -> bool:
        """Whether the file is as --fix wrote it, or as it was before."""
        return self.is_written(now) or (now and now.content) == (self.before and self.before.content)


@dataclass
class Manifest:
    """The changed files, by path, and the directories that were made for them."""

    files: dict[str, ChangedFile] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WantedFile:
    """A file as --fix is to write it."""

    path: str
    content: bytes
    reason: str


@dataclass
class FixPlan:
    """The changes that --fix makes."""

    wanted: list[WantedFile] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)
    """Files that should change and stay as they are, each with the reason in a sentence."""

    @property
    def changed(self) -> list[str]:
        """The files that change, each in a sentence."""
        return [f"{wanted.path}: {wanted.reason}" for wanted in self.wanted]


@dataclass
class Undone:
    """The changes that --undo made, or would make, each entry a sentence."""

    changed: list[str] = field(default_factory=list)
    left_alone: list[str] = field(default_factory=list)


def plan_fix(sysroot: Sysroot, diagnosis: Diagnosis) -> FixPlan:
    """Work out which files to write; nothing is written yet.

    :raise CannotTellError: a file may not be read
    :raise InputError: a file is invalid
    """
    root = sysroot.root_for_writing()
    manifest = _read_manifest(root) or Manifest()
    plan = FixPlan()
    wanted = [_wanted_rules(sysroot, file, manifest) for file in diagnosis.rules]
    if diagnosis.settings is not None:
        wanted.append(_wanted_settings(diagnosis.settings, plan))
    for file in wanted:
        if file is not None:
            _add(root, manifest, plan, file)
    return plan


def _add(root: str, manifest: Manifest, plan: FixPlan, wanted: WantedFile) -> None:
    """Add a file to the plan, unless it has that content already or must not be changed."""
    try:
        now = read_state(root, wanted.path)
    except InputError as error:
        plan.left_alone.append(str(error))
        return
    known = manifest.files.get(wanted.path)
    if now is not None and now.content == wanted.content:
        return
    if known is not None and not known.is_known(now):
        plan.left_alone.append(_changed_since(wanted.path))
    elif not _MAY_CHANGE.fullmatch(wanted.path):
        plan.left_alone.append(f"{wanted.path} is not a file that doctor changes")
    else:
        plan.wanted.append(wanted)


def _changed_since(path: str) -> str:
    return f"{path} was changed after doctor wrote it"


def _wanted_rules(sysroot: Sysroot, file: RulesFile, manifest: Manifest) -> WantedFile | None:
    """Return the file for /etc/udev/rules.d that hides or replaces a rules file; None where nothing has to change."""
    path = f"{ADMIN_RULES}/{file.name}"
    source, text = _original_rules(sysroot, file, manifest)
    if without_reload(text) == text:
        return None
    heading = [
        f"{WRITTEN_BY}: {source}",
        "without its reloads of the crash image at hot-plug events; crash-hotplug.service keeps the image accurate.",
        "crash-hotplug doctor --undo removes this file, or restores the one that was here before.",
        "",
    ]
    content = to_bytes(without_reload(text, heading))
    return WantedFile(path, content, f"{source} without the reloads of a hot-plug")


def _original_rules(sysroot: Sysroot, file: RulesFile, manifest: Manifest) -> tuple[str, str]:
    """Return the path and the text of the rules without our changes: the package may have brought newer ones since."""
    template = TEMPLATES.get(file.name)
    if not file.path.startswith(ADMIN_RULES):
        return template or file.path, file.text
    ours = manifest.files.get(file.path)
    if ours is None:
        return file.path, file.text
    if ours.before is not None:
        return file.path, to_text(ours.before.content)
    for path in filter(None, (*file.hidden, template)):
        text = read_config(sysroot, path)
        if text:
            return template or path, text
    return file.path, ""


def _wanted_settings(settings: KdumpSettings, plan: FixPlan) -> WantedFile | None:
    family = settings.family
    if settings.text is None or settings.next_has_no_memhotplug is True:
        return None
    if settings.next_has_no_memhotplug is None or settings.appended is None:
        plan.left_alone.append(
            f"{family.settings}: only a shell can expand {family.append}; add {NO_MEMHOTPLUG} by hand"
        )
        return None
    value = f"{settings.appended} {NO_MEMHOTPLUG}".strip()
    comment = [
        "Added by crash-hotplug doctor --fix (crash-hotplug doctor --undo removes it):",
        "without it the capture kernel uses hot-added DIMMs as its own memory, and a dump lacks them.",
    ]
    text = append_assignment(settings.text, family.append, value, comment)
    reason = f"{NO_MEMHOTPLUG} for the next capture kernel; {family.reload} loads it now"
    return WantedFile(family.settings, to_bytes(text), reason)


def apply_fix(sysroot: Sysroot, plan: FixPlan) -> None:
    """Write the planned files.  If this run is killed, the next --fix finishes it and the next --undo restores them.

    :raise CrashHotplugError: a file cannot be written, or another doctor is running
    """
    root = sysroot.root_for_writing()
    if not plan.wanted:
        return
    made = missing_directories(root, DIRECTORY)
    make_directories(root, DIRECTORY)
    with _lock(root):
        manifest = _read_manifest(root) or Manifest()
        for wanted in plan.wanted:
            made += missing_directories(root, os.path.dirname(wanted.path))
            if wanted.path not in manifest.files:
                manifest.files[wanted.path] = ChangedFile(wanted.path, read_state(root, wanted.path))
            _add_new(manifest.files[wanted.path].written, [_digest(wanted.content)])
        _add_new(manifest.directories, made)
        _write_manifest(root, manifest)
        for wanted in plan.wanted:
            make_directories(root, os.path.dirname(wanted.path))
            before = manifest.files[wanted.path].before or _new_file()
            replace_file(root, wanted.path, replace(before, content=wanted.content))


def _new_file() -> FileState:
    return FileState(b"", 0o644, os.geteuid(), os.getegid())


def _add_new(known: list[str], new: list[str]) -> None:
    known.extend(entry for entry in dict.fromkeys(new) if entry not in known)


def undo_fix(sysroot: Sysroot, dry_run: bool = False) -> Undone:
    """Restore the files that --fix changed, except those that were changed again since.

    :raise CrashHotplugError: a file cannot be written, or another doctor is running
    """
    root = sysroot.root_for_writing()
    undone = Undone()
    manifest = _read_manifest(root)
    if manifest is None:
        if not dry_run:
            remove_file(root, MANIFEST, temporary_only=True)
        return undone
    with _lock(root):
        for file in list(manifest.files.values()):
            try:
                now = read_state(root, file.path)
            except InputError as error:
                undone.left_alone.append(str(error))
                continue
            if not file.is_known(now):
                undone.left_alone.append(_changed_since(file.path))
                continue
            if file.is_written(now):
                undone.changed.append(f"{file.path}: {'removed' if file.before is None else 'restored'}")
            if not dry_run:
                _restore(root, file, now)
                del manifest.files[file.path]
        if dry_run:
            return undone
        if manifest.files:
            _write_manifest(root, manifest)
        else:
            _remove_manifest(root, manifest)
    return undone


def _restore(root: str, file: ChangedFile, now: FileState | None) -> None:
    if file.before is not None and file.is_written(now):
        replace_file(root, file.path, file.before)
    else:
        remove_file(root, file.path, temporary_only=not file.is_written(now))


@contextmanager
def _lock(root: str) -> Iterator[None]:
    """Lock out a second doctor.

    :raise CrashHotplugError: another doctor is running
    """
    with open_directory(root, DIRECTORY) as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CrashHotplugError("another crash-hotplug doctor is running") from None
        yield


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_manifest(root: str) -> Manifest | None:
    """Read the manifest; None where nothing was changed.

    :raise CannotTellError: it may not be read
    :raise InputError: it is not a manifest
    """
    state = read_state(root, MANIFEST)
    if state is None:
        return None
    try:
        return _parse(json.loads(state.content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise InputError(f"{MANIFEST} is not a manifest of doctor --fix; nothing was changed") from error


def _parse(report: dict[str, Any]) -> Manifest:
    manifest = Manifest(directories=[str(directory) for directory in report["directories"]])
    for entry in report["files"]:
        path, before = str(entry["path"]), entry["before"]
        if before is not None:
            content = base64.b64decode(before["content"], validate=True)
            before = FileState(content, int(before["mode"], 8) & 0o7777, int(before["uid"]), int(before["gid"]))
        manifest.files[path] = ChangedFile(path, before, [str(sha) for sha in entry["written"]])
    allowed = [_MAY_CHANGE.fullmatch(path) for path in manifest.files]
    allowed += [_MAY_MAKE.fullmatch(directory) for directory in manifest.directories]
    if report["schema"] != _SCHEMA or not all(allowed):
        raise ValueError
    return manifest


def _write_manifest(root: str, manifest: Manifest) -> None:
    """Write the manifest; its directory exists.

    :raise InputError: it cannot be written
    """
    report = {
        "schema": _SCHEMA,
        "directories": manifest.directories,
        "files": [
            {"path": file.path, "before": _before_json(file.before), "written": file.written}
            for file in manifest.files.values()
        ],
    }
    content = json.dumps(report, indent=1).encode() + b"\n"
    previous = read_state(root, MANIFEST) or _new_file()
    # Mode 0600: a settings file may hold a password (FTP_PASSWORD of kdump-tools).
    replace_file(root, MANIFEST, replace(previous, content=content, mode=0o600))


def _before_json(before: FileState | None) -> dict[str, Any] | None:
    if before is None:
        return None
    content = base64.b64encode(before.content).decode()
    return {"content": content, "mode": oct(before.mode), "uid": before.uid, "gid": before.gid}


def _remove_manifest(root: str, manifest: Manifest) -> None:
    """Remove the manifest, and the directories that were made and are empty; that of the manifest itself comes last."""
    for directory in reversed(manifest.directories):
        remove_directory(root, directory)
    remove_file(root, MANIFEST)
    for directory in reversed(manifest.directories):
        remove_directory(root, directory)


def tell_udev() -> str | None:
    """Let systemd-udevd read its rules again; return a sentence if that fails."""
    udevadm = shutil.which("udevadm", path=SEARCH)
    if udevadm is None:
        return "udevadm is not installed: restart udev so that it reads its rules again"
    try:
        done = run_tool([udevadm, "control", "--reload"], seconds=30)
    except CrashHotplugError as error:
        return str(error)
    return f"udevadm control --reload failed: {why_failed(done)}" if done.returncode else None
