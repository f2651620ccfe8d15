# SPDX-License-Identifier: MIT
"""``crash-hotplug status``: report whether a panic now would be dumped completely."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, add_sysroot, read_input
from crash_hotplug.cli.output import (
    comparison_items,
    print_comparison,
    print_json,
    print_labelled,
    print_verdict,
    ranges_json,
)
from crash_hotplug.cli.picture import add_picture, check_picture, headline, write_picture
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.expected import with_capture_ram
from crash_hotplug.core.finding import Comparison, Kind, Verdict
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.core.verdict import Assessment, assess
from crash_hotplug.linux.crash_image import read_crash_image
from crash_hotplug.linux.kexec_state import KexecState, read_kexec_state
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot, open_sysroot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crash_hotplug.core.arch.architecture import Architecture
    from crash_hotplug.core.picture.states import Picture

DESCRIPTION = """\
Compares the elfcorehdr of the loaded crash image with the machine as it is now.  The first line says
whether a panic right now would be dumped completely.  Reads /proc and /sys (as root), or a tree
that `crash-hotplug snapshot` saved.
"""
EXAMPLES = """\
examples:
  crash-hotplug status                          this machine, as root
  crash-hotplug status --sysroot case-4711/     a saved tree
  crash-hotplug status --sysroot case.tar.xz    the same in a tar archive, or a sosreport
  crash-hotplug status --picture now.svg        a picture of memory and CPUs besides
  crash-hotplug status --json | jq .verdict
