# SPDX-License-Identifier: MIT
"""The kdump tools that a full guest runs: Debian's own, or those of Red Hat and of openSUSE on the same Debian.

The tools of Red Hat (kdump-utils) and of openSUSE (kdump) are GPL-2.0 and no Debian package, so this project does not
carry them: the user gives their sources, and the guest installs them in its first boot as their spec files do.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crash_hotplug.core.errors import InputError
from crash_hotplug_lab.distro.sides import CORRECTED, LAST_RESORT, LOCKS, RELOAD, RULE, WITH, WITHOUT


@dataclass(frozen=True)
class Family:
    """The kdump tools of one family of distributions, in a Debian guest."""

    name: str
    title: str
    """For results; "%s" stands for Debian's number."""
    packages: tuple[str, ...]
    """Debian packages beside those of every guest."""
    project: str
    """The project whose sources the user has to give; "" where Debian has a package of it."""
    mark: str
    """A file that the sources have."""
    settings: str
    """The script of in_guest that installs and sets up the tools in the first boot."""
    unit: str
    """The unit that loads the crash image."""
    reload: tuple[str, ...]
    """The command with which an administrator loads the image again, as ``doctor --fix`` names it."""
    race: tuple[str, ...]
    """The reload that runs beside updates."""
    lock: str
    """The lock that the tools hold while they load."""
    says: str
    """Text in what ``update --strategy reload`` reports: the tool that it ran."""
    rule: str
    """Name of the udev rules file that reloads the image."""
    actions: tuple[tuple[str, str], ...]
    """The subsystem and the action of each event that the rule reacts to."""
    rule_starts: str
    """The command that the rule starts inside udev's sandbox; "" where systemd runs it."""
    rule_yields: bool
    """Whether the rule does nothing where the kernel updates the header (``crash_hotplug`` of sysfs is 1)."""
    rule_works: bool
    """Whether the reloads that the rule starts succeed, on a Debian with its own systemd-udevd."""
    failed: str
    """Regular expression of the journal's line about a reload that failed."""
    dumps: str
    """Where the tools save a dump: a pattern below /var."""
    sides: tuple[str, ...]
    kexec_args: tuple[str, str] | None
    """The file and the name of the setting with the arguments of kexec; None where the tools choose the loader."""

    def reacts_to(self, device: str, action: str) -> bool:
        """Whether the udev rule starts a reload for an event of a device such as ``memory32``."""
        return (device.rstrip("0123456789"), action) in self.actions


DEBIAN = Family(
    name="debian",
    title="Debian %s",
    packages=("kdump-tools",),
    project="",
    mark="",
    settings="settings-debian",
    unit="kdump-tools.service",
    reload=("kdump-config", "reload"),
    race=("kdump-config", "try-reload"),
    lock="/var/crash/kdump_lock",
    says="kdump-config",
    rule="50-kdump-tools.rules",
    actions=(
        ("memory", "online"), ("memory", "offline"), ("cpu", "add"), ("cpu", "remove"), ("cpu", "online"),
    ),
    rule_starts="/usr/sbin/kdump-config try-reload",
    rule_yields=False,
    rule_works=False,
    failed=r"kdump-config\[\d+\]: failed to unload kdump kernel$",
    dumps="crash/*/dump.*",
    sides=(WITHOUT, WITH, RELOAD, RULE, CORRECTED, LAST_RESORT, LOCKS),
    kexec_args=("/etc/default/kdump-tools", "KDUMP_KEXEC_ARGS"),
)  # fmt: skip
RED_HAT = Family(
    name="redhat",
    title="kdump-utils (Red Hat, Fedora) on Debian %s",
    packages=("dracut-core", "dracut-squash", "binutils", "ethtool", "gawk", "keyutils", "make", "sudo"),
    project="kdump-utils",
    mark="kdumpctl",
    settings="settings-redhat",
    unit="kdump.service",
    reload=("kdumpctl", "reload"),
    race=("kdumpctl", "reload"),
    lock="/run/lock/kdump",
    says="kdumpctl",
    rule="98-kexec.rules",
    actions=(("memory", "online"), ("memory", "offline"), ("cpu", "add"), ("cpu", "remove")),
    rule_starts="",
    rule_yields=True,
    rule_works=True,
    failed=r" kdump: kexec: failed to (?:un)?load",
    dumps="crash/*/vmcore",
    sides=(WITHOUT, WITH, RELOAD, LAST_RESORT, LOCKS),
    kexec_args=("/etc/sysconfig/kdump", "KEXEC_ARGS"),
)
SUSE = Family(
    name="suse",
    title="kdump (openSUSE) on Debian %s",
    packages=("dracut-core", "binutils", "cmake", "g++", "gawk", "make", "pkg-config", "xz-utils"),
    project="kdump",
    mark="init/load.sh",
    settings="settings-suse",
    unit="kdump.service",
    reload=("systemctl", "restart", "kdump.service"),
    race=("/usr/lib/kdump/load.sh", "--update"),
    lock="/run/kdump.lock",
    says="load-once.sh",
    rule="70-kdump.rules",
    actions=(("memory", "add"), ("memory", "remove")),
    rule_starts="/usr/lib/kdump/load-once.sh",
    rule_yields=True,
    rule_works=False,
    failed=r"load-once\.sh' failed with exit code",
    dumps="crash/*/vmcore",
    sides=(WITHOUT, WITH, RELOAD, RULE, CORRECTED, LAST_RESORT, LOCKS),
    kexec_args=None,  # load.sh ends its command line with `-a`: kexec_file_load first
)
FAMILIES = {family.name: family for family in (DEBIAN, RED_HAT, SUSE)}


@dataclass(frozen=True)
class Sources:
    """The sources of a family's tools, as their project publishes them: a directory or a tar file."""

    files: tuple[tuple[str, bytes, bool], ...]
    """By path below the sources: content, and whether it is a program."""

    @property
    def digest(self) -> str:
        """A digest of all files."""
        return hashlib.sha256(repr(self.files).encode()).hexdigest()


def read_sources(family: Family, path: Path) -> Sources:
    """Read the sources of a family's tools.

    :raise InputError: they cannot be read, or are not those of the family's project
    """
    try:
        found = sorted(_in_directory(path) if path.is_dir() else _in_tar(path))
    except (OSError, tarfile.TarError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"the sources {path} cannot be read: {why}") from None
    top = next((name[: -len(family.mark)] for name, _, _ in found if f"/{name}".endswith(f"/{family.mark}")), None)
    if top is None:
        raise InputError(f"{path} does not hold the sources of {family.project}: it has no file {family.mark}")
    files = tuple((name[len(top) :], content, program) for name, content, program in found if name.startswith(top))
    return Sources(files)


def _in_directory(path: Path) -> Iterator[tuple[str, bytes, bool]]:
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not file.is_symlink() and not name.startswith(".git/"):
            yield name, file.read_bytes(), bool(file.stat().st_mode & 0o100)


def _in_tar(path: Path) -> Iterator[tuple[str, bytes, bool]]:
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isreg() and ".." not in PurePosixPath(member.name).parts:
                file = tar.extractfile(member)
                name = re.sub(r"^(?:\./)*/*", "", member.name)
                yield name, file.read() if file else b"", bool(member.mode & 0o100)
