# SPDX-License-Identifier: MIT
"""The facts that ``doctor`` reads, and the situation on which its forecast is based."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.decision import why_not_updatable
from crash_hotplug.core.doctor.forecast import SERVICE, Change, Situation
from crash_hotplug.core.doctor.settings_files import sandbox_of
from crash_hotplug.core.doctor.udev_rules import Reload, RuleContext, UEvent, find_reloads, mentions_reload, parse_rules
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.machine import Machine, kernel_version
from crash_hotplug.core.verdict import Assessment, assess
from crash_hotplug.linux import btf_file, kallsyms, kcore, machine_reader, memory_hotplug
from crash_hotplug.linux.crash_image import POINTER_SYMBOLS, find_pointer, read_crash_image
from crash_hotplug.linux.doctor.config_files import (
    RULES_DIRECTORIES,
    UNIT_DIRECTORIES,
    KernelConfig,
    RulesFile,
    Unit,
    is_active,
    read_kernel_config,
    read_rules_files,
    read_unit,
)
from crash_hotplug.linux.doctor.dump_saving import DumpSaving, read_dump_saving
from crash_hotplug.linux.doctor.kdump_family import NO_MEMHOTPLUG, NR_CPUS, KdumpSettings, read_kdump_settings
from crash_hotplug.linux.doctor.rooted_files import exists, read_config
from crash_hotplug.linux.doctor.virtio_mem import VirtioMem, read_virtio_mem
from crash_hotplug.linux.kexec_state import KexecState, read_kexec_state, why_locked_down, why_no_load
from crash_hotplug.linux.loading.live_machine import LiveMachine, why_live_image_not_updatable
from crash_hotplug.linux.loading.reload import can_reload, find_reload_tool
from crash_hotplug.linux.sysroot import Sysroot

UDEVD = "systemd-udevd.service"
AUTO_ONLINE = "/sys/devices/system/memory/auto_online_blocks"
KPTR_RESTRICT = "/proc/sys/kernel/kptr_restrict"
_REGISTERS_BOOT_CPU = (6, 9)
"""The kernel that registers the APIC of the CPU on which it starts before it reads the MADT
(topology_register_boot_apic(), arch/x86/kernel/cpu/topology.c)."""
OPTIONS = ("CONFIG_KEXEC", "CONFIG_KEXEC_FILE", "CONFIG_CRASH_HOTPLUG")
"""Options of the kernel's configuration that doctor reports."""


@dataclass(frozen=True)
class LoadedImage:
    """The loaded image, compared with its machine."""

    machine: Machine
    image: CrashImage
    assessment: Assessment


@dataclass(frozen=True)
class Diagnosis:
    """The facts about a machine.  None means that the machine lacks a fact, or that it cannot be read."""

    is_live: bool
    """Whether this is the running machine, not a saved tree."""
    state: KexecState
    release: str | None
    crashkernel: str | None
    """The ``crashkernel=`` options of the running kernel, as they were given."""
    config: KernelConfig | None
    has_btf: bool
    hidden_kernel: str | None
    """Why the crash image cannot be found through /proc/kcore and /proc/kallsyms; None where it can."""
    auto_online: str | None
    """State of new memory blocks: ``offline``, ``online``, ``online_movable``, ``online_kernel``."""
    kptr_restrict: str | None
    loaded: LoadedImage | None
    loaded_reason: str | None
    """Why *loaded* is None."""
    settings: KdumpSettings | None
    rules: Sequence[RulesFile]
    """The rules files that start reloads, and that of the installed family."""
    udevd: Unit
    service: Unit
    kdump: Unit | None
    saving: DumpSaving
    virtio_mem: VirtioMem | None
    situation: Situation


def read_diagnosis(sysroot: Sysroot) -> Diagnosis:
    """Read all facts; a masked one is None.

    :raise CannotTellError: a settings, rules or unit file may not be read
    :raise InputError: a file is invalid
    """
    state = read_kexec_state(sysroot)
    release = _text(sysroot, machine_reader.RELEASE)
    config = read_kernel_config(sysroot, release)
    loaded, loaded_reason = _read_loaded(sysroot, state)
    settings = read_kdump_settings(sysroot)
    own_rules = None if settings is None else settings.family.rules
    rules = [file for file in read_rules_files(sysroot) if file.name == own_rules or mentions_reload(file.text)]
    reloads = _find_reloads(sysroot, state, rules)
    service, udevd = read_unit(sysroot, SERVICE), read_unit(sysroot, UDEVD)
    in_place, in_place_reason = _can_update_in_place(sysroot, state, config, loaded)
    asked = {reload.needs_active for found in reloads.values() for reload in found}
    cmdline = (sysroot.read(machine_reader.CMDLINE) or b"").decode("ascii", "replace")
    situation = Situation(
        image_loaded=state.image_loaded,
        kernel_updates={"cpu": state.updates_cpus, "memory": state.updates_memory},
        describes_all_cpus=_describes_all_cpus(loaded),
        service_active=_is_service_active(sysroot, service),
        in_place=in_place,
        in_place_reason=in_place_reason,
        nothing_loads=why_no_load(state),
        reload_tool=_reload_tool(sysroot, settings),
        reloads=reloads,
        rules_known=sysroot.is_live or any(exists(sysroot, directory) for directory in RULES_DIRECTORIES),
        sandbox=None if udevd.path is None else sandbox_of(list(udevd.texts.values())),
        active_units={unit: is_active(sysroot, unit) for unit in asked if unit is not None},
        capture_kernel_claims_dimms=_claims_dimms(sysroot, loaded),
        capture_kernel_refuses_added_cpus=_refuses_added_cpus(release, loaded),
        lacks_sudo=settings is not None and settings.lacks_sudo,
        hands_over_keys=loaded is not None and loaded.image.luks_keys is not None,
    )
    return Diagnosis(
        is_live=sysroot.is_live,
        state=state,
        release=release,
        crashkernel=" ".join(re.findall(r"(?:^|\s)(crashkernel=\S+)", cmdline)) or None,
        config=config,
        has_btf=exists(sysroot, btf_file.PATH),
        hidden_kernel=_why_kernel_is_hidden(sysroot),
        auto_online=_text(sysroot, AUTO_ONLINE),
        kptr_restrict=_text(sysroot, KPTR_RESTRICT),
        loaded=loaded,
        loaded_reason=loaded_reason,
        settings=settings,
        rules=rules,
        udevd=udevd,
        service=service,
        kdump=None if settings is None else read_unit(sysroot, settings.family.unit),
        saving=read_dump_saving(sysroot, settings, release, config),
        virtio_mem=read_virtio_mem(sysroot, config, settings, release),
        situation=situation,
    )


