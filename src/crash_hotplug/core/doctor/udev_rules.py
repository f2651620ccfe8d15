# SPDX-License-Identifier: MIT
"""udev rules: the reloads of the crash image that an event starts, and a rules file without those reloads.

Only the keys that kdump's rules use are interpreted (udev(7), systemd's src/udev/udev-rules.c).  A match on any other
key is unknown, and a reload that depends on it is reported as possible, never as certain.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

_TOKEN = re.compile(
    r"""\s*(?P<key>[A-Z_]+)(?:\{(?P<attribute>[^}]*)\})?\s*
        (?P<operator>==|!=|\+=|-=|:=|=)\s*
        [ei]?"(?P<value>(?:[^"\\]|\\.)*)"\s*(?:,|(?=\s)|$)""",
    re.VERBOSE,
)
_RELOAD = re.compile(
    r"kdumpctl|kdump-config|kdump-udev-throttler|/kdump/load(?:-once)?\.sh|(?:^|[\s/'\"])kexec(?:$|[\s'\"])"
)
_SHELL = re.compile(r"(?:^|[\s/])(?:ba|da)?sh\s+-c\b")
_SYSTEMCTL_VERB = re.compile(r"(?:\s+-\S+)*\s+(?:[a-z]+-)*(?:re)?(?:start|load)\b")
_NEEDS_ACTIVE = re.compile(r"systemctl(?: is-active (\S+\.service) \|\| exit 0|(?: -\S+)* try-restart (\S+\.service))")
_CAT = re.compile(r"(?:/usr)?/bin/cat (/[^\s;|&]+)")
_LATE = {"PROGRAM": 1, "RESULT": 2}
_UNKNOWN = object()
_SUBSYSTEMS = frozenset({"cpu", "memory"})

WRITTEN_BY = "Written by crash-hotplug doctor --fix"
"""Beginning of the first line of a rules file that doctor writes."""
GUARD = 'SUBSYSTEM!="cpu", SUBSYSTEM!="memory", '
"""Put before a rule that other events may reach as well, it excludes the events of CPUs and memory."""


class Token(NamedTuple):
    """One ``KEY{attribute} operator "value"`` of a rule."""

    key: str
    attribute: str | None
    operator: str
    value: str

    @property
    def is_match(self) -> bool:
        """Whether it is a condition of the rule, not an assignment."""
        return self.operator in ("==", "!=") or self.key in ("PROGRAM", "TEST", "RESULT")

    @property
    def starts_reload(self) -> bool:
        """Whether it runs a program, or starts a unit, that loads a crash image."""
        if (self.key, self.attribute) == ("ENV", "SYSTEMD_WANTS"):
            return not self.is_match and "kdump" in self.value
        return self.key in ("RUN", "PROGRAM", "IMPORT") and self.operator != "-=" and mentions_reload(self.value)


class Rule(NamedTuple):
    """One rule: a line, or several lines joined by a backslash at the end."""

    first: int
    """Number of its first line, from 1."""
    last: int
    """Number of its last line."""
    tokens: tuple[Token, ...]

    def value_of(self, key: str) -> str | None:
        """Return the value of the first token with this key."""
        return next((token.value for token in self.tokens if token.key == key), None)


class UEvent(NamedTuple):
    """An event of a device."""

    subsystem: str
    """``cpu`` or ``memory``."""
    action: str
    """``add``, ``online``, ``offline`` or ``remove``."""


class Reload(NamedTuple):
    """A reload of the crash image that a rule starts."""

    path: str
    """The rules file."""
    line: int
    """First line of the rule, from 1."""
    key: str
    """``RUN``, ``PROGRAM``, ``IMPORT``, or ``ENV`` for a unit that systemd is asked to start."""
    program: str
    certain: bool
    """False where it depends on a match that is unknown here."""

    @property
    def escapes_sandbox(self) -> bool:
        """Whether systemd runs it outside systemd-udevd's sandbox."""
        return self.key == "ENV" or self.in_transient_unit or bool(_systemctl_starts(self.program))

    @property
    def in_transient_unit(self) -> bool:
        """Whether it runs in a unit of systemd-run, whose session keyring is not that of kdump.service."""
        return "systemd-run" in self.program

    @property
    def needs_active(self) -> str | None:
        """The unit that has to be active, because the command does nothing without it."""
        found = _NEEDS_ACTIVE.search(self.program)
        return (found[1] or found[2]) if found else None


