"""The command line's entry: picks the command, turns errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from crash_hotplug import __version__
from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.output import print_json
from crash_hotplug.core.errors import CrashHotplugError


class Program(NamedTuple):
    """A program with commands, each of which is a module that is imported only when it is used."""

    name: str
    description: str
    package: str
    """The Python package that has the commands' modules."""
    commands: Mapping[str, str]
    """Every command and what it is for."""


CRASH_HOTPLUG = Program(
    "crash-hotplug",
    """\
Keeps the crash image that kdump loaded accurate while CPUs and memory come and go.  Without it a dump lacks
the CPUs and memory that were added after the image was loaded, and removed memory is still read.
""",
    "crash_hotplug.cli",
    {
        "status": "is the loaded crash image accurate now? what would a panic lose?",
        "update": "bring the loaded image up to date, in place",
        "watch": "keep the loaded image accurate while CPUs and memory come and go, as a service",
        "load": "load a crash image that has room for hot-plug, or unload it",
        "doctor": "what will happen at the next hot-plug, and why?",
        "header": "write the elfcorehdr that this machine should have",
        "snapshot": "save what the other commands read, for a support case",
        "audit": "what is in a vmcore, and what is missing?",
    },
)


def build_parser(program: Program, command: str | None = None) -> argparse.ArgumentParser:
    """Build the parser; only *command*'s own arguments are there (all commands' with None)."""
    parser = argparse.ArgumentParser(
        prog=program.name,
        description=program.description,
        epilog=exit_codes.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    # With prog given, argparse need not format a usage line, for which it imports shutil and what that drags in.
    commands = parser.add_subparsers(prog=parser.prog, dest="command", metavar="COMMAND", required=True)
    for name, summary in program.commands.items():
        if command in (name, None):
            module = importlib.import_module(f"{program.package}.{name}")
            subparser = commands.add_parser(
                name,
                help=summary,
                description=module.DESCRIPTION,
                epilog=f"{module.EXAMPLES}\n{exit_codes.HELP}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
        else:
            commands.add_parser(name, help=summary)
    return parser


def main(arguments: Sequence[str], program: Program = CRASH_HOTPLUG) -> int:
    """Run one command.

    :param arguments: the command line without the program's name
    :return: the exit code
    """
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    parser = build_parser(program, command)
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse exits by itself, 0 after --help, 2 on wrong usage
        return exit_codes.DONE if stop.code in (None, 0) else exit_codes.USAGE
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except CrashHotplugError as error:
        return _say_error(error, program, parsed)
    except BrokenPipeError:
        # Whoever read our output went away: nobody is left to tell, and Python must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.FAILED
    except KeyboardInterrupt:
        return 130


def _say_error(error: CrashHotplugError, program: Program, parsed: argparse.Namespace) -> int:
    code = exit_codes.of_error(error)
    if getattr(parsed, "json", False):
        verdict = "cannot tell" if code == exit_codes.CANNOT_TELL else "failed"
        print_json({"command": parsed.command, "verdict": verdict, "reason": str(error)})
    else:
        prefix = "cannot tell: " if code == exit_codes.CANNOT_TELL else ""
        print(f"{program.name} {parsed.command}: {prefix}{error}", file=sys.stderr)
    return code
