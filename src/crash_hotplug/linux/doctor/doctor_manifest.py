"""What ``doctor --fix`` changed, kept so that ``--undo`` can take exactly that back."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any

from crash_hotplug.core.errors import InputError
from crash_hotplug.linux.doctor.rooted_files import FileState, read_state, remove_directory, remove_file, replace_file

DIRECTORY = "/var/lib/crash-hotplug"
PATH = f"{DIRECTORY}/doctor.json"
_MAY_CHANGE = re.compile(r"/etc/(?:udev/rules\.d/[^/\0]+\.rules|default/kdump-tools|sysconfig/kdump)")
"""Nothing else is ever written or taken back, whatever a manifest says."""
_SCHEMA = 1


@dataclass
class Change:
    """One file that was changed, or is about to be."""

    path: str
    before: FileState | None
    """What was there; None where there was nothing."""
    written: list[str] = field(default_factory=list)
    """SHA-256 of everything that --fix ever meant to write there, in hexadecimal."""

    def is_ours(self, now: FileState | None) -> bool:
        """Whether *now* is something that we wrote."""
        return now is not None and digest(now.content) in self.written

    def is_before(self, now: FileState | None) -> bool:
        """Whether *now* is what was there before."""
        if now is None or self.before is None:
            return now is self.before
        return now.content == self.before.content


@dataclass
class Manifest:
    """Every change, by path, and the directories that were made for them."""

    changes: dict[str, Change] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)


def digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def may_change(path: str) -> bool:
    """Whether ``doctor`` may write this file."""
    return _MAY_CHANGE.fullmatch(path) is not None


def read_manifest(root: str) -> Manifest | None:
    """Read the manifest; None where nothing was changed.

    :raise CannotTellError: it may not be read
    :raise InputError: it is not one
    """
    state = read_state(root, PATH)
    if state is None:
        return None
    try:
        return _parse(json.loads(state.content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise InputError(f"{PATH} is not a manifest of doctor --fix; nothing was changed") from error


def write_manifest(root: str, manifest: Manifest) -> None:
    """Write the manifest, whole and on the disk, before anything that it tells of is done; its directory is there.

    :raise CrashHotplugError: it cannot be written
    """
    owner = read_state(root, PATH)
    report = {
        "schema": _SCHEMA,
        "directories": manifest.directories,
        "files": [_change_json(change) for change in manifest.changes.values()],
    }
    content = json.dumps(report, indent=1).encode() + b"\n"
    uid, gid = (owner.uid, owner.gid) if owner is not None else (os.geteuid(), os.getegid())
    # What was there before may hold a password (FTP_PASSWORD of kdump-tools).
    replace_file(root, PATH, FileState(content, 0o600, uid, gid))


def remove_manifest(root: str, manifest: Manifest) -> None:
    """Remove the directories that were made, where they are empty, and the manifest; its own directory comes last."""
    for directory in reversed(manifest.directories):
        remove_directory(root, directory)
    remove_file(root, PATH)
    for directory in reversed(manifest.directories):
        remove_directory(root, directory)


def _change_json(change: Change) -> dict[str, Any]:
    before = change.before
    kept = None
    if before is not None:
        content = base64.b64encode(before.content).decode()
        kept = {"content": content, "mode": oct(before.mode), "uid": before.uid, "gid": before.gid}
    return {"path": change.path, "before": kept, "written": change.written}


def _parse(report: dict[str, Any]) -> Manifest:
    if report["schema"] != _SCHEMA:
        raise ValueError
    manifest = Manifest(directories=[str(directory) for directory in report["directories"]])
    for entry in report["files"]:
        path, before = str(entry["path"]), entry["before"]
        if not may_change(path):
            raise ValueError
        kept = None
        if before is not None:
            content = base64.b64decode(before["content"], validate=True)
            kept = FileState(content, int(before["mode"], 8) & 0o7777, int(before["uid"]), int(before["gid"]))
        manifest.changes[path] = Change(path, kept, [str(sha) for sha in entry["written"]])
    if not all(re.fullmatch(r"/(?:etc|var)(?:/[\w.-]+)*", directory) for directory in manifest.directories):
        raise ValueError
    return manifest
