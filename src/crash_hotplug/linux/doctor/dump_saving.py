# SPDX-License-Identifier: MIT
"""The saving of the dump after a panic: makedumpfile's version, and the encryption of the volume that takes the dump.

No program is run: makedumpfile's version is a string in the program, and the block devices below a directory are in
/proc/self/mountinfo and sysfs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from crash_hotplug.core.doctor.makedumpfile import Shortcoming, Version, find_shortcomings, find_version, program_with
from crash_hotplug.core.doctor.settings_files import read_setting
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.doctor.config_files import KernelConfig
from crash_hotplug.linux.doctor.kdump_family import KdumpSettings
from crash_hotplug.linux.doctor.rooted_files import exists, read_config, resolve, to_bytes
from crash_hotplug.linux.sysroot import Sysroot

PROGRAMS = ("/usr/sbin/makedumpfile", "/usr/bin/makedumpfile", "/sbin/makedumpfile")
"""Fedora and openSUSE install it in sbin, Debian in bin."""
KEYS = "/sys/kernel/config/crash_dm_crypt_keys"
"""Through it a loader names the volume keys for the capture kernel (Linux 6.16, 9ebfa8dcaea7)."""
MOUNTS = "/proc/self/mountinfo"
BLOCK_DEVICES = "/sys/class/block"
_LARGEST_PROGRAM = 16 << 20
_RED_HAT_CONF = "/etc/kdump.conf"
_OTHER_TARGET = re.compile(r"^[ \t]*(?:ssh|nfs|raw|virtiofs|ext[234]|xfs|btrfs|minix)[ \t]", re.MULTILINE)
"""A target in kdump.conf(5) that is not the file system of ``path``."""
_PATH = re.compile(r"^[ \t]*path[ \t]+(/\S*)", re.MULTILINE)
_DIRECTORY = "/var/crash"
"""The default of every family."""


@dataclass(frozen=True)
class DumpSaving:
    """How the capture kernel will save the dump, as far as files show it."""

    program: str | None
    """Path of makedumpfile; None where it is not installed."""
    version: Version | None
    """None where the program cannot be read, or contains no version."""
    shortcomings: list[Shortcoming]
    """The changes that it lacks for the running kernel."""
    directory: str | None
    """The directory that takes the dump; None where the dump goes elsewhere, or that is not known."""
    encrypted: str | None
    """Name of the encrypted device (dm-crypt) below the directory; None where none is found."""


def read_dump_saving(
    sysroot: Sysroot,
    settings: KdumpSettings | None,
    release: str | None,
    config: KernelConfig | None,
) -> DumpSaving:
    """Read how the dump will be saved.

    :param release: the running kernel's
    :param config: the running kernel's
    :raise CannotTellError: a settings file may not be read
    :raise InputError: a settings file is invalid
    """
    program = next((path for path in PROGRAMS if exists(sysroot, path)), None)
    version = None if program is None else _version_in(sysroot, program)
    lacks = []
    if version is not None and release is not None:
        lacks = find_shortcomings(version, release, lambda option: config is not None and config.has(option))
    directory = None if settings is None else _dump_directory(sysroot, settings)
    return DumpSaving(
        program=program,
        version=version,
        shortcomings=lacks,
        directory=directory,
        encrypted=None if directory is None else _encrypted_below(sysroot, directory),
    )


def saved_files(saving: DumpSaving, settings: KdumpSettings | None) -> dict[str, bytes]:
    """Return small files for a saved tree, from which :func:`read_dump_saving` reads the same.

    The encrypted device stands for all block devices of the machine, and the directory for the rest of kdump.conf.
    """
    files = {}
    if saving.program is not None:
        files[saving.program] = b"" if saving.version is None else program_with(saving.version)
    if saving.encrypted is not None:
        files[MOUNTS] = to_bytes(f"1 0 0:0 / / rw - none /dev/mapper/{saving.encrypted} rw\n")
        files[f"{BLOCK_DEVICES}/dm-0/dm/name"] = to_bytes(f"{saving.encrypted}\n")
        files[f"{BLOCK_DEVICES}/dm-0/dm/uuid"] = b"CRYPT-\n"
        if settings is not None and settings.family.directory is None:
            files[_RED_HAT_CONF] = to_bytes(f"path {saving.directory}\n")
    return files


def _version_in(sysroot: Sysroot, program: str) -> Version | None:
    try:
        return find_version(sysroot.read(resolve(sysroot, program), _LARGEST_PROGRAM) or b"")
    except CrashHotplugError:
        return None


def _dump_directory(sysroot: Sysroot, settings: KdumpSettings) -> str | None:
    """Return the directory of this machine that takes the dump; None where it goes elsewhere, or that is not known."""
    if settings.family.directory is None:
        text = read_config(sysroot, _RED_HAT_CONF) or ""
        path = _PATH.search(text)
        return None if _OTHER_TARGET.search(text) else path[1] if path else _DIRECTORY
    if _given(settings, "SSH") or _given(settings, "NFS"):
        return None
    directory = _given(settings, settings.family.directory)
    directory = _DIRECTORY if directory == "" else directory
    if directory is not None and directory.startswith("file://"):
        directory = directory[len("file://") :]
    return directory if directory is not None and directory.startswith("/") else None


def _given(settings: KdumpSettings, name: str) -> str | None:
    """Return a setting's value; "" where it is not set, None where only a shell can expand it."""
    found = read_setting(settings.text or "", name)
    return "" if found is None else found.value