@dataclass(frozen=True)
class RuleContext:
    """The facts about the machine that rules match."""

    crash_hotplug: dict[str, bool | None]
    """By subsystem, the value of its ``crash_hotplug`` attribute; None where it has no such attribute."""
    read: Callable[[str], str | None] = lambda _path: None
    """Returns a file's contents, None where it does not exist."""
    architecture: str = "x86-64"


def mentions_reload(text: str) -> bool:
    """Whether a rules file, or a rule's program, names a program that loads a crash image."""
    return _RELOAD.search(text) is not None or any("kdump" in command for command in _systemctl_starts(text))


def _systemctl_starts(text: str) -> list[str]:
    """Return the commands that have systemd start, restart or reload a unit, without the word ``systemctl``."""
    if "systemctl" not in text:
        return []
    # udev starts a rule's program without a shell: what follows a semicolon is an argument.  A whole file has lines.
    separators = r"[;&|\n]" if _SHELL.search(text) or "\n" in text else r"\n"
    commands = (command.partition("systemctl")[2] for command in re.split(separators, text))
    return [command for command in commands if _SYSTEMCTL_VERB.match(command)]


def parse_rules(text: str) -> list[Rule]:
    """Split a rules file into rules; as in udev, a line that cannot be parsed is ignored."""
    rules = []
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        first, joined = number, lines[number]
        while joined.endswith("\\") and number + 1 < len(lines):
            number += 1
            joined = joined[:-1] + lines[number]
        number += 1
        tokens = _tokens(joined)
        if tokens:
            rules.append(Rule(first + 1, number, tokens))
    return rules


def _tokens(line: str) -> tuple[Token, ...]:
    line = line.rstrip()
    tokens: list[Token] = []
    at = 0
    while at < len(line):
        matched = _TOKEN.match(line, at)
        if matched is None:  # a comment, or no rule
            return ()
        tokens.append(Token(matched["key"], matched["attribute"], matched["operator"], matched["value"]))
        at = matched.end()
    return tuple(tokens)


def find_reloads(rules: Sequence[Rule], event: UEvent, context: RuleContext, path: str = "") -> list[Reload]:
    """Return the reloads that *event* starts, each once.

    :param path: the rules file, for :attr:`Reload.path`
    """
    found: dict[tuple[int, str], Reload] = {}
    for reload in _Walk(rules, event, context, path).reloads():
        known = found.get((reload.line, reload.program))
        if known is None or reload.certain:
            found[reload.line, reload.program] = reload
    return sorted(found.values(), key=lambda reload: reload.line)


