"""The tools that make, check and read an ext4 image without root, and busybox: trixie's, unpacked, never installed.

mke2fs makes a file system out of a tar file since e2fsprogs 1.47.1 and keeps the owners that are named there.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from crash_hotplug_lab.qemu import hosttools
from crash_hotplug_lab.qemu.cachedir import cache_dir
from crash_hotplug_lab.qemu.debian import Archive, unpack
from crash_hotplug_lab.qemu.errors import LabError

_RELEASE = "trixie"
_PACKAGES = ("e2fsprogs", "libarchive13t64", "busybox-static")
_FEATURES = "^orphan_file,^metadata_csum_seed"  # not known to the guests' own, older tools


def fetch() -> None:
    """Download and unpack the tools, unless they are there."""
    if (_tree() / ".complete").exists():
        return
    archive = Archive(_RELEASE)
    archive.update()
    unpack(archive.download(*_PACKAGES), _tree())
    (_tree() / ".complete").touch()


def busybox() -> Path:
    """Return the path of a statically linked busybox."""
    return Path(hosttools.in_tree(_tree(), "busybox")[-1])


def make_file_system(tar: Path, image: Path, size: str) -> None:
    """Make an ext4 file system that holds what a tar file holds; the image is sparse."""
    image.unlink(missing_ok=True)
    _run("mke2fs", "-q", "-t", "ext4", "-O", _FEATURES, "-d", str(tar), str(image), size)


def replay_journal(image: Path) -> None:
    """Bring a file system in order that was not unmounted."""
    _run("e2fsck", "-f", "-y", str(image), good=(0, 1))


def read_directory(image: Path, directory: str, target: Path) -> None:
    """Copy a directory of a file system into a directory here, which has to exist."""
    _run("debugfs", "-R", f"rdump {directory} {target}", str(image))


def _run(program: str, *arguments: str, good: tuple[int, ...] = (0,)) -> None:
    command = [*hosttools.in_tree(_tree(), program), *arguments]
    env = {**os.environ, "LC_ALL": "C", "MKE2FS_CONFIG": str(_tree() / "etc/mke2fs.conf")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode not in good:
        raise LabError(f"{program} failed: {(done.stderr or done.stdout).strip()[-300:]}")


def _tree() -> Path:
    return cache_dir("tools", f"{_RELEASE}-disk")
