# SPDX-License-Identifier: MIT
"""The command line's entry: runs the named command and turns errors into sentences and exit codes.

A hot-plug event waits for this start, so a module is imported only by the commands that use it.
"""

from __future__ import annotations

import gc
import sys

from crash_hotplug import __version__
from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.streams import OutputError, discard_output
from crash_hotplug.core.errors import CrashHotplugError

TYPE_CHECKING = False  # not imported from typing, which takes as long to import as Python takes to start
if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence


class Program:
    """A program with commands, each of which is a module that is imported only when it is used."""

    def __init__(self, name: str, description: str, package: str, commands: Mapping[str, str]) -> None:
        """Describe a program.

        :param package: the Python package that has the commands' modules
        :param commands: the purpose of each command, by name
        """
        self.name = name
        self.description = description
        self.package = package
        self.commands = commands


CRASH_HOTPLUG = Program(
    "crash-hotplug",
    """\
Keeps the crash image that kdump loaded accurate while CPUs and memory come and go.  Without it a dump lacks
the CPUs and memory that were added after the image was loaded, and removed memory is still read.
""",
    "crash_hotplug.cli",
    {
        "status": "report whether the loaded crash image is accurate, and what a dump would lack",
        "update": "bring the loaded image up to date, in place",
        "watch": "keep the loaded image accurate while CPUs and memory come and go, as a service",
        "load": "load a crash image that has room for hot-plug, or unload it",
        "doctor": "report what will handle the next hot-plug, and whether it will succeed",
        "header": "write the elfcorehdr that this machine should have",
        "snapshot": "save the files that the other commands read, for a support case",
        "audit": "report what a vmcore contains, and what it lacks",
    },
)


def main(arguments: Sequence[str], program: Program = CRASH_HOTPLUG) -> int:
    """Run one command, and write all of its output.

    :param arguments: the command line without the program's name
    :return: the exit code
    """
    try:
        code = _run(arguments, program)
        sys.stdout.flush()
        return code
    except OutputError as error:
        from crash_hotplug.cli.output import printable  # noqa: PLC0415

        print(f"{program.name}: {printable(str(error))}", file=sys.stderr)
    except BrokenPipeError:
        pass  # the reader has what it wanted, as head(1)
    except KeyboardInterrupt:
        return 130
    discard_output()
    return exit_codes.FAILED


def _run(arguments: Sequence[str], program: Program) -> int:
    if list(arguments) == ["--version"]:
        print(f"{program.name} {__version__}")
        return exit_codes.DONE
    from crash_hotplug.cli.arguments import parse  # noqa: PLC0415

    try:
        parsed = parse(program, arguments)
    except SystemExit as stop:  # argparse exits by itself, 0 after --help, 2 on wrong usage
        return exit_codes.DONE if stop.code in (None, 0) else exit_codes.USAGE
    if not gc.isenabled():  # as __main__ left it
        gc.freeze()  # modules and classes are never garbage
        gc.set_threshold(50_000)  # 100,000 records of ranges form no cycles: a fifth of the time was spent on them
        gc.enable()
    try:
        code: int = parsed.run(parsed)
        return code
    except CrashHotplugError as error:
        return _print_error(error, program, parsed)


def _print_error(error: CrashHotplugError, program: Program, parsed: argparse.Namespace) -> int:
    code = exit_codes.of_error(error)
    from crash_hotplug.cli.output import print_json, printable  # noqa: PLC0415

    if getattr(parsed, "json", False) and code != exit_codes.USAGE:  # as argparse, which reports no JSON either
        verdict = "cannot tell" if code == exit_codes.CANNOT_TELL else "failed"
        print_json({"command": parsed.command, "verdict": verdict, "reason": str(error)})
    else:
        prefix = "cannot tell: " if code == exit_codes.CANNOT_TELL else ""
        print(f"{program.name} {parsed.command}: {prefix}{printable(str(error))}", file=sys.stderr)
    return code
