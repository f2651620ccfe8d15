"""What ``doctor`` tells beside its verdict: each fact in a sentence, with the file that it was read from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from crash_hotplug.core.assessment import Assessment
from crash_hotplug.core.doctor.hotplug_forecast import SERVICE, Situation
from crash_hotplug.core.doctor.rules_without_reload import WRITTEN_BY
from crash_hotplug.core.doctor.unit_file import Sandbox
from crash_hotplug.core.elfcorehdr import Dialect
from crash_hotplug.core.sizes import human_size
from crash_hotplug.linux import acpi_memory, btf_file, kexec_state, machine_reader
from crash_hotplug.linux.doctor.diagnosis import (
    AUTO_ONLINE,
    KPTR_RESTRICT,
    OPTIONS,
    UDEVD,
    Diagnosis,
    crashkernel_option,
)
from crash_hotplug.linux.doctor.kdump_family import NO_MEMHOTPLUG, KdumpSettings
from crash_hotplug.linux.doctor.systemd_units import Unit
from crash_hotplug.linux.doctor.udev_files import RulesFile

_RULE_OF_THUMB = (
    "rules of thumb for x86_64: kdump-utils reserves 256 MiB for 2 to 64 GiB of RAM and 512 MiB above, kdump-tools "
    "128 MiB (Debian 12)"
)


class Fact(NamedTuple):
    """One thing that was found."""

    topic: str
    sentence: str
    source: str
    """The file, or the files, that say so."""


def facts(diagnosis: Diagnosis) -> list[Fact]:
    """Return every fact, topic by topic."""
    return [
        *_kernel(diagnosis),
        *_limits(diagnosis),
        *_image(diagnosis),
        *_reserved(diagnosis),
        *_rules(diagnosis),
        *_settings(diagnosis),
        *_service(diagnosis),
    ]


def _kernel(diagnosis: Diagnosis) -> Iterator[Fact]:
    topic, state, config = "Kernel", diagnosis.state, diagnosis.config
    if diagnosis.release:
        yield Fact(topic, diagnosis.release, machine_reader.RELEASE)
    for subsystem, says, path in (
        ("CPUs", state.updates_cpus, kexec_state.CPU_HOTPLUG),
        ("memory", state.updates_memory, kexec_state.MEMORY_HOTPLUG),
    ):
        if says is None:
            yield Fact(topic, f"never updates an elfcorehdr for {subsystem}: no such attribute", path)
        else:
            does = "updates this image's elfcorehdr itself" if says else "does not update this image's elfcorehdr"
            yield Fact(topic, f"{does} for {subsystem} ({int(says)})", path)
    if state.elfcorehdr_size is not None:
        size = f"wants room of {human_size(state.elfcorehdr_size)} for an elfcorehdr"
        yield Fact(topic, size, " or ".join(kexec_state.ELFCOREHDR_SIZE))
    if config is not None:
        built = ", ".join(f"{option[len('CONFIG_') :]} {'yes' if config.has(option) else 'no'}" for option in OPTIONS)
        yield Fact(topic, f"built with: {built}", config.path)
    if diagnosis.is_live:
        btf = "tells the layout of struct kimage (BTF)" if diagnosis.has_btf else "has no BTF: known layouts are tried"
        yield Fact(topic, btf, btf_file.PATH)
        hidden = diagnosis.hidden_kernel
        found = "the loaded image can be found" if hidden is None else f"the loaded image cannot be found: {hidden}"
        yield Fact(topic, found, "/proc/kallsyms, /proc/kcore")
    if diagnosis.auto_online is not None:
        yield Fact(topic, f"new memory blocks: {diagnosis.auto_online}", AUTO_ONLINE)


def _limits(diagnosis: Diagnosis) -> Iterator[Fact]:
    topic, state = "Limits", diagnosis.state
    lockdown = state.lockdown or "no lockdown in this kernel"
    yield Fact(topic, lockdown if state.lockdown is None else f"lockdown: {lockdown}", kexec_state.LOCKDOWN)
    if state.load_disabled is not None:
        yield Fact(topic, f"kernel.kexec_load_disabled = {int(state.load_disabled)}", kexec_state.LOAD_DISABLED)
    if state.load_limit is not None:
        limit = "no limit" if state.load_limit < 0 else f"{state.load_limit} more loads, and each update counts"
        yield Fact(topic, f"kernel.kexec_load_limit_panic = {state.load_limit}: {limit}", kexec_state.LOAD_LIMIT)
    if diagnosis.kptr_restrict == "2":
        yield Fact(topic, "kernel.kptr_restrict = 2 hides kernel addresses even from root", KPTR_RESTRICT)


def _image(diagnosis: Diagnosis) -> Iterator[Fact]:
    topic, loaded = "Crash image", diagnosis.loaded
    source = " or ".join(kexec_state.LOADED)
    if diagnosis.state.image_loaded is None:
        yield Fact(topic, "whether one is loaded is not known", source)
    elif not diagnosis.state.image_loaded:
        yield Fact(topic, "none is loaded", source)
    elif loaded is None:
        yield Fact(topic, f"one is loaded; who loaded it is not known: {diagnosis.loaded_reason}", source)
    else:
        yield Fact(topic, _loader(loaded.assessment), "its elfcorehdr and command line")
        described, possible = len(loaded.assessment.header.cpu_notes), len(loaded.machine.cpus)
        yield Fact(topic, f"describes {described} CPUs of {possible} possible", "its elfcorehdr")
        if loaded.image.cmdline is not None:
            has = "has" if NO_MEMHOTPLUG in loaded.image.cmdline.split() else "lacks"
            yield Fact(topic, f"the capture kernel's command line {has} {NO_MEMHOTPLUG}", "its boot_params")
        if loaded.machine.acpi_memory_devices:
            plugged = f"{loaded.machine.acpi_memory_devices} ACPI memory devices are plugged in"
            yield Fact(topic, plugged, acpi_memory.DIRECTORY)
        yield Fact(topic, _in_place(diagnosis.situation), "the image, and what kexec_load allows")


def _in_place(situation: Situation) -> str:
    if situation.in_place:
        return "can be updated in place"
    if situation.in_place is None:
        return situation.in_place_reason or "whether it can be updated in place is not known"
    return f"cannot be updated in place: {situation.in_place_reason}"


def _loader(assessment: Assessment) -> str:
    by = "kexec_file_load (kexec -s)" if assessment.dialect is Dialect.KERNEL else "kexec_load (kexec -c)"
    return f"loaded by {by}"


def _reserved(diagnosis: Diagnosis) -> Iterator[Fact]:
    topic, loaded = "Reserved", diagnosis.loaded
    option = crashkernel_option(diagnosis.cmdline)
    if option is not None:
        yield Fact(topic, f"the kernel was given {option}", machine_reader.CMDLINE)
    size = diagnosis.state.reserved_size
    if size is None:
        return
    sentence = f"{human_size(size)} are reserved for the capture kernel"
    if loaded is not None and loaded.image.kimage is not None:
        used = sum(segment.memsz for segment in loaded.image.kimage.segments)
        sentence += f"; the image takes {human_size(used)}, which leaves it {human_size(size - used)} to run in"
    yield Fact(topic, sentence, " or ".join(kexec_state.RESERVED_SIZE))
    if loaded is not None:
        yield Fact(topic, f"{human_size(loaded.machine.ram.size)} of RAM; {_RULE_OF_THUMB}", "/proc/iomem")


def _rules(diagnosis: Diagnosis) -> Iterator[Fact]:
    topic = "udev rules"
    if not diagnosis.situation.rules_known:
        yield Fact(topic, "this saved tree holds none", "udev's rules directories")
        return
    if not diagnosis.rules:
        yield Fact(topic, "none starts a reload of the crash image", "udev's rules directories")
    for file in diagnosis.rules:
        hides = f" (hides {', '.join(file.hidden)})" if file.hidden else ""
        yield Fact(topic, f"{_what_rules_do(diagnosis, file)}{hides}", file.path)
    if diagnosis.situation.sandbox is None:
        yield Fact(topic, f"{UDEVD} is not installed", "systemd's unit directories")
    else:
        places = ", ".join([diagnosis.udevd.path or "", *diagnosis.udevd.drop_ins])
        yield Fact(topic, _sandbox_sentence(diagnosis.situation.sandbox), places)


def _sandbox_sentence(sandbox: Sandbox) -> str:
    if sandbox is Sandbox.OPEN:
        return "systemd-udevd's sandbox lets a rule's program load an image"
    stops = "may stop" if sandbox is Sandbox.ONE_SYSTEM_CALL else "stops"
    return f"systemd-udevd's sandbox {stops} a rule's program that loads an image: its {sandbox.value}"


def _what_rules_do(diagnosis: Diagnosis, file: RulesFile) -> str:
    if file.is_off:
        return "switched off"
    events = [
        f"{event.subsystem} {event.action}"
        for event, found in diagnosis.situation.reloads.items()
        if any(start.path == file.path for start in found)
    ]
    waiting = ", and becomes live when an image is loaded" if file.waiting else ""
    if not events:
        return f"starts no reload{_why_none(diagnosis, file)}{waiting}"
    programs = {
        start.start.program
        for found in diagnosis.situation.reloads.values()
        for start in found
        if start.path == file.path
    }
    return f"reloads on {', '.join(events)}: {'; '.join(sorted(programs))}{waiting}"


def _why_none(diagnosis: Diagnosis, file: RulesFile) -> str:
    if file.text.startswith(f"# {WRITTEN_BY}"):
        return ": written by crash-hotplug doctor --fix"
    stands_back = "crash_hotplug" in file.text and any(diagnosis.situation.kernel_updates.values())
    return ": it stands back, because the kernel does the work" if stands_back else ""


def _settings(diagnosis: Diagnosis) -> Iterator[Fact]:
    topic, settings = "kdump", diagnosis.settings
    if settings is None:
        yield Fact(topic, "neither kdump-tools, kdumpctl nor openSUSE's kdump is installed", "their files")
        return
    family = settings.family
    yield Fact(topic, family.name, family.tool)
    if diagnosis.kdump is not None:
        yield Fact(topic, _unit_sentence(diagnosis.kdump), diagnosis.kdump.path or "systemd's unit directories")
    if settings.text is None:
        yield Fact(topic, "there is no settings file: the tool's defaults hold", family.settings)
    yield Fact(topic, _arguments(settings), family.settings)
    following = settings.next_has_no_memhotplug
    has = "will have" if following else "may lack" if following is None else "will lack"
    given = (
        "" if not settings.append or not settings.append.value else f" ({family.append}, line {settings.append.line})"
    )
    yield Fact(topic, f"the next capture kernel {has} {NO_MEMHOTPLUG}{given}", family.settings)


def _arguments(settings: KdumpSettings) -> str:
    arguments, name = settings.arguments, settings.family.arguments
    if arguments is None or arguments.value == "":
        return f"{name} is not set: kexec's own choice between kexec_load and kexec_file_load"
    if arguments.value is None:
        return f"{name} (line {arguments.line}) is worked out by the shell: the loader is not known"
    return f'{name}="{arguments.value}" (line {arguments.line})'


def _service(diagnosis: Diagnosis) -> Iterator[Fact]:
    unit = diagnosis.service
    yield Fact("Service", _unit_sentence(unit), unit.enabled_by or unit.path or "systemd's unit directories")


def _unit_sentence(unit: Unit) -> str:
    if unit.path is None:
        return f"{unit.name} is not installed"
    if unit.is_masked:
        return f"{unit.name} is masked"
    enabled = "enabled" if unit.enabled_by is not None else "not enabled"
    active = "active" if unit.is_active else "whether active is not known" if unit.is_active is None else "not active"
    return f"{unit.name} is installed, {enabled}, {active}"


def advice(diagnosis: Diagnosis) -> list[str]:
    """Return what a person could do, each a sentence or a command."""
    if not diagnosis.service.is_installed:
        return [f"install crash-hotplug's package: it has {SERVICE}, which keeps the image accurate by itself"]
    found = []
    settings_lack = diagnosis.settings is not None and diagnosis.settings.next_has_no_memhotplug is False
    if settings_lack or any(diagnosis.situation.reloads.values()):
        found.append("crash-hotplug doctor --fix    (leaves the work to the service; --undo takes it back)")
    found += after_fix(diagnosis)
    settings = diagnosis.settings
    if diagnosis.situation.capture_kernel_claims_dimms and settings is not None and settings.next_has_no_memhotplug:
        found.append(f"{settings.family.reload}    (the loaded capture kernel lacks {NO_MEMHOTPLUG})")
    return found


def after_fix(diagnosis: Diagnosis) -> list[str]:
    """Return what is to be done to the service beside --fix."""
    unit = diagnosis.service
    runs = unit.enabled_by is not None and unit.is_active is not False
    return [] if runs or not unit.is_installed else [f"systemctl enable --now {SERVICE}"]