"""
_LOADERS = {
    Loader.KERNEL: "loaded by kexec_file_load (kexec -s)",
    Loader.KEXEC_TOOLS: "loaded by kexec_load (kexec -c)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_sysroot(parser)
    parser.add_argument("--elfcorehdr", metavar="FILE", help="judge this header instead of the loaded one")
    add_picture(parser)
    add_json(parser)


class _Assessed(NamedTuple):
    """A machine, its loaded image, and the comparison of the two."""

    machine: Machine
    image: CrashImage
    assessment: Assessment
    in_place: dict[str, Any] | None
    """Whether the image can be updated in place, for JSON; None where no running kernel was asked."""


class _Judged(NamedTuple):
    """The verdict, and what it is based on."""

    state: KexecState
    verdict: Verdict
    sentence: str
    assessed: _Assessed | None = None
    """None where no header was compared."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :return: the exit code of the verdict
    """
    check_picture(arguments.picture)
    sysroot = open_sysroot(arguments.sysroot)
    given = None if arguments.elfcorehdr is None else read_input(arguments.elfcorehdr, "the elfcorehdr")
    try:
        judged = _judge(sysroot, given)
    except InputError as error:
        if given is None and sysroot.is_live:  # no bad input: the kernel's own file is truncated or hidden
            raise CannotTellError(str(error)) from error
        raise
    if arguments.picture is not None:
        write_picture(arguments.picture, _picture(judged))
    if arguments.json:
        print_json(_report(judged))
    else:
        _show(judged)
    return exit_codes.of_verdict(judged.verdict)


def _judge(sysroot: Sysroot, given: bytes | None) -> _Judged:
    state = read_kexec_state(sysroot)
    if state.image_loaded is False and given is None:
        return _Judged(state, Verdict.NO_IMAGE, _no_image_sentence(state))
    try:
        if sysroot.is_live and state.image_loaded is None and given is None:
            raise CannotTellError("/sys/kernel has no kexec_crash_loaded: this kernel was built without kexec")
        machine = read_machine(sysroot)
        image = read_crash_image(sysroot, machine.crashkernel) if given is None else CrashImage(given)
    except CannotTellError as error:
        return _Judged(state, Verdict.CANNOT_TELL, str(error))
    assessment = assess(machine, image)
    live = sysroot.is_live and given is None
    in_place = _in_place(sysroot, image, machine) if live else None
    comparison = assessment.comparison
    assessed = _Assessed(machine, image, assessment, in_place)
    return _Judged(state, comparison.verdict, verdict_sentence(comparison), assessed)


def _loaded_sentence(state: KexecState) -> str:
    if state.image_loaded is None:
        return "it is not known whether one is loaded (no kexec_crash_loaded)"
    return "one is loaded"


def _no_image_sentence(state: KexecState) -> str:
    reserved = f"{human_size(state.reserved_size)} are reserved for one" if state.reserved_size else ""
    hint = reserved or "and no memory is reserved for one (crashkernel=)"
    return f"none is loaded; a panic now leaves no dump ({hint})"


def _picture(judged: _Judged) -> Picture:
    # Imported here: without --picture it is not needed, and status has to start fast.
    from crash_hotplug.core.picture.states import Picture, status_picture  # noqa: PLC0415

    title, assessed = headline(judged.verdict.value, judged.sentence), judged.assessed
    if assessed is None:
        return Picture(title, "crash-hotplug status", remark="No header was compared with the machine.")
    machine = with_capture_ram(assessed.machine, assessed.image)
    subtitle = f"crash-hotplug status, {machine.architecture.name}, kernel {machine.kernel_release or 'not known'}"
    assessment = assessed.assessment
    return status_picture(title, subtitle, machine, assessment.header, assessment.comparison)


def verdict_sentence(comparison: Comparison) -> str:
    """Return one sentence about the dump of a panic now."""
    if comparison.verdict is Verdict.ACCURATE:
        return "a panic now would be dumped completely"
    if comparison.verdict is Verdict.CANNOT_TELL:
        return "no defect was found, but some checks could not be made"
    parts = list(_losses(comparison))
    others = len(comparison.findings) - sum(1 for f in comparison.findings if f.kind in _SUMMED)
    if others:
        parts.append(f"has {count(others, 'more defect' if parts else 'defect')}")
    return "a dump of a panic now " + " and ".join(parts)


_SUMMED = (Kind.CPU_MISSING, Kind.MEMORY_MISSING, Kind.MEMORY_GONE)


def _losses(comparison: Comparison) -> Iterator[str]:
    cpus: list[int | None] = []
    missing = gone = 0
    for finding in comparison.findings:
        if finding.kind is Kind.MEMORY_MISSING:
            missing += finding.size
        elif finding.kind is Kind.MEMORY_GONE:
            gone += finding.size
        elif finding.kind is Kind.CPU_MISSING:
            cpus.append(finding.cpu)
    lost = []
    if cpus:
        lost.append(f"CPU {cpus[0]}" if len(cpus) == 1 and cpus[0] is not None else count(len(cpus), "CPU"))
    if missing:
        lost.append(f"{human_size(missing)} of memory")
    if lost:
        yield f"would lack {' and '.join(lost)}"
    if gone:
        yield f"would read {human_size(gone)} of memory that is gone"


def _in_place(sysroot: Sysroot, image: CrashImage, machine: Machine) -> dict[str, Any]:
    """Return whether `crash-hotplug update` could update the image in place, or why not, for JSON."""
    # Imported here: status of a saved tree does not need it and has to start fast.
    from crash_hotplug.linux.btf_file import layout_source  # noqa: PLC0415
    from crash_hotplug.linux.loading.live_machine import LiveMachine, why_live_image_not_updatable  # noqa: PLC0415

    layout = layout_source(sysroot)
    try:
        reason = why_live_image_not_updatable(LiveMachine(sysroot), image, machine)
    except CannotTellError as error:
        return {"possible": None, "reason": str(error), "kimage_layout": layout}
    return {"possible": reason is None, "reason": reason, "kimage_layout": layout}


def _in_place_line(in_place: dict[str, Any]) -> str:
    if in_place["possible"]:
        return "can be updated in place (crash-hotplug update)"
    word = "it is not known whether it can be updated in place" if in_place["possible"] is None else ""
    return f"{word or 'cannot be updated in place'}: {in_place['reason']}"


def _show(judged: _Judged) -> None:
    print_verdict(judged.verdict, judged.sentence)
    if judged.assessed is None:
        if judged.verdict is Verdict.CANNOT_TELL:
            print()
            print_labelled("Crash image", [_loaded_sentence(judged.state)])
        return
    machine, image, assessment, in_place = judged.assessed
    print()
    print_labelled("CPUs", [_cpu_line(machine, assessment)])
    print_labelled("Memory", _memory_lines(machine, assessment))
    where = [] if in_place is None else [_in_place_line(in_place)]
    print_labelled("Crash image", [*_image_lines(image, assessment), *where])
    print_labelled("Kernel", _kernel_lines(machine, judged.state))
    print_comparison(assessment.comparison)


def _cpu_line(machine: Machine, assessment: Assessment) -> str:
    described = len(assessment.header.cpu_notes)
    return (
        f"{len(machine.online_cpus)} online, {len(machine.present_cpus)} present, {len(machine.cpus)} possible; "
        f"{described} described"
    )


def _memory_lines(machine: Machine, assessment: Assessment) -> Iterator[str]:
    described = assessment.header.ram
    yield f"{human_size(machine.ram.size)} System RAM, {human_size(machine.crashkernel.size)} of it reserved"
    yield f"{human_size(described.size)} described in {count(len(assessment.header.ram_headers), 'range')}"
    blocks = machine.memory_blocks
    if blocks is not None:
        yield f"blocks of {human_size(blocks.size)}: {blocks.online} online, {blocks.offline} offline"


def _image_lines(image: CrashImage, assessment: Assessment) -> Iterator[str]:
    yield _LOADERS[assessment.loader] + ("" if image.loader is not None else ", judging by the header")
    at = "" if image.elfcorehdr_phys is None else f" at {image.elfcorehdr_phys:#x}"
    room = "" if assessment.room is None else f" of {assessment.room}"
    yield f"elfcorehdr{at}: {len(assessment.header.program_headers)} entries, {assessment.header.size}{room} bytes"


def _kernel_lines(machine: Machine, state: KexecState) -> Iterator[str]:
    yield machine.kernel_release or "release not known"
    kept = [name for name, kept in (("CPUs", state.updates_cpus), ("memory", state.updates_memory)) if kept]
    if kept:
        yield f"updates the elfcorehdr itself when {' and '.join(kept)} come and go"
    elif state.elfcorehdr_size is not None:
        yield "could update the elfcorehdr itself, but not in this image (kexec without --hotplug)"
    else:
        since = machine.architecture.updated_by_kernel_since
        others = f"Linux {since} and newer can" if since else "no release for this architecture does"
        yield f"does not update the elfcorehdr itself ({others})"
    if state.lockdown not in (None, "none"):
        yield f"lockdown: {state.lockdown}"
    if state.load_disabled:
        yield "kernel.kexec_load_disabled: no image can be loaded until the next boot"


def _report(judged: _Judged) -> dict[str, Any]:
    report = {"command": "status", "verdict": judged.verdict.value, "reason": judged.sentence}
    if judged.assessed is None:  # the kernel's files say whether an image is loaded
        return {**report, "kernel": _kernel_json(None, judged.state, None)}
    machine, image, assessment, in_place = judged.assessed
    return {
        **report,
        "cpus": {
            "possible": [cpu.number for cpu in machine.cpus],
            "present": [cpu.number for cpu in machine.present_cpus],
            "online": [cpu.number for cpu in machine.online_cpus],
            "described": len(assessment.header.cpu_notes),
        },
        "memory": {
            "ram": ranges_json(machine.ram),
            "crashkernel": ranges_json(machine.crashkernel),
            "described": ranges_json(assessment.header.ram),
            "described_entries": len(assessment.header.ram_headers),
            "block_size": None if machine.memory_blocks is None else machine.memory_blocks.size,
            "blocks_online": None if machine.memory_blocks is None else machine.memory_blocks.online,
            "blocks_offline": None if machine.memory_blocks is None else machine.memory_blocks.offline,
        },
        "crash_image": {
            "loader": assessment.loader.value,
            "judged_by_header": image.loader is None,
            "elfcorehdr": None if image.elfcorehdr_phys is None else hex(image.elfcorehdr_phys),
            "entries": len(assessment.header.program_headers),
            "size": assessment.header.size,
            "room": assessment.room,
            "cmdline": image.cmdline,
        },
        "kernel": _kernel_json(machine.kernel_release, judged.state, machine.architecture),
        **comparison_items(assessment.comparison),
        **({} if in_place is None else {"in_place": in_place}),
    }


def _kernel_json(release: str | None, state: KexecState, architecture: Architecture | None) -> dict[str, Any]:
    return {
        "release": release,
        "architecture": None if architecture is None else architecture.name,
        "updated_by_kernel_since": None if architecture is None else architecture.updated_by_kernel_since,
        "image_loaded": state.image_loaded,
        "updates_cpus": state.updates_cpus,
        "updates_memory": state.updates_memory,
        "elfcorehdr_size": state.elfcorehdr_size,
        "reserved_size": state.reserved_size,
        "load_disabled": state.load_disabled,
        "load_limit": state.load_limit,
        "lockdown": state.lockdown,
    }
