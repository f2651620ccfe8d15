# SPDX-License-Identifier: MIT
"""The report of ``doctor``: the verdict, the facts with the files that they were read from, and advice."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.output import BAD, GOOD, UNSURE, print_headline, print_labelled, printable
from crash_hotplug.core.doctor.forecast import SERVICE, Forecast, overall
from crash_hotplug.core.doctor.settings_files import Sandbox
from crash_hotplug.core.doctor.udev_rules import WRITTEN_BY
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.linux import btf_file, kexec_state, machine_reader, memory_hotplug
from crash_hotplug.linux.doctor import dump_saving, virtio_mem
from crash_hotplug.linux.doctor.config_files import RulesFile, Unit
from crash_hotplug.linux.doctor.diagnosis import AUTO_ONLINE, KPTR_RESTRICT, OPTIONS, UDEVD, Diagnosis
from crash_hotplug.linux.doctor.kdump_family import NO_MEMHOTPLUG, NR_CPUS, KdumpSettings

_RULES_PLACES = "udev's rules directories"
_UNIT_PLACES = "systemd's unit directories"
_WRAPPER = textwrap.TextWrapper(
    width=120, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
)


class Judgement(NamedTuple):
    """The verdict on the next hot-plug."""

    word: str
    sentence: str
    code: int
    """The exit code."""


def judge(diagnosis: Diagnosis, forecasts: Sequence[Forecast]) -> Judgement:
    """Sum up the forecasts."""
    if diagnosis.state.image_loaded is False:
        return Judgement("no crash image", "none is loaded; a panic now leaves no dump", exit_codes.NO_IMAGE)
    handled = overall(diagnosis.situation, forecasts)
    sentence = _grouped([found for found in forecasts if found.is_handled is handled])
    if handled:
        return Judgement("handled", sentence, exit_codes.DONE)
    if handled is False:
        return Judgement("not handled", sentence, exit_codes.NOT_ACCURATE)
    if diagnosis.state.image_loaded is None:
        sentence = "whether a crash image is loaded is not known (no kexec_crash_loaded)"
    return Judgement("cannot tell", sentence, exit_codes.CANNOT_TELL)


def _grouped(forecasts: Sequence[Forecast]) -> str:
    """Write each sentence once, after the changes to which it applies: "CPUs and added memory: ..."."""
    by_sentence: dict[str, list[Forecast]] = {}
    for found in forecasts:
        by_sentence.setdefault(found.sentence, []).append(found)
    return "; ".join(f"{_subjects(group)}: {sentence}" for sentence, group in by_sentence.items())


def _subjects(forecasts: Sequence[Forecast]) -> str:
    words = []
    for subsystem, both in (("cpu", "CPUs"), ("memory", "memory")):
        labels = [found.change.label for found in forecasts if found.change.subsystem == subsystem]
        words += [both] if len(labels) == 2 else labels
    return " and ".join(words)


class Fact(NamedTuple):
    """One fact about the machine."""

    topic: str
    sentence: str
    source: str
    """The file or files from which it was read."""


def show(verdict: Judgement, forecasts: Sequence[Forecast], found: Sequence[Fact], to_do: Sequence[str]) -> None:
    """Print the report for people.

    :param forecasts: none where no image is loaded
    """
    colours = {exit_codes.DONE: GOOD, exit_codes.CANNOT_TELL: UNSURE}
    print_headline(verdict.word, verdict.sentence, colours.get(verdict.code, BAD))
    if len({forecast.sentence for forecast in forecasts}) > 1:
        print("\nAt the next hot-plug")
        signs = {True: "handled", False: "not handled", None: "cannot tell"}
        for change, is_handled, sentence in forecasts:
            print_labelled(f"  {change.label}", [f"{signs[is_handled]}: {sentence}"], 18)
    topic = None
    for fact in found:
        if fact.topic != topic:
            topic = fact.topic
            print(f"\n{topic}")
        print(_WRAPPER.fill(printable(f"{fact.sentence}  [{fact.source}]")))
    if to_do:
        print("\nTo do", *map(printable, to_do), sep="\n  ")


def report(
    verdict: Judgement, forecasts: Sequence[Forecast], found: Sequence[Fact], to_do: Sequence[str]
) -> dict[str, Any]:
    """Return the report for JSON."""
    return {
        "command": "doctor",
        "verdict": verdict.word,
        "reason": verdict.sentence,
        "next_hotplug": [
            {"change": change.label, "handled": is_handled, "reason": sentence}
            for change, is_handled, sentence in forecasts
        ],
        "facts": [fact._asdict() for fact in found],
        "to_do": list(to_do),
    }


def facts(diagnosis: Diagnosis) -> list[Fact]:
    """Return every fact, topic by topic."""
    topics = {
        "Kernel": _kernel,
        "Limits": _limits,
        "Crash image": _image,
        "Reserved": _reserved,
        "virtio-mem": _virtio_mem,
        "udev rules": _rules,
        "kdump": _kdump,
        "Dump": _dump,
        "Service": _service,
    }
    return [Fact(topic, *found) for topic, find in topics.items() for found in find(diagnosis)]


Facts = Iterator[tuple[str, str]]
"""Sentences, each with its source."""


def _kernel(diagnosis: Diagnosis) -> Facts:
    state, config = diagnosis.state, diagnosis.config
    if diagnosis.release:
        yield diagnosis.release, machine_reader.RELEASE
    for subsystem, updates, path in (
        ("CPUs", state.updates_cpus, kexec_state.CPU_HOTPLUG),
        ("memory", state.updates_memory, kexec_state.MEMORY_HOTPLUG),
    ):
        if updates is None:
            yield f"never updates an elfcorehdr for {subsystem}: no such attribute", path
        else:
            does = "updates this image's elfcorehdr itself" if updates else "does not update this image's elfcorehdr"
            yield f"{does} for {subsystem} ({int(updates)})", path
    if state.elfcorehdr_size is not None:
        size = f"asks for {human_size(state.elfcorehdr_size)} of room for an elfcorehdr"
        yield size, " or ".join(kexec_state.ELFCOREHDR_SIZE)
    if config is not None:
        built = ", ".join(f"{option[len('CONFIG_') :]} {'yes' if config.has(option) else 'no'}" for option in OPTIONS)
        yield f"built with: {built}", config.path
    if diagnosis.is_live:
        has = "has BTF, which gives the layout of struct kimage"
        yield has if diagnosis.has_btf else "has no BTF: known layouts of struct kimage are tried", btf_file.PATH
        hidden = diagnosis.hidden_kernel
        found = "the loaded image can be found" if hidden is None else f"the loaded image cannot be found: {hidden}"
        yield found, "/proc/kallsyms, /proc/kcore"
    if diagnosis.auto_online is not None:
        yield f"new memory blocks: {diagnosis.auto_online}", AUTO_ONLINE


def _limits(diagnosis: Diagnosis) -> Facts:
    state = diagnosis.state
    yield f"lockdown: {state.lockdown}" if state.lockdown else "no lockdown in this kernel", kexec_state.LOCKDOWN
    if state.load_disabled is not None:
        yield f"kernel.kexec_load_disabled = {int(state.load_disabled)}", kexec_state.LOAD_DISABLED
    if state.load_limit is not None:
        limit = "no limit" if state.load_limit < 0 else f"{state.load_limit} more loads, and each update is one"
        yield f"kernel.kexec_load_limit_panic = {state.load_limit}: {limit}", kexec_state.LOAD_LIMIT
    if diagnosis.kptr_restrict == "2":
        yield "kernel.kptr_restrict = 2 hides kernel addresses even from root", KPTR_RESTRICT


def _image(diagnosis: Diagnosis) -> Facts:
    state, loaded, situation = diagnosis.state, diagnosis.loaded, diagnosis.situation
    source = " or ".join(kexec_state.LOADED)
    if state.image_loaded is None:
        yield "whether one is loaded is not known", source
    elif not state.image_loaded:
        yield "none is loaded", source
    elif loaded is None:
        yield f"one is loaded; its loader is not known: {diagnosis.loaded_reason}", source
    else:
        by_kernel = loaded.assessment.loader is Loader.KERNEL
        loader = "kexec_file_load (kexec -s)" if by_kernel else "kexec_load (kexec -c)"
        yield f"loaded by {loader}", "its elfcorehdr and command line"
        described, possible = len(loaded.assessment.header.cpu_notes), len(loaded.machine.cpus)
        yield f"describes {described} CPUs of {possible} possible", "its elfcorehdr"
        if loaded.image.cmdline is not None:
            has = "has" if NO_MEMHOTPLUG in loaded.image.cmdline.split() else "lacks"
            yield f"the capture kernel's command line {has} {NO_MEMHOTPLUG}", "the image"
        if situation.capture_kernel_refuses_added_cpus:
            yield f"the capture kernel's command line lacks {NR_CPUS}: it starts on no CPU that was added", "the image"
        if loaded.machine.acpi_memory_devices:
            devices = count(loaded.machine.acpi_memory_devices, "ACPI memory device is", "ACPI memory devices are")
            yield f"{devices} plugged in", memory_hotplug.ACPI_DEVICES
        reason = situation.in_place_reason or ""
        in_place = {True: "can be updated in place", False: f"cannot be updated in place: {reason}", None: reason}
        yield in_place[situation.in_place], "the image, and the restrictions of kexec_load"


def _reserved(diagnosis: Diagnosis) -> Facts:
    loaded, size = diagnosis.loaded, diagnosis.state.reserved_size
    if diagnosis.crashkernel is not None:
        yield f"the kernel was given {diagnosis.crashkernel}", machine_reader.CMDLINE
    if size is None:
        return
    sentence = f"{human_size(size)} are reserved for the capture kernel"
    if loaded is not None and loaded.image.kimage is not None:
        used = sum(segment.memsz for segment in loaded.image.kimage.segments)
        sentence += f"; the image takes {human_size(used)}, which leaves it {human_size(size - used)} to run in"
    yield sentence, " or ".join(kexec_state.RESERVED_SIZE)
    if loaded is not None:
        advice = loaded.machine.architecture.reservation_advice
        yield f"{human_size(loaded.machine.ram.size)} of RAM" + (f"; {advice}" if advice else ""), "/proc/iomem"


def _virtio_mem(diagnosis: Diagnosis) -> Facts:
    found = diagnosis.virtio_mem
    if found is None:
        return
    devices = f"{count(len(found.devices), 'device')} ({', '.join(found.devices)})"
    yield f"{devices}: a memory block that is plugged in part is described as a whole", virtio_mem.DEVICES
    source = found.initramfs or "the capture kernel's initramfs"
    driver = f"the driver {virtio_mem.DRIVER}"
    if found.has_driver:
        has = f"the capture kernel has {driver}" + (f": {found.reason}" if found.reason else "")
        yield f"{has}, so it does not read memory that is not plugged", source
    elif found.has_driver is None:
        yield f"whether the capture kernel has {driver} is not known: {found.reason}", source
    else:
        reads = "it reads memory that is not plugged, which the hypervisor may refuse or has to provide"
        yield f"the capture kernel lacks {driver}: {reads}", source


def _rules(diagnosis: Diagnosis) -> Facts:
    if not diagnosis.situation.rules_known:
        yield "this saved tree has none", _RULES_PLACES
        return
    if not diagnosis.rules:
        yield "none starts a reload of the crash image", _RULES_PLACES
    for file in diagnosis.rules:
        hides = f" (hides {', '.join(file.hidden)})" if file.hidden else ""
        yield f"{_rules_sentence(diagnosis, file)}{hides}", file.path
    sandbox = diagnosis.situation.sandbox
    if sandbox is None:
        yield f"{UDEVD} is not installed", _UNIT_PLACES
    elif sandbox is Sandbox.OPEN:
        yield "systemd-udevd's sandbox allows a rule's program to load an image", ", ".join(diagnosis.udevd.texts)
    else:
        stops = "may stop" if sandbox is Sandbox.ONE_SYSTEM_CALL else "stops"
        sentence = f"systemd-udevd's sandbox {stops} a rule's program that loads an image: its {sandbox.value}"
        yield sentence, ", ".join(diagnosis.udevd.texts)


def _rules_sentence(diagnosis: Diagnosis, file: RulesFile) -> str:
    if file.is_off:
        return "disabled"
    live = ", and becomes live when an image is loaded" if file.is_template else ""
    situation = diagnosis.situation
    started = [(event, reload) for event, found in situation.reloads.items() for reload in found]
    started = [(event, reload) for event, reload in started if reload.path == file.path]
    if started:
        events = ", ".join(dict.fromkeys(f"{event.subsystem} {event.action}" for event, _reload in started))
        programs = "; ".join(sorted({reload.program for _event, reload in started}))
        return f"reloads on {events}: {programs}{live}"
    if file.text.startswith(f"# {WRITTEN_BY}"):
        return f"starts no reload: written by crash-hotplug doctor --fix{live}"
    if "crash_hotplug" in file.text and any(situation.kernel_updates.values()):
        return f"starts no reload, because the kernel updates the header itself{live}"
    return f"starts no reload{live}"


def _kdump(diagnosis: Diagnosis) -> Facts:
    settings = diagnosis.settings
    if settings is None:
        yield "neither kdump-tools, kdumpctl nor openSUSE's kdump is installed", "their files"
        return
    family, append = settings.family, settings.append
    yield family.name, family.tool
    if diagnosis.kdump is not None:
        yield _unit_sentence(diagnosis.kdump), diagnosis.kdump.path or _UNIT_PLACES
    if settings.text is None:
        yield "there is no settings file: the tool's defaults apply", family.settings
    if settings.is_off:
        yield f"{family.switch} is 0 or not set: no crash image is loaded at boot", family.settings
    yield _arguments_sentence(settings), family.settings
    has = {True: "will have", None: "may lack", False: "will lack"}[settings.next_has_no_memhotplug]
    by = f" ({family.append}, line {append.line})" if append and append.value else ""
    yield f"the next capture kernel {has} {NO_MEMHOTPLUG}{by}", family.settings


def _arguments_sentence(settings: KdumpSettings) -> str:
    arguments, name = settings.arguments, settings.family.arguments
    if arguments is None or arguments.value == "":
        return f"{name} is not set: kexec chooses between kexec_load and kexec_file_load"
    if arguments.value is None:
        return f"only a shell can expand {name} (line {arguments.line}): the system call is not known"
    return f'{name}="{arguments.value}" (line {arguments.line})'


def _dump(diagnosis: Diagnosis) -> Facts:
    saving = diagnosis.saving
    if saving.program is None:
        yield "makedumpfile is not installed: its version is not known", "the directories of programs"
    elif saving.version is None:
        yield "the version of makedumpfile is not known: the program contains none", saving.program
    else:
        yield f"makedumpfile {saving.version}", saving.program
        for lack in saving.shortcomings:
            first = ".".join(map(str, lack.kernel))
            sentence = f"too old for Linux {first} and newer unless the distribution added commit {lack.commit}"
            yield f"makedumpfile is {sentence}: {lack.effect}", f"{saving.program}, {machine_reader.RELEASE}"
    if saving.encrypted is not None:
        sentence = f"{saving.directory}, which takes the dump, is on the encrypted volume {saving.encrypted}"
        yield sentence, f"{dump_saving.MOUNTS}, {dump_saving.BLOCK_DEVICES}"
    if diagnosis.situation.hands_over_keys:
        yield "the image hands volume keys to the capture kernel; a reload needs them again", "the image"


def _service(diagnosis: Diagnosis) -> Facts:
    unit = diagnosis.service
    yield _unit_sentence(unit), unit.enabled_by or unit.path or _UNIT_PLACES


def _unit_sentence(unit: Unit) -> str:
    if unit.path is None:
        return f"{unit.name} is not installed"
    if unit.is_masked:
        return f"{unit.name} is masked"
    enabled = "enabled" if unit.enabled_by is not None else "not enabled"
    active = {True: "active", False: "not active", None: "state unknown"}[unit.is_active]
    return f"{unit.name} is installed, {enabled}, {active}"


def advice(diagnosis: Diagnosis) -> list[str]:
    """Return the next actions for a person, each a sentence or a command."""
    return [*_advice_for_hotplug(diagnosis), *_advice_for_dump(diagnosis)]


def _advice_for_hotplug(diagnosis: Diagnosis) -> list[str]:
    situation, settings = diagnosis.situation, diagnosis.settings
    driver = _driver_advice(diagnosis)
    if not diagnosis.service.is_installed:
        return [f"install the crash-hotplug package: its {SERVICE} keeps the image accurate", *driver]
    found = []
    if settings is not None and settings.is_off:
        found.append(
            f"set {settings.family.switch}=1 in {settings.family.settings}; systemctl restart {settings.family.unit}"
        )
    next_has = None if settings is None else settings.next_has_no_memhotplug
    if next_has is False or any(situation.reloads.values()):
        found.append("crash-hotplug doctor --fix    (disables the reloads of udev; --undo restores every file)")
    found += advice_after_fix(diagnosis)
    if situation.capture_kernel_claims_dimms and settings is not None and next_has:
        found.append(f"{settings.family.reload}    (the loaded capture kernel lacks {NO_MEMHOTPLUG})")
    return [*found, *driver]


def _driver_advice(diagnosis: Diagnosis) -> list[str]:
    """Return how to add the virtio-mem driver to the capture kernel's initramfs, where it is known to be missing."""
    found, settings = diagnosis.virtio_mem, diagnosis.settings
    if found is None or found.has_driver is not False or settings is None:
        return []
    command = settings.family.add_driver.format(driver=virtio_mem.DRIVER, release=diagnosis.release)
    return [f"{command}    (the capture kernel lacks {virtio_mem.DRIVER})"]


