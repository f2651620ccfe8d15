# SPDX-License-Identifier: MIT
"""``crash-hotplug audit``: report the contents and the defects of a vmcore."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.exit_codes import UsageError
from crash_hotplug.cli.output import (
    comparison_items,
    limited,
    print_comparison,
    print_json,
    print_json_line,
    print_labelled,
    print_verdict,
    print_verdict_line,
    ranges_json,
)
from crash_hotplug.cli.picture import add_picture, check_picture, headline, write_picture
from crash_hotplug.core.dump.diskdump import LEAVES_PAGES_OUT
from crash_hotplug.core.dump.formats import join_split_dumps, parse_vmcore
from crash_hotplug.core.dump.vmcore import Vmcore, audit_vmcore, compare_vmcore
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.expected import loader_of, with_capture_ram
from crash_hotplug.core.finding import Comparison, Verdict
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.linux.crash_image import read_crash_image
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot, open_sysroot
from crash_hotplug.linux.vmcore_file import STDIN, VmcoreFile, VmcorePipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from crash_hotplug.core.picture.states import Picture

DESCRIPTION = """\
Reads the headers, notes and page bitmaps of a dump (a file, /proc/vmcore, or - for standard input) and reports its
contents and whether it is well formed and whole.  No page is read.  With --sysroot it also reports what the dump lacks
compared with the machine that crashed, as `crash-hotplug snapshot` saved it before.

