# SPDX-License-Identifier: MIT
"""The capture kernel's command line."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST = 4096
_WORD = re.compile(r'(?:"[^"]*(?:"|$)|[^\s"])+')
"""A word of a command line; spaces between quotes do not end it (``next_arg()`` in lib/cmdline.c)."""


def has_argument(cmdline: str | None, name: str) -> bool:
    """Whether a command line has the argument ``name=``."""
    return any(word.startswith(f"{name}=") for word in (cmdline or "").split())


def arguments(cmdline: str, name: str) -> list[str]:
    """Return the value of each ``name=`` that the kernel parses: none behind ``--`` (``parse_args()``, params.c)."""
    values = []
    for quoted in _WORD.findall(cmdline):
        if quoted == "--":
            break
        found, equals, value = quoted.replace('"', "").partition("=")
        if found == name and equals:  # setup_elfcorehdr() ignores the word without a value
            values.append(value)
    return values


def read_cmdline(read_phys: Callable[[int, int], bytes], phys: int, end: int) -> str:
    """Read the command line at a physical address.

    :param end: physical address at which its segment ends
    :raise CannotTellError: it cannot be read
    """
    return read_phys(phys, min(_LONGEST, end - phys)).split(b"\0")[0].decode("ascii", "replace")