def _advice_for_dump(diagnosis: Diagnosis) -> list[str]:
    saving = diagnosis.saving
    found = []
    for lack in saving.shortcomings:
        newer = f"install a makedumpfile newer than {'.'.join(map(str, lack.last))}"
        found.append(f"{newer}, load the image again, and until then {lack.way_out}    ({lack.effect})")
    if diagnosis.situation.capture_kernel_refuses_added_cpus and diagnosis.settings is not None:
        found.append(_one_cpu_advice(diagnosis.settings))
    if diagnosis.situation.hands_over_keys:
        reuse, load = f"{dump_saving.KEYS}/reuse", "kdumpctl reload"
        why = "a reload without it asks for the volume keys again; kdump-udev-throttler never writes it"
        found.append(f"after a hot-plug: echo 1 > {reuse}; {load}; echo 0 > {reuse}    ({why})")
    elif saving.encrypted is not None:
        keys = "let kdumpctl hand the volume key over (kdumpctl setup-crypttab; Linux 6.16 and newer)"
        why = f"after a panic the capture kernel waits for the passphrase of {saving.encrypted}"
        found.append(f"save the dump to a volume without encryption or to another machine, or {keys}    ({why})")
    return found


def _one_cpu_advice(settings: KdumpSettings) -> str:
    family = settings.family
    to_set = f"set {family.cpus}=1" if family.cpus else f"add {NR_CPUS} to {family.append}"
    return f"{to_set} in {family.settings}; {family.reload}    (a panic on an added CPU leaves no dump)"


def advice_after_fix(diagnosis: Diagnosis) -> list[str]:
    """Return the actions that remain after --fix: the service has to run."""
    return [f"systemctl enable --now {SERVICE}"] if _is_service_idle(diagnosis) else []


def warnings_after_fix(diagnosis: Diagnosis) -> list[str]:
    """Return what --fix leaves worse than it found it, each a sentence: no reloads, and no service in their place."""
    if not _is_service_idle(diagnosis):
        return []
    is_enabled = diagnosis.service.enabled_by is not None
    state = "is masked" if diagnosis.service.is_masked else "does not run" if is_enabled else "is not enabled"
    return [f"{SERVICE} {state}: until it runs, nothing corrects the header in place of the disabled reloads"]


def _is_service_idle(diagnosis: Diagnosis) -> bool:
    """Whether the service is installed and does not keep the image accurate."""
    unit = diagnosis.service
    return unit.is_installed and (unit.enabled_by is None or unit.is_active is False)
