"""QEMU and makedumpfile, from Debian packages that are unpacked and run in place through their own dynamic loader.

So the lab has the same QEMU on every machine, needs no root for it, and changes nothing on the host.  QEMU 7.2 (of
bookworm) once broke a 6.12 guest at boot inside cmpxchg16b; 10.0 (trixie) did not, hence the release.
"""

from __future__ import annotations

import os
from pathlib import Path

from crash_hotplug_lab.qemu.cachedir import cache_dir
from crash_hotplug_lab.qemu.debian import Archive, unpack
from crash_hotplug_lab.qemu.errors import LabError

RELEASE = "trixie"
_PACKAGES = ("qemu-system-x86", "makedumpfile")


def fetch() -> None:
    """Download and unpack the tools."""
    archive = Archive(RELEASE)
    archive.update()
    unpack(archive.download(*_PACKAGES), _tree())
    (_tree() / ".complete").touch()


def ready() -> bool:
    """Whether the tools were fetched before."""
    return (_tree() / ".complete").exists()


def qemu() -> list[str]:
    """Return the beginning of a QEMU command line: program and firmware directories."""
    share = _tree() / "usr/share"
    return [*in_tree(_tree(), "qemu-system-x86_64"), "-L", str(share / "seabios"), "-L", str(share / "qemu")]


def makedumpfile() -> list[str]:
    """Return the beginning of a makedumpfile command line."""
    return in_tree(_tree(), "makedumpfile")


def in_tree(tree: Path, program: str) -> list[str]:
    """Return the command line that runs a program of an unpacked tree with that tree's own libraries.

    :raise LabError: when the tree has no such program.
    """
    for directory in ("usr/bin", "usr/sbin", "bin", "sbin"):
        path = tree / directory / program
        if path.exists():
            return [str(loader(tree)), "--library-path", library_path(tree), str(path)]
    raise LabError(f"{program} was not fetched; run `crash-hotplug-lab fetch`")


def library_path(tree: Path) -> str:
    """Return the directories of an unpacked tree where its libraries lie, as ld.so takes them."""
    return ":".join(str(tree / d) for d in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu") if (tree / d).is_dir())


def loader(tree: Path) -> Path:
    """Return an unpacked tree's dynamic loader."""
    for directory in library_path(tree).split(":"):
        path = Path(directory, "ld-linux-x86-64.so.2")
        if path.exists():
            return Path(os.path.realpath(path))
    raise LabError(f"no dynamic loader below {tree}; run `crash-hotplug-lab fetch`")


def _tree() -> Path:
    return cache_dir("tools", RELEASE)