class _Walk:
    """One event on its way through one rules file."""

    def __init__(self, rules: Sequence[Rule], event: UEvent, context: RuleContext, path: str) -> None:
        self._rules, self._event, self._context, self._path = rules, event, context, path
        self._result: str | None = None
        """Output of the last PROGRAM; None where it is unknown."""
        self._found: list[Reload] = []
        self._labels: dict[str, list[int]] = {}
        for at, rule in enumerate(rules):
            label = rule.value_of("LABEL")
            if label:
                self._labels.setdefault(label, []).append(at)

    def reloads(self) -> list[Reload]:
        """Walk every path that the event may take; an unknown match before a GOTO splits the path."""
        pending = {0: True}
        """By the index of a rule, whether the event reaches it for certain."""
        for at, rule in enumerate(self._rules):
            certain = pending.pop(at, None)
            if certain is None:
                continue
            applies = self._applies(rule, certain)
            if applies is not False:
                self._act(rule, certain and applies is True)
            jump = self._target(rule, at) if applies is not False else None
            sure = certain and (jump is None or applies is True)
            ways = [at + 1] if jump is None else [jump] if applies else [jump, at + 1]
            for way in ways:
                pending[way] = pending.get(way, False) or sure
        return self._found

    def _target(self, rule: Rule, at: int) -> int | None:
        """Return the rule to which a GOTO leads; as in udev, only labels further down count."""
        places = self._labels.get(rule.value_of("GOTO") or "", [])
        following = bisect_right(places, at)
        return places[following] if following < len(places) else None

    def _applies(self, rule: Rule, certain: bool) -> bool | None:
        """Tell whether all matches of the rule hold; None where that is unknown."""
        truth: bool | None = True
        matches = [token for token in rule.tokens if token.is_match]
        # udev sorts the tokens: a PROGRAM runs after every plain match, and RESULT is compared last.
        for token in sorted(matches, key=lambda token: _LATE.get(token.key, 0)):
            holds = self._run(rule, token, certain and truth is True) if token.key == "PROGRAM" else self._holds(token)
            if holds is False:
                return False
            truth = None if holds is None else truth
        return truth

    def _run(self, rule: Rule, token: Token, certain: bool) -> bool | None:
        """Take a PROGRAM into account; cat is the only program that is understood."""
        cat = _CAT.fullmatch(token.value.strip())
        if cat is not None:
            self._result = self._context.read(cat[1])
            return (self._result is not None) != (token.operator == "!=")
        self._result = None
        if token.starts_reload:
            self._add(rule, token, certain)
        return None

    def _holds(self, token: Token) -> bool | None:
        value = self._value(token)
        if value is _UNKNOWN:
            return None
        if value is None:
            return token.operator == "!="
        fits = any(fnmatchcase(str(value), pattern) for pattern in token.value.split("|"))
        return fits != (token.operator == "!=")

    def _value(self, token: Token) -> object:
        """Return the value that the token is compared with: text, None where the machine lacks it, or _UNKNOWN."""
        attribute = self._context.crash_hotplug.get(self._event.subsystem)
        plain: dict[tuple[str, str | None], object] = {
            ("ACTION", None): self._event.action,
            ("SUBSYSTEM", None): self._event.subsystem,
            ("ATTR", "crash_hotplug"): None if attribute is None else str(int(attribute)),
            ("ATTRS", "crash_hotplug"): None if attribute is None else str(int(attribute)),
            ("CONST", "arch"): self._context.architecture,
            ("RESULT", None): _UNKNOWN if self._result is None else self._result.strip(),
        }
        if (token.key, token.attribute) in plain:
            return plain[token.key, token.attribute]
        if token.key == "KERNEL":
            return self._kernel_name(token.value)
        if token.key == "TEST" and re.fullmatch(r"/[^*?\[]*", token.value):
            return token.value if self._context.read(token.value) is not None else None
        return _UNKNOWN

    def _kernel_name(self, patterns: str) -> object:
        """Return a name such as cpu9, or _UNKNOWN where the patterns fit only some numbers."""
        name = f"{self._event.subsystem}9"
        split = patterns.split("|")
        if any(fnmatchcase(name, pattern) for pattern in split):
            return name
        return _UNKNOWN if any(pattern.startswith(self._event.subsystem) for pattern in split) else name

    def _act(self, rule: Rule, certain: bool) -> None:
        for token in rule.tokens:
            if token.key == "RUN" and token.operator in ("=", ":=") and certain:
                self._found = [reload for reload in self._found if reload.key != "RUN"]  # the list starts again
            if token.starts_reload and token.key != "PROGRAM":
                self._add(rule, token, certain)

    def _add(self, rule: Rule, token: Token, certain: bool) -> None:
        self._found.append(Reload(self._path, rule.first, token.key, token.value, certain))


def without_reload(text: str, heading: Sequence[str] = ()) -> str:
    """Return a rules file in which no event of a CPU or of memory starts a reload.

    A rule for those events alone becomes a comment.  A rule that other events may reach, through a GOTO, gets a guard.

    :param heading: comment lines for the top
    """
    lines = text.split("\n")
    for rule in parse_rules(text):
        excluded = {token.value for token in rule.tokens if (token.key, token.operator) == ("SUBSYSTEM", "!=")}
        if not any(token.starts_reload for token in rule.tokens) or excluded >= _SUBSYSTEMS:
            continue
        if _is_only_for_hotplug(rule):
            for number in range(rule.first - 1, rule.last):
                # Without its backslash: udev would take the next line as part of the comment.
                lines[number] = f"# {lines[number]}".rstrip("\\").rstrip()
        else:
            lines[rule.first - 1] = GUARD + lines[rule.first - 1].lstrip()
    return "".join(f"# {line}".rstrip() + "\n" for line in heading) + "\n".join(lines)


def _is_only_for_hotplug(rule: Rule) -> bool:
    return rule.value_of("LABEL") is None and any(
        token.key == "SUBSYSTEM" and token.operator == "==" and set(token.value.split("|")) <= _SUBSYSTEMS
        for token in rule.tokens
    )
