# SPDX-License-Identifier: MIT
"""Settings in text: assignments that shell scripts source, and systemd unit files.

/etc/default/kdump-tools and /etc/sysconfig/kdump are sourced by shell scripts.  Nothing is executed here: an assignment
is understood where its value is plain text, quoted or not.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from crash_hotplug.core.errors import CannotTellError

_ASSIGNMENT = re.compile(r"^[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_]\w*)=(?P<value>.*)$", re.MULTILINE)
_QUOTED = re.compile(r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"'#;|&])*""", re.DOTALL)
_LONGEST = 8192
"""Bytes; longer than any kernel's command line."""

_KEXEC_CALLS = frozenset({"kexec_load", "kexec_file_load"})
_KEXEC_SETS = frozenset({"@reboot", "@privileged", "@known"})
"""Sets of system calls that contain both of them (``systemd-analyze syscall-filter``)."""
_CAPABILITY = "CAP_SYS_BOOT"
"""Both system calls require it."""


class Setting(NamedTuple):
    """The last assignment of a shell variable."""

    line: int
    """Its line, from 1."""
    value: str | None
    """None where it is not plain text: only the shell can expand it."""


def read_setting(text: str, name: str) -> Setting | None:
    """Return the last assignment of a variable; None where there is none."""
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
        return "".join(shlex.split(written))
    except ValueError:  # a quote that does not end
        return None


def append_assignment(text: str, name: str, value: str, comment: Sequence[str]) -> str:
    """Return *text* with one more assignment at its end, which overrides all others.

    :raise CannotTellError: the value cannot be written as plain text
    """
    if re.search(r"""["\\$`\n]""", value):
        raise CannotTellError(f"{name} holds quotes or characters that the shell would change: edit it by hand")
    ended = text if text.endswith("\n") or not text else text + "\n"
    return ended + "".join(f"# {line}\n" for line in comment) + f'{name}="{value}"\n'


class Sandbox(Enum):
    """Whether the processes of a service may load a crash image; the value is the reason where they may not."""

    OPEN = "open"
    NO_SYSTEM_CALL = "SystemCallFilter= holds neither kexec_load nor kexec_file_load"
    ONE_SYSTEM_CALL = "SystemCallFilter= holds only one of kexec_load and kexec_file_load"
    NO_CAPABILITY = "CapabilityBoundingSet= lacks CAP_SYS_BOOT"


def unit_settings(texts: Iterable[str], section: str, name: str) -> list[str]:
    """Return every value of a setting, in order.

    :param texts: the unit file and its drop-ins, in the order in which systemd reads them
    :param section: such as ``Service``
    """
    values = []
    for text in texts:
        inside = False
        for line in re.sub(r"\\\n", " ", text).splitlines():
            stripped = line.strip()
            if stripped.startswith("[") and stripped.endswith("]"):
                inside = stripped[1:-1] == section
            elif inside and not stripped.startswith(("#", ";")):
                key, equals, value = stripped.partition("=")
                if equals and key.strip() == name:
                    values.append(value.strip())
    return values


def sandbox_of(texts: Sequence[str]) -> Sandbox:
    """Tell whether the processes of a service may call kexec_load(2) or kexec_file_load(2).

    :param texts: the unit file and its drop-ins, in the order in which systemd reads them
    """
    if not _has_capability(unit_settings(texts, "Service", "CapabilityBoundingSet")):
        return Sandbox.NO_CAPABILITY
    allowed = _allowed_calls(unit_settings(texts, "Service", "SystemCallFilter"))
    if allowed == _KEXEC_CALLS:
        return Sandbox.OPEN
    return Sandbox.ONE_SYSTEM_CALL if allowed else Sandbox.NO_SYSTEM_CALL


def _allowed_calls(filters: Iterable[str]) -> frozenset[str]:
    """Follow systemd.exec(5): the first list says whether it allows or denies; ``~`` inverts, "" starts again."""
    allowed: frozenset[str] | None = None
    for value in filters:
        inverted = value.startswith("~")
        words = {word.partition(":")[0] for word in value.lstrip("~").split()}
        named = _KEXEC_CALLS if words & _KEXEC_SETS else _KEXEC_CALLS & words
        if not value:
            allowed = None
        elif inverted:
            allowed = (_KEXEC_CALLS if allowed is None else allowed) - named
        else:
            allowed = named | (allowed or frozenset())
    return _KEXEC_CALLS if allowed is None else allowed


def _has_capability(sets: Iterable[str]) -> bool:
    allowed: bool | None = None
    for value in sets:
        inverted = value.startswith("~")
        named = _CAPABILITY in value.lstrip("~").upper().split()
        if not value.strip("~"):
            allowed = inverted  # "" drops every capability, "~" restores all
        elif inverted:
            allowed = allowed is not False and not named
        else:
            allowed = named or allowed is True
    return allowed is not False
