# SPDX-License-Identifier: MIT
"""Save the files that ``--sysroot`` reads, crash-image/ included, for a support case.

Settings files may hold passwords (FTP_PASSWORD, KDUMP_SMTP_PASSWORD): only the assignments that doctor reads are saved.
"""

from __future__ import annotations

import io
import json
import shlex
import tarfile
from dataclasses import dataclass, field
from typing import BinaryIO

from crash_hotplug.core.doctor.makedumpfile import SHORTCOMINGS
from crash_hotplug.core.doctor.settings_files import Setting
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux import cpus, iomem, kallsyms, kcore, kexec_state, machine_reader, memory_hotplug, page_flags
from crash_hotplug.linux.atomic_file import write_private_tree
from crash_hotplug.linux.crash_image import SAVED, places_of, read_crash_image
from crash_hotplug.linux.doctor import diagnosis, dump_saving, virtio_mem
from crash_hotplug.linux.doctor.config_files import ACTIVE, RULES_DIRECTORIES, UNIT_DIRECTORIES
from crash_hotplug.linux.doctor.kdump_family import KdumpSettings, tool_lines
from crash_hotplug.linux.doctor.rooted_files import exists, to_bytes
from crash_hotplug.linux.loading.load import RECORD
from crash_hotplug.linux.running_architecture import running_architecture
from crash_hotplug.linux.sysroot import LARGE, Sysroot

_CPU_FILES = ("possible", "present", "online", "offline", "kernel_max")
_PER_CPU_FILES = ("online", "crash_notes", "crash_notes_size")
_EMPTY = ".saved"
"""An empty file that makes a directory exist in the saved tree."""


@dataclass
class Snapshot:
    """The files of a saved tree, by absolute path on the machine."""

    files: dict[str, bytes] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """The reasons why a file could not be saved, each a sentence."""


def take_snapshot(sysroot: Sysroot) -> Snapshot:
    """Collect the files; of the machine's memory only headers of the crash image and of kcore are saved.

    :raise CannotTellError: memory or CPUs are masked: a snapshot would be useless
    :raise InputError: a file is not in the kernel's format
    """
    snapshot = Snapshot()
    memory = iomem.read_iomem(sysroot)
    reserved = memory.crashkernel
    cpu_numbers = [cpu.number for cpu in cpus.read_cpus(sysroot) if cpu.present]
    _copy(sysroot, snapshot, iomem.PATH, LARGE)
    for path in (
        machine_reader.CMDLINE,
        machine_reader.RELEASE,
        kexec_state.VMCOREINFO,
        *kexec_state.STATE_FILES,
        RECORD,
    ):
        _copy(sysroot, snapshot, path)
    for name in _CPU_FILES:
        _copy(sysroot, snapshot, f"{cpus.DIRECTORY}/{name}")
    for number in cpu_numbers:
        for name in _PER_CPU_FILES:
            _copy(sysroot, snapshot, f"{cpus.DIRECTORY}/cpu{number}/{name}")
    _copy(sysroot, snapshot, f"{memory_hotplug.BLOCKS}/block_size_bytes")
    for name in memory_hotplug.block_names(sysroot):
        _copy(sysroot, snapshot, f"{memory_hotplug.BLOCKS}/{name}/state")
    for name in memory_hotplug.acpi_device_names(sysroot):
        _copy(sysroot, snapshot, f"{memory_hotplug.ACPI_DEVICES}/{name}/status")
    not_plugged = page_flags.read_not_plugged(sysroot, memory.virtio_mem)
    if memory.virtio_mem and not_plugged is not None:
        snapshot.files[page_flags.SAVED] = page_flags.not_plugged_json(not_plugged)
    if sysroot.is_live:
        snapshot.files[machine_reader.ARCHITECTURE] = f"{running_architecture().name}\n".encode()
    _save_kernel_addresses(sysroot, snapshot)
    _save_doctor_files(sysroot, snapshot)
    if kexec_state.read_image_loaded(sysroot) is not False:
        _save_crash_image(sysroot, snapshot, reserved)
    return snapshot


def _copy(sysroot: Sysroot, snapshot: Snapshot, path: str, limit: int = 64 << 10) -> None:
    try:
        data = sysroot.read(path, limit)
    except CannotTellError as error:
        snapshot.missing.append(str(error))
        return
    if data is not None:
        snapshot.files[path] = data


def _save_doctor_files(sysroot: Sysroot, snapshot: Snapshot) -> None:
    try:
        found = diagnosis.read_diagnosis(sysroot)
        files = _doctor_files(sysroot, found)
        files.update(dump_saving.saved_files(found.saving, found.settings))
        if found.settings is not None:
            files.update(_settings_files(sysroot, found.settings, found.saving))
    except CrashHotplugError as error:
        snapshot.missing.append(str(error))
        return
    for path, data in files.items():
        snapshot.files.setdefault(path, data)


