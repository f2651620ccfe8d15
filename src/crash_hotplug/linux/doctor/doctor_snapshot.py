"""The files that ``doctor`` reads beside /proc and /sys, for a snapshot.

Settings files may hold passwords (FTP_PASSWORD, KDUMP_SMTP_PASSWORD): of them only the assignments that doctor looks at
are saved.
"""

from __future__ import annotations

import shlex

from crash_hotplug.core.doctor.shell_settings import Setting
from crash_hotplug.linux.doctor import systemd_units, udev_files
from crash_hotplug.linux.doctor.diagnosis import AUTO_ONLINE, KPTR_RESTRICT, OPTIONS, Diagnosis, read_diagnosis
from crash_hotplug.linux.doctor.kdump_family import KdumpSettings, append_default_line
from crash_hotplug.linux.doctor.rooted_path import exists
from crash_hotplug.linux.doctor.systemd_units import Unit
from crash_hotplug.linux.sysroot import Sysroot

_HERE = ".saved"
"""An empty file that makes a directory exist in the saved tree."""


def doctor_files(sysroot: Sysroot) -> dict[str, bytes]:
    """Return the files by absolute path; a link is saved as an empty file, which means the same to ``doctor``.

    :raise CannotTellError: a settings, rules or unit file may not be read
    :raise InputError: a file is not what it should be
    """
    diagnosis = read_diagnosis(sysroot)
    files: dict[str, bytes] = {}
    directories = (*udev_files.DIRECTORIES, *systemd_units.DIRECTORIES, systemd_units.ACTIVE)
    for directory in directories:
        if exists(sysroot, directory):
            files[f"{directory}/{_HERE}"] = b""
    for rules in diagnosis.rules:
        files[rules.path] = _bytes(rules.text)
    for unit in (diagnosis.udevd, diagnosis.service, diagnosis.kdump):
        if unit is not None:
            _add_unit(files, unit)
    for name, is_active in diagnosis.situation.active_units.items():
        if is_active:
            files[f"{systemd_units.ACTIVE}/invocation:{name}"] = b""
    if diagnosis.settings is not None:
        _add_settings(sysroot, files, diagnosis.settings)
    return {**files, **_kernel_files(diagnosis)}


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _add_unit(files: dict[str, bytes], unit: Unit) -> None:
    paths = ([] if unit.path is None else [unit.path]) + list(unit.drop_ins)
    files.update(zip(paths, map(_bytes, unit.texts)))
    if unit.enabled_by is not None:
        files[unit.enabled_by] = b""
    if unit.is_active:
        files[f"{systemd_units.ACTIVE}/invocation:{unit.name}"] = b""


def _add_settings(sysroot: Sysroot, files: dict[str, bytes], settings: KdumpSettings) -> None:
    family = settings.family
    if exists(sysroot, family.tool):
        files[family.tool] = _bytes(append_default_line(family, settings.append_default))
    if settings.text is not None:
        given = (
            (family.append, settings.append),
            (family.whole, settings.whole),
            (family.arguments, settings.arguments),
        )
        lines = [_assignment(name, setting) for name, setting in given if setting is not None]
        files[family.settings] = _bytes("".join(lines))


def _assignment(name: str, setting: Setting) -> str:
    return f"{name}=" + ("$(not saved)" if setting.value is None else shlex.quote(setting.value)) + "\n"


def _kernel_files(diagnosis: Diagnosis) -> dict[str, bytes]:
    files = {}
    for path, text in ((AUTO_ONLINE, diagnosis.auto_online), (KPTR_RESTRICT, diagnosis.kptr_restrict)):
        if text is not None:
            files[path] = f"{text}\n".encode()
    config = diagnosis.config
    if config is not None:
        lines = [f"{option}=y" if config.has(option) else f"# {option} is not set" for option in OPTIONS]
        files[config.path] = "".join(f"{line}\n" for line in lines).encode()
    return files
