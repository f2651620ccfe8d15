# SPDX-License-Identifier: MIT
"""Tools that run on the host: QEMU, makedumpfile, and those that make and read ext4 images without root.

They come from Debian packages and run in place, so the lab has the same QEMU on every machine and changes nothing on
the host.  All are trixie's: QEMU 7.2 (bookworm) once broke a 6.12 guest at boot inside cmpxchg16b and 10.0 did not;
mke2fs makes a file system out of a tar file, with the owners named there, since e2fsprogs 1.47.1.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from crash_hotplug_lab.qemu.debian import HOST, Archive, cache_dir, find_program, program_in, unpack
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.guest_architecture import X86_64, GuestArchitecture

_RELEASE = "trixie"
_FEATURES = "^orphan_file,^metadata_csum_seed"  # unknown to the older e2fsprogs of the guests


@dataclass(frozen=True)
class ToolSet:
    """Packages that are unpacked into one tree."""

    name: str
    """Directory in the cache."""
    packages: tuple[str, ...]
    unneeded: tuple[str, ...] = ()
    """Patterns of files that are removed after unpacking."""
    architecture: str = HOST
    """Debian's architecture of the packages."""

    @property
    def tree(self) -> Path:
        """The directory of the unpacked packages."""
        return cache_dir("tools", self.name)

    @property
    def ready(self) -> bool:
        """Whether the tools were fetched before."""
        return (self.tree / ".complete").exists()

    def fetch(self) -> None:
        """Download and unpack the tools.

        :raise LabError: a package cannot be had
        """
        archive = Archive(_RELEASE, architecture=self.architecture)
        archive.update()
        unpack(archive.download(*self.packages), self.tree)
        for pattern in self.unneeded:
            for path in self.tree.glob(pattern):
                path.unlink()
        (self.tree / ".complete").touch()


def emulator(architecture: GuestArchitecture) -> ToolSet:
    """Return QEMU for guests of an architecture."""
    return ToolSet(architecture.in_cache(_RELEASE), architecture.packages, architecture.unneeded)


def tool_sets(architecture: GuestArchitecture) -> list[ToolSet]:
    """Return all tools for guests of an architecture, and for their dumps."""
    found = [emulator(architecture)]
    if architecture.user_emulator:
        found += [_USER_EMULATOR, _foreign_makedumpfile(architecture)]
    return found


def _foreign_makedumpfile(architecture: GuestArchitecture) -> ToolSet:
    name = architecture.in_cache(f"{_RELEASE}-makedumpfile")
    return ToolSet(name, ("makedumpfile",), architecture=architecture.debian)


EMULATOR = emulator(X86_64)
_USER_EMULATOR = ToolSet(f"{_RELEASE}-user", ("qemu-user",), ("usr/bin/qemu-[!a]*", "usr/bin/qemu-a[!a]*"))
DISK_TOOLS = ToolSet(f"{_RELEASE}-disk", ("e2fsprogs", "libarchive13t64", "busybox-static"))


def qemu(architecture: GuestArchitecture) -> list[str]:
    """Return the beginning of a QEMU command line: program, firmware directories, firmware."""
    tree = emulator(architecture).tree
    share = tree / "usr/share"
    firmware = ["-bios", str(share / architecture.firmware)] if architecture.firmware else []
    return [*program_in(tree, architecture.qemu), "-L", str(share / "seabios"), "-L", str(share / "qemu"), *firmware]


def makedumpfile(architecture: GuestArchitecture = X86_64) -> list[str]:
    """Return the beginning of a makedumpfile command line.  makedumpfile reads dumps of its own architecture only."""
    if not architecture.user_emulator:
        return program_in(emulator(architecture).tree, "makedumpfile")
    tree = _foreign_makedumpfile(architecture).tree
    libraries = tree / "usr/lib" / architecture.triplet
    loader = [str(tree / architecture.dynamic_loader), "--library-path", str(libraries)]
    run = find_program(_USER_EMULATOR.tree, architecture.user_emulator)  # linked statically
    return [str(run), *loader, str(find_program(tree, "makedumpfile"))]


def busybox() -> Path:
    """Return the path of a statically linked busybox."""
    return Path(program_in(DISK_TOOLS.tree, "busybox")[-1])


def make_file_system(tar: Path, image: Path, size: str) -> None:
    """Make an ext4 file system with the files of a tar file; the image is sparse."""
    image.unlink(missing_ok=True)
    _run("mke2fs", "-q", "-t", "ext4", "-O", _FEATURES, "-d", str(tar), str(image), size)


def replay_journal(image: Path) -> None:
    """Repair a file system that was not unmounted."""
    _run("e2fsck", "-f", "-y", str(image), good=(0, 1))


def read_directory(image: Path, directory: str, target: Path) -> None:
    """Copy a directory of a file system into an existing directory of the host."""
    _run("debugfs", "-R", f"rdump {directory} {target}", str(image))


def _run(program: str, *arguments: str, good: tuple[int, ...] = (0,)) -> None:
    command = [*program_in(DISK_TOOLS.tree, program), *arguments]
    env = {**os.environ, "LC_ALL": "C", "MKE2FS_CONFIG": str(DISK_TOOLS.tree / "etc/mke2fs.conf")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode not in good:
        raise LabError(f"{program} failed: {(done.stderr or done.stdout).strip()[-300:]}")
