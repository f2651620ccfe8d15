"""systemd unit files: settings of one section, and whether a service may load a crash image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum

_ALLOWS_KEXEC = frozenset({"kexec_load", "kexec_file_load", "@reboot", "@privileged", "@known"})
"""Names in a SystemCallFilter= that cover the system calls (``systemd-analyze syscall-filter``)."""
_BOTH = frozenset({"kexec_load", "kexec_file_load"})
_CAPABILITY = "CAP_SYS_BOOT"
"""What both system calls ask for."""


class Sandbox(Enum):
    """Whether a service's processes may load a crash image."""

    OPEN = "open"
    NO_SYSTEM_CALL = "SystemCallFilter= holds neither kexec_load nor kexec_file_load"
    ONE_SYSTEM_CALL = "SystemCallFilter= holds only one of kexec_load and kexec_file_load"
    NO_CAPABILITY = "CapabilityBoundingSet= lacks CAP_SYS_BOOT"


def settings(texts: Iterable[str], section: str, name: str) -> list[str]:
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
    if not _may_use_capability(settings(texts, "Service", "CapabilityBoundingSet")):
        return Sandbox.NO_CAPABILITY
    allowed = _allowed_calls(settings(texts, "Service", "SystemCallFilter"))
    if allowed == _BOTH:
        return Sandbox.OPEN
    return Sandbox.ONE_SYSTEM_CALL if allowed else Sandbox.NO_SYSTEM_CALL


def _allowed_calls(filters: Iterable[str]) -> frozenset[str]:
    """Follow systemd.exec(5): the first list says whether it allows or denies; ``~`` inverts, "" begins anew."""
    allowed: frozenset[str] | None = None
    for value in filters:
        inverted = value.startswith("~")
        words = value[1:].split() if inverted else value.split()
        named = _calls(word.partition(":")[0] for word in words)
        if not value:
            allowed = None
        elif allowed is None:
            allowed = _BOTH - named if inverted else named
        else:
            allowed = allowed - named if inverted else allowed | named
    return _BOTH if allowed is None else allowed


def _calls(words: Iterable[str]) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for word in words:
        if word in _BOTH:
            found |= {word}
        elif word in _ALLOWS_KEXEC:
            found |= _BOTH
    return found


def _may_use_capability(sets: Iterable[str]) -> bool:
    allowed: bool | None = None
    for value in sets:
        inverted = value.startswith("~")
        named = _CAPABILITY in value.lstrip("~").upper().split()
        if not value.strip("~"):
            allowed = inverted  # "" drops every capability, "~" gives all back
        elif inverted:
            allowed = (allowed is not False) and not named
        else:
            allowed = named or allowed is True
    return allowed is not False