def _encrypted_below(sysroot: Sysroot, directory: str) -> str | None:
    """Return the name of the first dm-crypt device below a directory; None where none is found."""
    try:
        source = _mounted_at(sysroot, directory)
        return None if source is None else next(_encrypted(sysroot, _device_name(sysroot, source), set()), None)
    except CrashHotplugError:  # no such files in this tree, or files that are not what they should be
        return None


def _mounted_at(sysroot: Sysroot, directory: str) -> str | None:
    """Return the device of the file system that has a directory (proc_pid_mountinfo(5)); later mounts hide others."""
    text = (sysroot.read(MOUNTS, 1 << 20) or b"").decode("utf-8", "surrogateescape")
    found, longest = None, -1
    for line in text.splitlines():
        fields, _dash, rest = (part.split() for part in line.partition(" - "))
        if len(fields) < 5 or len(rest) < 2:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]).rstrip("/")
        if f"{directory}/".startswith(f"{point}/") and len(point) >= longest:
            found, longest = rest[1], len(point)
    return found


def _device_name(sysroot: Sysroot, source: str) -> str:
    """Return the kernel's name of a block device; a saved tree lacks the links in /dev/mapper."""
    name = os.path.basename(resolve(sysroot, source))
    if not source.startswith("/dev/mapper/") or exists(sysroot, f"{BLOCK_DEVICES}/{name}"):
        return name
    devices = sysroot.names(resolve(sysroot, BLOCK_DEVICES))
    return next((device for device in devices if _attribute(sysroot, device, "dm/name") == name), name)


def _encrypted(sysroot: Sysroot, name: str, seen: set[str]) -> Iterator[str]:
    """Find the dm-crypt devices among a block device and those below it."""
    if name in seen:
        return
    seen.add(name)
    if _attribute(sysroot, name, "dm/uuid").startswith("CRYPT-"):  # dm_prepare_uuid() of libcryptsetup
        yield _attribute(sysroot, name, "dm/name") or name
    for below in sysroot.names(resolve(sysroot, f"{BLOCK_DEVICES}/{name}/slaves")):
        yield from _encrypted(sysroot, below, seen)


def _attribute(sysroot: Sysroot, device: str, attribute: str) -> str:
    return (read_config(sysroot, f"{BLOCK_DEVICES}/{device}/{attribute}") or "").strip()
