"""Arguments and files that several commands take."""

from __future__ import annotations

import argparse

from crash_hotplug.linux.regular_file import open_given, read_all

_INPUT_LIMIT = 16 << 20


def add_sysroot(parser: argparse.ArgumentParser) -> None:
    """Add ``--sysroot``."""
    parser.add_argument("--sysroot", metavar="DIR", help="read this saved tree instead of the live machine")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON object (addresses as hex strings)")


def address(text: str) -> int:
    """Parse a physical address given by a person, hexadecimal with 0x or decimal.

    :raise argparse.ArgumentTypeError: it is none
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

    :raise argparse.ArgumentTypeError: it is none
    """
    if not text.isdecimal() or not 1 <= int(text) <= 65000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 65000")
    return int(text)


def read_input(path: str, what: str) -> bytes:
    """Read a file that a person named.

    :raise CannotTellError: it may not be read
    :raise InputError: it cannot be read, or is too large to be what it should be
    """
    name = f"{what} {path}"
    with open_given(path, name) as file:
        return read_all(file, _INPUT_LIMIT, name)