def _text(sysroot: Sysroot, path: str) -> str | None:
    try:
        return sysroot.read_text(path)
    except CannotTellError:
        return None


def _read_loaded(sysroot: Sysroot, state: KexecState) -> tuple[LoadedImage | None, str | None]:
    if state.image_loaded is False:
        return None, "none is loaded"
    try:
        machine = machine_reader.read_machine(sysroot)
        image = read_crash_image(sysroot, machine.crashkernel)
        return LoadedImage(machine, image, assess(machine, image)), None
    except CrashHotplugError as error:
        return None, str(error)


def _describes_all_cpus(loaded: LoadedImage | None) -> bool | None:
    if loaded is None:
        return None
    described = {note.phys for note in loaded.assessment.header.cpu_notes}
    notes = [cpu.crash_notes for cpu in loaded.machine.cpus]
    if None in notes:
        return None if len(described) >= len(notes) else False
    return all(note.phys in described for note in notes if note is not None)


def _claims_dimms(sysroot: Sysroot, loaded: LoadedImage | None) -> bool | None:
    if not memory_hotplug.acpi_device_names(sysroot):
        return False
    if loaded is None or loaded.image.cmdline is None:
        return None
    return NO_MEMHOTPLUG not in loaded.image.cmdline.split()


def _refuses_added_cpus(release: str | None, loaded: LoadedImage | None) -> bool | None:
    if loaded is None or loaded.machine.architecture is not X86_64:
        return None if loaded is None else False
    version = kernel_version(release)
    if version is not None and version >= _REGISTERS_BOOT_CPU:
        return False
    if version is None or loaded.image.cmdline is None:
        return None
    return NR_CPUS not in loaded.image.cmdline.split()


def _is_service_active(sysroot: Sysroot, service: Unit) -> bool | None:
    if service.path is None and (sysroot.is_live or any(exists(sysroot, place) for place in UNIT_DIRECTORIES)):
        return False
    return service.is_active


def _find_reloads(sysroot: Sysroot, state: KexecState, rules: Sequence[RulesFile]) -> dict[UEvent, list[Reload]]:
    def read(path: str) -> str | None:
        try:
            return read_config(sysroot, path)
        except CrashHotplugError:
            return None

    context = RuleContext({"cpu": state.updates_cpus, "memory": state.updates_memory}, read)
    parsed = {file.path: parse_rules(file.text) for file in rules}
    return {
        event: [found for path, file in parsed.items() for found in find_reloads(file, event, context, path)]
        for change in Change
        for event in change.events
    }


def _can_update_in_place(
    sysroot: Sysroot, state: KexecState, config: KernelConfig | None, loaded: LoadedImage | None
) -> tuple[bool | None, str | None]:
    """Tell whether the service could update the image in place, and why not."""
    forbidden = _why_kexec_load_is_forbidden(state, config)
    if forbidden is not None:
        return False, forbidden
    if not sysroot.is_live:
        if loaded is not None and loaded.image.luks_keys is not None:
            return False, why_not_updatable(loaded.image, loaded.machine)
        return None, "a saved tree does not show whether the image can be updated in place"
    if loaded is None:
        return None, "the loaded image cannot be read"
    try:
        reason = why_live_image_not_updatable(LiveMachine(sysroot), loaded.image, loaded.machine)
    except CannotTellError as error:
        return None, str(error)
    return reason is None, reason


def _why_kexec_load_is_forbidden(state: KexecState, config: KernelConfig | None) -> str | None:
    if config is not None and not config.has("CONFIG_KEXEC"):
        return f"this kernel was built without kexec_load (no CONFIG_KEXEC in {config.path})"
    return why_locked_down(state)


def _reload_tool(sysroot: Sysroot, settings: KdumpSettings | None) -> str | None:
    if sysroot.is_live:
        tool = find_reload_tool()
        if tool is None:
            return "crash-hotplug load" if can_reload() else None
        return " ".join(tool)
    if settings is None or not exists(sysroot, settings.family.tool):
        return None
    return settings.family.reload


def _why_kernel_is_hidden(sysroot: Sysroot) -> str | None:
    try:
        if not kallsyms.read_symbols(sysroot, POINTER_SYMBOLS):
            return str(kallsyms.explain_missing(sysroot, "kexec_crash_image"))
        with kcore.Kcore(sysroot) as opened:
            find_pointer(sysroot, opened)
            return None
    except CrashHotplugError as error:
        return str(error)
