# SPDX-License-Identifier: MIT
"""``crash-hotplug audit``: report the contents and the defects of a vmcore."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import (
    comparison_items,
    limited,
    print_comparison,
    print_json,
    print_labelled,
    print_verdict,
    ranges_json,
)
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.expected import loader_of, with_capture_ram
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.core.verdict import Comparison, Verdict
from crash_hotplug.core.vmcore import Vmcore, audit_vmcore, compare_vmcore, parse_vmcore
from crash_hotplug.linux.crash_image import read_crash_image
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot, VmcoreFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DESCRIPTION = """\
Reads the headers and notes of an ELF vmcore (a file, /proc/vmcore, or only the first KiB of one, which ends in 5) and
reports its contents and whether it is well formed and whole.  With --sysroot it also reports what the vmcore
lacks compared with the machine that crashed, as `crash-hotplug snapshot` saved it before.
"""
EXAMPLES = """\
examples:
  crash-hotplug audit /var/crash/202611220815/vmcore
  crash-hotplug audit /proc/vmcore --sysroot /root/before-the-panic
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("vmcore", metavar="VMCORE", help="the dump")
    parser.add_argument("--sysroot", metavar="DIR", help="compare with the machine in this saved tree")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :return: 0 where no check found a defect, 4 where one did, 5 where one could not be made
    """
    with VmcoreFile(arguments.vmcore) as source:
        vmcore = parse_vmcore(source)
    result = audit_vmcore(vmcore)
    if arguments.sysroot is not None:
        _compare_with_tree(Sysroot(arguments.sysroot), vmcore, result)
    verdict = result.verdict
    sentence = _sentence(vmcore, result, verdict, arguments.sysroot is not None)
    if arguments.json:
        print_json(_report(vmcore, result, verdict, sentence))
    else:
        print_verdict(verdict, sentence)
        print()
        print_labelled("Kernel", _kernel_lines(vmcore))
        print_labelled("CPUs", [f"{vmcore.saved_cpus} saved registers"])
        print_labelled("Memory", _memory_lines(vmcore))
        print_comparison(result)
    return exit_codes.of_verdict(verdict)


def _compare_with_tree(sysroot: Sysroot, vmcore: Vmcore, result: Comparison) -> None:
    machine: Machine = read_machine(sysroot)
    try:
        image = read_crash_image(sysroot, machine.crashkernel)
    except CannotTellError:
        compare_vmcore(vmcore, machine, None, Loader.KERNEL, result)
        return
    loaded = parse_elfcorehdr(image.elfcorehdr)
    compare_vmcore(vmcore, with_capture_ram(machine, image), loaded, loader_of(loaded, image), result)


def _sentence(vmcore: Vmcore, result: Comparison, verdict: Verdict, compared: bool) -> str:
    if verdict is Verdict.NOT_ACCURATE:
        return f"this vmcore has {count(len(result.findings), 'defect')}"
    if verdict is Verdict.CANNOT_TELL and vmcore.is_beginning:
        missing, whole = vmcore.announced_size - vmcore.file_size, vmcore.announced_size
        return f"{missing:,} of {whole:,} bytes are missing; no defect was found in the headers, which are there"
    if verdict is Verdict.CANNOT_TELL:
        return "no defect was found, but some checks could not be made"
    what = "it describes the machine completely" if compared else "it is well formed"
    return what if compared else f"{what} and whole (--sysroot compares it with the machine)"


def _kernel_lines(vmcore: Vmcore) -> Iterator[str]:
    info = vmcore.vmcoreinfo
    yield info.kernel_release or "release not known (no vmcoreinfo)"
    if info.panic_time is not None:
        yield f"panicked at {info.panic_time:%Y-%m-%d %H:%M:%S} UTC"


def _memory_lines(vmcore: Vmcore) -> Iterator[str]:
    ram = vmcore.headers.ram
    yield f"{human_size(ram.size)} in {count(len(vmcore.headers.ram_headers), 'range')}"
    yield from limited([f"{r.start:#014x} - {r.end:#014x}  {human_size(r.size):>10}" for r in ram])
    holes = vmcore.holes
    if holes:
        yield f"{human_size(holes.size)} in {count(len(holes), 'hole')} between them"


def _report(vmcore: Vmcore, result: Comparison, verdict: Verdict, sentence: str) -> dict[str, Any]:
    info = vmcore.vmcoreinfo
    return {
        "command": "audit",
        "verdict": verdict.value,
        "reason": sentence,
        "kernel_release": info.kernel_release,
        "panic_time": None if info.panic_time is None else info.panic_time.isoformat(),
        "saved_cpus": vmcore.saved_cpus,
        "ranges": ranges_json(vmcore.headers.ram),
        "holes": ranges_json(vmcore.holes),
        "file_size": vmcore.file_size,
        "announced_size": vmcore.announced_size,
        "headers_only": vmcore.is_beginning,
        **comparison_items(result),
    }
