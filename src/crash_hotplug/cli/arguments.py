# SPDX-License-Identifier: MIT
"""The command line's arguments: the parser of each command, and arguments and files that several commands take."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys

from crash_hotplug import __version__
from crash_hotplug.cli import exit_codes
from crash_hotplug.linux.sysroot import open_given, read_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from crash_hotplug.cli.main import Program

_INPUT_LIMIT = 16 << 20


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that reads the terminal's width without shutil, which imports every compression module.

    argparse makes a formatter for each argument that is added to a parser.
    """

    def __init__(self, prog: str) -> None:
        """Format for the terminal, or for 80 columns."""
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isdecimal() else 0
        if width == 0 and sys.__stdout__ is not None:
            with contextlib.suppress(OSError, ValueError):  # it is no terminal, or is closed
                width = os.get_terminal_size(sys.__stdout__.fileno()).columns
        super().__init__(prog, width=(width or 80) - 2)


def parse(program: Program, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; the result has ``command``, ``run`` and the command's own arguments.

    :raise SystemExit: after --help, and on wrong usage
    """
    name = next((argument for argument in arguments if not argument.startswith("-")), "")
    if name not in program.commands or arguments[0] != name:
        return build_parser(program, name).parse_args(arguments)
    # Only this command's parser is built: the parsers of all commands cost as much as reading a machine.
    parser = argparse.ArgumentParser(f"{program.name} {name}", formatter_class=HelpFormatter)
    _add_command(parser, program, name)
    return parser.parse_args(arguments[1:])


def build_parser(program: Program, command: str | None = None) -> argparse.ArgumentParser:
    """Build the program's parser with the arguments of *command* only (of all commands with None)."""
    parser = argparse.ArgumentParser(
        prog=program.name,
        description=program.description,
        epilog=exit_codes.HELP,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(prog=parser.prog, metavar="COMMAND", required=True, dest="command")
    for name, summary in program.commands.items():
        subparser = commands.add_parser(name, help=summary, formatter_class=HelpFormatter)
        if command in (name, None):
            _add_command(subparser, program, name)
    return parser


def _add_command(parser: argparse.ArgumentParser, program: Program, name: str) -> None:
    module = importlib.import_module(f"{program.package}.{name}")
    parser.description = module.DESCRIPTION
    parser.epilog = f"{module.EXAMPLES}\n{exit_codes.HELP}"
    module.add_arguments(parser)
    parser.set_defaults(command=name, run=module.run)


def add_sysroot(parser: argparse.ArgumentParser) -> None:
    """Add ``--sysroot``."""
    parser.add_argument(
        "--sysroot",
        metavar="DIR|ARCHIVE",
        help="read this saved tree (a directory, or a tar archive such as a sosreport) instead of the live machine",
    )


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object (addresses as hex strings)")


def address(text: str) -> int:
    """Parse a physical address given by a person, hexadecimal with 0x or decimal.

    :raise argparse.ArgumentTypeError: the text is not one
    """
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address such as 0x39f61000")
    return value


def memory_ranges(text: str) -> int:
    """Parse a number of memory ranges that an elfcorehdr is to have room for.

    :raise argparse.ArgumentTypeError: the text is not one
    """
    if not text.isdecimal() or not 1 <= int(text) <= 65000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 65000")
    return int(text)


def positive(text: str) -> int:
    """Parse a number from 1 on.

    :raise argparse.ArgumentTypeError: the text is not one
    """
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return number


def read_input(path: str, what: str) -> bytes:
    """Read a file that the user named.

    :raise CannotTellError: it may not be read
    :raise InputError: it cannot be read, or is larger than such a file can be
    """
    name = f"{what} {path}"
    with open_given(path, name) as file:
        return read_all(file, _INPUT_LIMIT, name)