The formats are ELF, makedumpfile's compressed one (header versions 1 to 6), and either of them flattened
(makedumpfile -F).  The files of a split dump (makedumpfile --split) are one dump.  Only the first KiB of a dump end
in 5.  Several dumps are reported in one line each, with --json as one object a line.  The exit status is then the
worst: 1, 4, 5, 0.
"""
EXAMPLES = """\
examples:
  crash-hotplug audit /var/crash/202611220815/dump.202611220815
  crash-hotplug audit /proc/vmcore --sysroot /root/before-the-panic
  crash-hotplug audit part1 part2 part3
  ssh server cat /var/crash/vmcore.flat | crash-hotplug audit -
  crash-hotplug audit vmcore --sysroot /root/before-the-panic --picture lost.svg
  crash-hotplug audit --json /var/crash/*/vmcore
"""
_STANDARD_INPUT = "-"
_LEFT_OUT = ("zero", "non-private cache", "private cache", "user", "free")
"""The pages that each bit of a dump level leaves out (makedumpfile(8), "-d")."""
_WORST_FIRST = (exit_codes.FAILED, exit_codes.NOT_ACCURATE, exit_codes.CANNOT_TELL)


class _Audit(NamedTuple):
    """One dump and what was found, or why it was not read."""

    names: tuple[str, ...]
    code: int
    verdict: str
    sentence: str
    vmcore: Vmcore | None = None
    result: Comparison | None = None
    machine: Machine | None = None
    """The machine with which it was compared."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("vmcore", metavar="VMCORE", nargs="+", help="a dump, or a part of a split one; - reads a pipe")
    parser.add_argument("--sysroot", metavar="DIR|ARCHIVE", help="compare with the machine in this saved tree")
    add_picture(parser)
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :return: 0 where no check found a defect, 4 where one did, 5 where one could not be made; of several dumps the worst
    """
    names: list[str] = arguments.vmcore
    check_picture(arguments.picture)
    if names.count(_STANDARD_INPUT) > 1:
        raise UsageError("standard input can be only one of the dumps")
    sysroot = None if arguments.sysroot is None else open_sysroot(arguments.sysroot)
    audits = _audits(names, sysroot)
    if arguments.picture is not None:
        if len(audits) > 1:
            raise UsageError(f"--picture draws one dump, and {len(audits)} are given")
        write_picture(arguments.picture, _picture(audits[0]))
    is_line_each = len(names) > 1 and (len(audits) > 1 or arguments.json or audits[0].vmcore is None)
    for audit in audits:
        if arguments.json and is_line_each:
            print_json_line(_report(audit))
        elif arguments.json:
            print_json(_report(audit))
        elif is_line_each:
            print_verdict_line(f"{', '.join(audit.names)}: ", audit.verdict, audit.sentence)
        else:
            _print_report(audit)
    codes = {audit.code for audit in audits}
    return next((code for code in _WORST_FIRST if code in codes), exit_codes.DONE)


def _audits(names: list[str], sysroot: Sysroot | None) -> list[_Audit]:
    """Audit the dumps, in their order; of several ones an error is the result.

    :raise CrashHotplugError: the only one cannot be read or compared
    """
    if len(names) == 1:
        return [_audit(_read(names[0]), names, sysroot)]
    audits: list[_Audit] = []
    vmcores: list[Vmcore] = []
    read: list[str] = []
    for name in names:
        try:
            vmcores.append(_read(name))
            read.append(name)
        except CrashHotplugError as error:
            audits.append(_failed(error, (name,)))
    for vmcore, positions in join_split_dumps(vmcores):
        parts = [read[position] for position in positions]
        try:
            audits.append(_audit(vmcore, parts, sysroot))
        except CrashHotplugError as error:
            audits.append(_failed(error, parts))
    return sorted(audits, key=lambda audit: names.index(audit.names[0]))


def _read(name: str) -> Vmcore:
    if name == _STANDARD_INPUT:
        return parse_vmcore(VmcorePipe(STDIN, "standard input"))
    with VmcoreFile(name) as source:
        return parse_vmcore(source)


def _audit(vmcore: Vmcore, names: Sequence[str], sysroot: Sysroot | None) -> _Audit:
    """Audit a dump.

    :raise CrashHotplugError: it cannot be compared with the saved tree
    """
    result = audit_vmcore(vmcore)
    machine = None if sysroot is None else _compare_with_tree(sysroot, vmcore, result)
    verdict = result.verdict
    sentence = _sentence(vmcore, result, verdict, sysroot is not None)
    return _Audit(tuple(names), exit_codes.of_verdict(verdict), verdict.value, sentence, vmcore, result, machine)


def _failed(error: CrashHotplugError, names: Sequence[str]) -> _Audit:
    code = exit_codes.of_error(error)
    return _Audit(tuple(names), code, "cannot tell" if code == exit_codes.CANNOT_TELL else "failed", str(error))


def _print_report(audit: _Audit) -> None:
    """Print everything about one dump."""
    vmcore, result = audit.vmcore, audit.result
    if vmcore is None or result is None:
        return
    print_verdict(result.verdict, audit.sentence)
    print()
    print_labelled("Kernel", _kernel_lines(vmcore))
    print_labelled("Format", _format_lines(vmcore))
    print_labelled("CPUs", _cpu_lines(vmcore))
    print_labelled("Memory", _memory_lines(vmcore))
    print_comparison(result)


def _picture(audit: _Audit) -> Picture:
    # Imported here: without --picture it is not needed.
    from crash_hotplug.core.picture.states import Picture, audit_picture  # noqa: PLC0415

    title, vmcore, result = headline(audit.verdict, audit.sentence), audit.vmcore, audit.result
    names = f"crash-hotplug audit {' '.join(audit.names)}"
    if vmcore is None or result is None:
        return Picture(title, names, remark="The dump was not read.")
    subtitle = f"{names}: {vmcore.architecture.name}, kernel {vmcore.kernel_release or 'not known'}"
    return audit_picture(title, subtitle, vmcore, audit.machine, result)


def _compare_with_tree(sysroot: Sysroot, vmcore: Vmcore, result: Comparison) -> Machine:
    """Add what the dump lacks to *result*, and return the machine that crashed."""
    machine: Machine = read_machine(sysroot)
    try:
        image = read_crash_image(sysroot, machine.crashkernel)
    except CannotTellError:
        compare_vmcore(vmcore, machine, None, Loader.KERNEL, result)
        return machine
    loaded = parse_elfcorehdr(image.elfcorehdr)
    machine = with_capture_ram(machine, image)
    compare_vmcore(vmcore, machine, loaded, loader_of(loaded, image), result)
    return machine


def _sentence(vmcore: Vmcore, result: Comparison, verdict: Verdict, compared: bool) -> str:
    if verdict is Verdict.NOT_ACCURATE:
        return f"this vmcore has {count(len(result.findings), 'defect')}"
    if verdict is Verdict.CANNOT_TELL and vmcore.is_beginning:
        missing, whole = vmcore.announced_size - vmcore.file_size, vmcore.announced_size
        if any(file.flattening is not None for file in vmcore.files):
            return "the stream ends early; no defect was found in the headers, which are there"
        least = "at least " if any(file.is_least for file in vmcore.files) else ""
        lost = f"{least}{missing:,} of {least}{whole:,} bytes are missing"
        return f"{lost}; no defect was found in the headers, which are there"
    if verdict is Verdict.CANNOT_TELL:
        return "no defect was found, but some checks could not be made"
    what = "it describes the machine completely" if compared else "it is well formed"
    return what if compared else f"{what} and whole (--sysroot compares it with the machine)"


def _kernel_lines(vmcore: Vmcore) -> Iterator[str]:
    info = vmcore.vmcoreinfo
    yield vmcore.kernel_release or "release not known (no vmcoreinfo)"
    if info.panic_time is not None:
        yield f"panicked at {info.panic_time:%Y-%m-%d %H:%M:%S} UTC"


def _format_lines(vmcore: Vmcore) -> Iterator[str]:
    words = ["ELF"]
    if vmcore.format_name != "elf":
        how = f"compressed with {vmcore.compression}" if vmcore.compression else "not compressed"
        words = [f"kdump-compressed, pages {how}"]
    if any(file.flattening is not None for file in vmcore.files):
        words.append("flattened")
    if len(vmcore.files) > 1:
        words.append(f"in {len(vmcore.files)} parts")
    yield ", ".join(words)
    if vmcore.dump_level is not None:
        left_out = [name for bit, name in enumerate(_LEFT_OUT) if vmcore.dump_level >> bit & 1]
        yield f"dump level {vmcore.dump_level}" + (f": without {', '.join(left_out)} pages" if left_out else "")


def _cpu_lines(vmcore: Vmcore) -> Iterator[str]:
    yield f"{vmcore.saved_cpus} saved registers" if vmcore.why_no_notes is None else f"not known: {vmcore.why_no_notes}"


def _memory_lines(vmcore: Vmcore) -> Iterator[str]:
    if vmcore.why_ram_unknown is not None:
        yield f"not known: {vmcore.why_ram_unknown}"
        return
    ram = vmcore.ram
    yield f"{human_size(ram.size)} in {count(vmcore.range_count, 'range')}"
    yield from limited([f"{r.start:#014x} - {r.end:#014x}  {human_size(r.size):>10}" for r in ram])
    holes = vmcore.holes
    if holes:
        yield f"{human_size(holes.size)} in {count(len(holes), 'hole')} between them"
    if vmcore.left_out_size and vmcore.saved_size is not None:
        is_on_purpose = vmcore.dump_level is None or vmcore.dump_level & LEAVES_PAGES_OUT
        why = "left out by makedumpfile" if is_on_purpose else "described and not saved"
        yield f"{human_size(vmcore.saved_size)} saved, {human_size(vmcore.left_out_size)} {why}"


def _report(audit: _Audit) -> dict[str, Any]:
    report: dict[str, Any] = {"command": "audit", "verdict": audit.verdict, "reason": audit.sentence}
    report["files"] = list(audit.names)
    vmcore, result = audit.vmcore, audit.result
    if vmcore is None or result is None:
        return report
    info = vmcore.vmcoreinfo
    return {
        **report,
        "kernel_release": vmcore.kernel_release,
        "panic_time": None if info.panic_time is None else info.panic_time.isoformat(),
        "format": vmcore.format_name,
        "flattened": any(file.flattening is not None for file in vmcore.files),
        "dump_level": vmcore.dump_level,
        "compression": vmcore.compression,
        "saved_cpus": vmcore.saved_cpus,
        "ranges": ranges_json(vmcore.ram),
        "described_entries": None if vmcore.why_ram_unknown else vmcore.range_count,
        "holes": ranges_json(vmcore.holes),
        "described_size": None if vmcore.why_ram_unknown else vmcore.ram.size,
        "saved_size": vmcore.saved_size,
        "left_out_size": vmcore.left_out_size,
        "file_size": vmcore.file_size,
        "announced_size": vmcore.announced_size,
        "headers_only": vmcore.is_beginning,
        **comparison_items(result),
    }
