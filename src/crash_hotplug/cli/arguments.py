"""Arguments and files that several commands take."""

from __future__ import annotations

import argparse
import os
import stat

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.linux.sysroot import read_all

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
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise CannotTellError(f"{path} cannot be read: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{what} {path} is a directory")
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return read_all(file, _INPUT_LIMIT, path)