def _doctor_files(sysroot: Sysroot, found: diagnosis.Diagnosis) -> dict[str, bytes]:
    """Return the files that doctor reads outside /proc and /sys; an empty file replaces a link."""
    directories = (*RULES_DIRECTORIES, *UNIT_DIRECTORIES, ACTIVE)
    texts = {f"{directory}/{_EMPTY}": "" for directory in directories if exists(sysroot, directory)}
    texts.update({rules.path: rules.text for rules in found.rules})
    if found.virtio_mem is not None:
        texts.update({f"{virtio_mem.DEVICES}/{device}/{_EMPTY}": "" for device in found.virtio_mem.devices})
    active = [unit for unit, is_active in found.situation.active_units.items() if is_active]
    for unit in filter(None, (found.udevd, found.service, found.kdump)):
        texts.update(unit.texts)
        if unit.enabled_by is not None:
            texts[unit.enabled_by] = ""
        active += [unit.name] if unit.is_active else []
    texts.update({f"{ACTIVE}/invocation:{unit}": "" for unit in active})
    for path, value in ((diagnosis.AUTO_ONLINE, found.auto_online), (diagnosis.KPTR_RESTRICT, found.kptr_restrict)):
        if value is not None:
            texts[path] = f"{value}\n"
    config = found.config
    if config is not None:
        names = (*diagnosis.OPTIONS, *(option for lack in SHORTCOMINGS for option in lack.options))
        lines = [f"{name}=y\n" if config.has(name) else f"# {name} is not set\n" for name in names]
        texts[config.path] = "".join(lines)
    return {path: to_bytes(text) for path, text in texts.items()}


def _settings_files(sysroot: Sysroot, settings: KdumpSettings, saving: dump_saving.DumpSaving) -> dict[str, bytes]:
    family = settings.family
    files = {}
    if exists(sysroot, family.tool):
        files[family.tool] = to_bytes(tool_lines(settings))
    if settings.text is not None:
        given = {
            family.append: settings.append,
            family.whole: settings.whole,
            family.arguments: settings.arguments,
            family.switch: settings.switch,
        }
        if saving.encrypted is not None and family.directory is not None:
            given[family.directory] = Setting(0, saving.directory)
        lines = [
            f"{name}={'$(not saved)' if setting.value is None else shlex.quote(setting.value)}\n"
            for name, setting in given.items()
            if setting is not None
        ]
        files[family.settings] = to_bytes("".join(lines))
    return files


def _save_kernel_addresses(sysroot: Sysroot, snapshot: Snapshot) -> None:
    try:
        lines = kallsyms.symbol_lines(sysroot)
        if not lines:
            raise kallsyms.explain_missing(sysroot, "_text")
        snapshot.files[kallsyms.PATH] = lines
    except CannotTellError as error:
        snapshot.missing.append(str(error))
    try:
        with kcore.Kcore(sysroot) as opened:
            snapshot.files[kcore.PATH] = opened.headers_bytes
            _save_possible_cpus(sysroot, snapshot, opened)
    except CannotTellError as error:
        snapshot.missing.append(str(error))


def _save_possible_cpus(sysroot: Sysroot, snapshot: Snapshot, opened: kcore.Kcore) -> None:
    """Save the addresses of the notes of CPUs that are not present: sysfs does not have them."""
    found = cpus.with_possible_notes(sysroot, opened, cpus.read_cpus(sysroot))
    if any(cpu.crash_notes is not None and not cpu.present for cpu in found):
        snapshot.files[cpus.SAVED_NOTES] = cpus.notes_json(found)


def _save_crash_image(sysroot: Sysroot, snapshot: Snapshot, reserved: RangeList) -> None:
    try:
        image = read_crash_image(sysroot, reserved)
    except CannotTellError as error:
        snapshot.missing.append(str(error))
        return
    snapshot.files[f"{SAVED}/elfcorehdr"] = image.elfcorehdr
    if image.boot is not None:
        snapshot.files.update((f"{SAVED}/{name}", data) for name, data in image.boot.saved()[0].items())
    snapshot.files[f"{SAVED}/image.json"] = json.dumps(places_of(image), indent=1).encode() + b"\n"


def write_directory(snapshot: Snapshot, directory: str) -> None:
    """Write the tree into a directory that is new or empty; its files have kernel addresses, so they are private.

    :raise InputError: it cannot be written there
    """
    write_private_tree(directory, snapshot.files)


def write_tar(snapshot: Snapshot, top: str, file: BinaryIO) -> None:
    """Write the tree as a gzip-compressed tar archive with everything below one private directory.

    :param top: that directory's name
    """
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        directory = tarfile.TarInfo(top)
        directory.type, directory.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(directory)
        for path, data in snapshot.files.items():
            member = tarfile.TarInfo(f"{top}{path}")
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
