# SPDX-License-Identifier: MIT
"""The captures of real machines (tests/captures/README.md), as paths."""

from __future__ import annotations

import shutil
from pathlib import Path

from crash_hotplug.linux.sysroot import Sysroot

CAPTURES = Path(__file__).parent / "captures"
NAMES = ("6.1-c", "6.1-s", "6.12-s", "6.12-ch")
STATES = ("0-loaded", "1-cpu-and-dimm-added", "2-block-offlined", "3-dimm-removed")


ARM64_NAMES = ("arm64-6.1-c", "arm64-6.12-c", "arm64-6.12f-s")
ARM64_STATES = ("0-loaded", "1-dimm-added", "2-block-offlined", "3-dimm-removed", "4-cpu1-offline-reloaded")


def arm64_tree(name: str, state: int) -> Path:
    """Return the saved tree of one arm64 capture in one of its five states."""
    return CAPTURES / name / ARM64_STATES[state]


def tree(name: str, state: int) -> Path:
    """Return the saved tree of one capture in one of its four states."""
    return CAPTURES / name / STATES[state]


def copied_tree(name: str, state: int, directory: Path) -> Path:
    """Copy the saved tree of one capture to a new directory, so that it can be changed."""
    shutil.copytree(tree(name, state), directory)
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return directory


def loaded_header(name: str, state: int) -> bytes:
    """Return the elfcorehdr that was loaded then."""
    return (tree(name, state) / "crash-image" / "elfcorehdr").read_bytes()


def vmcore_head(name: str) -> Path:
    """Return the beginning of the vmcore that the capture kernel showed after the last state."""
    return CAPTURES / name / "vmcore.head"


class LiveTree(Sysroot):
    """A tree that is taken for the running machine."""

    @property
    def is_live(self) -> bool:
        return True
