"""Settings files that shell scripts source: /etc/default/kdump-tools, /etc/sysconfig/kdump.

Nothing is executed: an assignment is understood where it is plain text, quoted or not.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from crash_hotplug.core.errors import CannotTellError

_ASSIGNMENT = re.compile(r"^[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_]\w*)=(?P<value>.*)$", re.MULTILINE)
_QUOTED = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'#;|&])*""", re.DOTALL)

_LONGEST = 8192
"""More than a kernel's command line may have."""


class Setting(NamedTuple):
    """The last assignment of a variable."""

    line: int
    """Its line, from 1."""
    value: str | None
    """None where it is no plain text: the shell would have to work it out."""


def read_setting(text: str, name: str) -> Setting | None:
    """Return what a variable has in the end; None where it is not assigned."""
    last = None
    for matched in _ASSIGNMENT.finditer(text):
        last = matched if matched["name"] == name else last
    if last is None:
        return None
    return Setting(text.count("\n", 0, last.start()) + 1, _plain_value(text, last.start("value")))


def _plain_value(text: str, at: int) -> str | None:
    matched = _QUOTED.match(text, at)
    written = matched[0] if matched else ""
    rest = text[at + len(written) :].split("\n", 1)[0].strip()
    if (rest and not rest.startswith("#")) or len(written) > _LONGEST:
        return None
    if re.search(r"[$`]", re.sub(r"'[^']*'", "", written)):
        return None
    try:
        words = shlex.split(written)
    except ValueError:
        return None
    return "".join(words)


def append_assignment(text: str, name: str, value: str, comment: list[str]) -> str:
    """Return *text* with one more assignment at its end, which overrides every one before.

    :raise CannotTellError: the value cannot be written plainly
    """
    if re.search(r"""["\\$`\n]""", value):
        raise CannotTellError(f"{name} holds quotes or characters that the shell would change: edit it by hand")
    ended = text if text.endswith("\n") or not text else text + "\n"
    return ended + "".join(f"# {line}\n" for line in comment) + f'{name}="{value}"\n'
