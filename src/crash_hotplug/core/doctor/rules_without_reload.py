"""A rules file of udev without the reloads that a hot-plug starts, and with everything else that it has."""

from __future__ import annotations

from collections.abc import Sequence

from crash_hotplug.core.doctor.udev_rules import Rule, parse_rules

_SUBSYSTEMS = frozenset({"cpu", "memory"})
WRITTEN_BY = "Written by crash-hotplug doctor --fix"
"""How the first line of a file that doctor writes begins."""
GUARD = 'SUBSYSTEM!="cpu", SUBSYSTEM!="memory", '
"""Put before a rule that other events may reach as well: for CPUs and memory it does nothing any more."""


def without_reload(text: str, heading: Sequence[str]) -> str:
    """Return the rules with every reload taken out of CPUs' and memory's events.

    A rule for those events alone becomes a comment; one that other events reach too, through a GOTO, gets a guard.

    :param heading: comment lines to put on top
    """
    lines = text.split("\n")
    for rule in parse_rules(text):
        if not _starts_reload(rule):
            continue
        if _only_for_hotplug(rule):
            for number in range(rule.first - 1, rule.last):
                lines[number] = f"# {lines[number]}"
            _end_continuations(lines, rule)
        else:
            lines[rule.first - 1] = GUARD + lines[rule.first - 1].lstrip()
    return "".join(f"# {line}".rstrip() + "\n" for line in heading) + "\n".join(lines)


def _starts_reload(rule: Rule) -> bool:
    """Whether CPUs' or memory's events may start a reload with this rule."""
    not_for = {token.value for token in rule.tokens if (token.key, token.operator) == ("SUBSYSTEM", "!=")}
    return any(token.starts_reload for token in rule.tokens) and not not_for >= _SUBSYSTEMS


def _only_for_hotplug(rule: Rule) -> bool:
    if rule.value_of("LABEL") is not None:
        return False
    return any(
        token.key == "SUBSYSTEM" and token.operator == "==" and set(token.value.split("|")) <= _SUBSYSTEMS
        for token in rule.tokens
    )


def _end_continuations(lines: list[str], rule: Rule) -> None:
    """Take the backslash off the ends: udev would join a comment's next line to it."""
    for number in range(rule.first - 1, rule.last):
        lines[number] = lines[number].rstrip("\\").rstrip()
