"""The command line's entry: picks the command, turns errors into sentences and exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from crash_hotplug import __version__
from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.output import print_json
from crash_hotplug.core.errors import CrashHotplugError

_ALL_COMMANDS = {
    "status": "is the loaded crash image accurate now? what would a panic lose?",
    "update": "bring the loaded image up to date, in place",
    "watch": "keep the loaded image right while CPUs and memory come and go, as a service",
    "load": "load a crash image that has room for hot-plug, or unload it",
    "doctor": "what will happen at the next hot-plug, and why?",
    "bench": "what an update in place costs on this machine, beside a full reload",
    "header": "write the elfcorehdr that this machine should have",
    "snapshot": "save what the other commands read, for a support case",
    "audit": "what is in a vmcore, and what is missing?",
    "simulate": "run the whole system as a model: hot-plug, panic, dump; needs no root",
    "lab": "try all of it on real kernels under QEMU: hot-plug, panic, compare",
}
_HERE = os.path.dirname(os.path.abspath(__file__))
# A distribution's package leaves the lab out: it needs more than the standard library, and no server runs it.
COMMANDS = {name: words for name, words in _ALL_COMMANDS.items() if os.path.exists(f"{_HERE}/{name}.py")}
"""Every command and what it is for; each is a module of this package, imported only when it is used."""

_DESCRIPTION = """\
Keeps the crash image that kdump loaded accurate while CPUs and memory come and go: what came after it was
loaded is missing from a dump, memory that left is read anyway.
"""


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Build the parser; only *command*'s own arguments are there (all commands' with None)."""
    parser = argparse.ArgumentParser(
        prog="crash-hotplug",
        description=_DESCRIPTION,
        epilog=exit_codes.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    # With prog given, argparse need not format a usage line, for which it imports shutil and what that drags in.
    commands = parser.add_subparsers(prog=parser.prog, dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if command in (name, None):
            module = importlib.import_module(f"crash_hotplug.cli.{name}")
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


def main(arguments: Sequence[str]) -> int:
    """Run one command.

    :param arguments: the command line without the program's name
    :return: the exit code
    """
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    parser = build_parser(command)
    try:
        parsed = parser.parse_args(arguments)
    except SystemExit as stop:  # argparse exits by itself, 0 after --help, 2 on wrong usage
        return exit_codes.DONE if stop.code in (None, 0) else exit_codes.USAGE
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except CrashHotplugError as error:
        return _say_error(error, parsed)
    except BrokenPipeError:
        # Whoever read our output went away: nobody is left to tell, and Python must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exit_codes.FAILED
    except KeyboardInterrupt:
        return 130


def _say_error(error: CrashHotplugError, parsed: argparse.Namespace) -> int:
    code = exit_codes.of_error(error)
    if getattr(parsed, "json", False):
        verdict = "cannot tell" if code == exit_codes.CANNOT_TELL else "failed"
        print_json({"command": parsed.command, "verdict": verdict, "reason": str(error)})
    else:
        prefix = "cannot tell: " if code == exit_codes.CANNOT_TELL else ""
        print(f"crash-hotplug {parsed.command}: {prefix}{error}", file=sys.stderr)
    return code
