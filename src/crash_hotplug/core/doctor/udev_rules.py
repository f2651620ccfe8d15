"""udev rules: which reload of the crash image does an event of a CPU or a memory block start?

Only what kdump's rules use is understood (udev(7), systemd's src/udev/udev-rules.c); a match on anything else is
"unknown", and what depends on it is reported as possible, never as certain.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple, Optional

_TOKEN = re.compile(
    r"""\s*(?P<key>[A-Z_]+)(?:\{(?P<attribute>[^}]*)\})?\s*
        (?P<operator>==|!=|\+=|-=|:=|=)\s*
        [ei]?"(?P<value>(?:[^"\\]|\\.)*)"\s*(?:,|(?=\s)|$)""",
    re.VERBOSE,
)
_RELOAD = re.compile(
    r"kdumpctl|kdump-config|kdump-udev-throttler|/kdump/load(?:-once)?\.sh|(?:^|[\s/'\"])kexec(?:$|[\s'\"])"
)
_SYSTEMCTL_VERB = re.compile(r"\b(?:re)?(?:start|load)\b")
_NEEDS_ACTIVE = re.compile(r"systemctl is-active (\S+\.service) \|\| exit 0")
_CAT = re.compile(r"(?:/usr)?/bin/cat (/[^\s;|&]+)")

_LATE = {"PROGRAM": 1, "RESULT": 2}
_UNKNOWN = object()

Truth = Optional[bool]
"""Three-valued: None is "unknown"."""


class Token(NamedTuple):
    """One ``KEY{attribute} operator "value"`` of a rule."""

    key: str
    attribute: str | None
    operator: str
    value: str

    @property
    def is_match(self) -> bool:
        """Whether the rule applies only where this fits."""
        return self.operator in ("==", "!=") or self.key in ("PROGRAM", "TEST", "RESULT")

    @property
    def starts_reload(self) -> bool:
        """Whether it has a program run, or a unit started, that loads a crash image."""
        if (self.key, self.attribute) == ("ENV", "SYSTEMD_WANTS"):
            return not self.is_match and "kdump" in self.value
        return self.key in ("RUN", "PROGRAM", "IMPORT") and self.operator != "-=" and mentions_reload(self.value)


class Rule(NamedTuple):
    """One rule: a line, or several that end in a backslash."""

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


class Start(NamedTuple):
    """A reload of the crash image that a rule starts."""

    program: str
    line: int
    key: str
    """``RUN``, ``PROGRAM``, ``IMPORT``, or ``ENV`` for a unit that systemd is asked to start."""
    certain: bool
    """False where it depends on a match that is unknown here."""

    @property
    def escapes_sandbox(self) -> bool:
        """Whether systemd runs it outside systemd-udevd's sandbox."""
        return self.key == "ENV" or "systemd-run" in self.program or bool(_systemctl_starts(self.program))

    @property
    def needs_active(self) -> str | None:
        """The unit that has to be active, or the command ends without having done anything."""
        found = _NEEDS_ACTIVE.search(self.program)
        return found[1] if found else None


@dataclass(frozen=True)
class Surroundings:
    """What the rules ask the machine for."""

    crash_hotplug: dict[str, bool | None]
    """By subsystem, what its ``crash_hotplug`` attribute says; None where there is no such attribute."""
    read: Callable[[str], str | None] = field(default=lambda _path: None)
    """Returns a file's contents, None where it does not exist."""
    architecture: str = "x86-64"


def mentions_reload(text: str) -> bool:
    """Whether a rules file, or a rule's program, names one of the programs that load a crash image."""
    return _RELOAD.search(text) is not None or any("kdump" in command for command in _systemctl_starts(text))


def _systemctl_starts(text: str) -> list[str]:
    """Return the commands that have systemd start, restart or reload a unit, from ``systemctl`` on."""
    if "systemctl" not in text:
        return []
    commands = (command.partition("systemctl")[2] for command in re.split(r"[;&|\n]", text))
    return [command for command in commands if _SYSTEMCTL_VERB.search(command)]


def parse_rules(text: str) -> list[Rule]:
    """Split a rules file into rules; a line that udev would not understand is left out, as udev does."""
    rules = []
    lines = text.split("\n")
    number = 0
    while number < len(lines):
        first = number
        parts = [lines[number]]
        while parts[-1].endswith("\\") and number + 1 < len(lines):
            number += 1
            parts[-1] = parts[-1][:-1]
            parts.append(lines[number])
        number += 1
        tokens = _tokens("".join(parts))
        if tokens:
            rules.append(Rule(first + 1, number, tokens))
    return rules


def _tokens(line: str) -> tuple[Token, ...]:
    if line.lstrip().startswith("#"):
        return ()
    tokens = []
    at = 0
    while at < len(line.rstrip()):
        matched = _TOKEN.match(line, at)
        if matched is None:
            return ()
        tokens.append(Token(matched["key"], matched["attribute"], matched["operator"], matched["value"]))
        at = matched.end()
    return tuple(tokens)


def reloads(rules: Sequence[Rule], event: UEvent, around: Surroundings) -> list[Start]:
    """Return the reloads that *event* starts, each once."""
    found: dict[tuple[int, str], Start] = {}
    for start in _Walk(rules, event, around).starts():
        known = found.get((start.line, start.program))
        if known is None or start.certain:
            found[start.line, start.program] = start
    return sorted(found.values(), key=lambda start: start.line)


class _Walk:
    """One event on its way through one rules file."""

    def __init__(self, rules: Sequence[Rule], event: UEvent, around: Surroundings) -> None:
        self._rules = rules
        self._event = event
        self._around = around
        self._result: str | None = None
        self._found: list[Start] = []
        self._labels: dict[str, list[int]] = {}
        for at, rule in enumerate(rules):
            self._labels.setdefault(rule.value_of("LABEL") or "", []).append(at)
        self._labels.pop("", None)

    def starts(self) -> list[Start]:
        """Walk every way that the event may take: an unknown match before a GOTO makes two of one."""
        pending = {0: True}
        for at, rule in enumerate(self._rules):
            certain = pending.pop(at, None)
            if certain is None:
                continue
            applies = self._applies(rule, certain)
            if applies is not False:
                self._act(rule, certain and applies is True)
            jump = self._target(rule, at) if applies is not False else None
            sure = certain and (jump is None or applies is True)
            ways = [at + 1] if jump is None else [jump] if applies is True else [jump, at + 1]
            for way in ways:
                pending[way] = pending.get(way, False) or sure
        return self._found

    def _target(self, rule: Rule, at: int) -> int | None:
        """Return where a GOTO leads: labels are looked for further down only, as udev does."""
        places = self._labels.get(rule.value_of("GOTO") or "", [])
        following = bisect_right(places, at)
        return places[following] if following < len(places) else None

    def _applies(self, rule: Rule, certain: bool) -> Truth:
        """Whether the rule's matches fit; PROGRAM runs only where all others do."""
        truth: Truth = True
        matches = [token for token in rule.tokens if token.is_match]
        # udev sorts them: programs run behind every plain match, and RESULT is looked at last.
        for token in sorted(matches, key=lambda token: _LATE.get(token.key, 0)):
            is_program = token.key == "PROGRAM"
            fits = self._program(rule, token, certain and truth is True) if is_program else self._fits(token)
            if fits is False:
                return False
            truth = None if fits is None else truth
        return truth

    def _program(self, rule: Rule, token: Token, certain: bool) -> Truth:
        cat = _CAT.fullmatch(token.value.strip())
        if cat is not None:
            self._result = self._around.read(cat[1])
            return (self._result is not None) != (token.operator == "!=")
        self._result = None
        if token.starts_reload:
            self._found.append(Start(token.value, rule.first, "PROGRAM", certain))
        return None

    def _fits(self, token: Token) -> Truth:
        value = self._value(token)
        if value is _UNKNOWN:
            return None
        if value is None:
            return token.operator == "!="
        assert isinstance(value, str)
        fits = any(fnmatchcase(value, pattern) for pattern in token.value.split("|"))
        return fits != (token.operator == "!=")

    def _value(self, token: Token) -> object:
        """Return what the token is compared with: text, None where the machine has no such thing, or _UNKNOWN."""
        says = self._around.crash_hotplug.get(self._event.subsystem)
        plain: dict[tuple[str, str | None], object] = {
            ("ACTION", None): self._event.action,
            ("SUBSYSTEM", None): self._event.subsystem,
            ("ATTR", "crash_hotplug"): None if says is None else str(int(says)),
            ("ATTRS", "crash_hotplug"): None if says is None else str(int(says)),
            ("CONST", "arch"): self._around.architecture,
            ("RESULT", None): _UNKNOWN if self._result is None else self._result.strip(),
        }
        if (token.key, token.attribute) in plain:
            return plain[token.key, token.attribute]
        if token.key == "KERNEL":
            return self._kernel_name(token.value)
        if token.key == "TEST" and re.fullmatch(r"/[^*?\[]*", token.value):
            return token.value if self._around.read(token.value) is not None else None
        return _UNKNOWN

    def _kernel_name(self, patterns: str) -> object:
        """Return a name such as cpu9, or _UNKNOWN where only some numbers would fit."""
        name = f"{self._event.subsystem}9"
        split = patterns.split("|")
        if any(fnmatchcase(name, pattern) for pattern in split):
            return name
        return _UNKNOWN if any(pattern.startswith(self._event.subsystem) for pattern in split) else name

    def _act(self, rule: Rule, certain: bool) -> None:
        for token in rule.tokens:
            if token.key == "RUN" and token.operator in ("=", ":=") and certain:
                self._found = [start for start in self._found if start.key != "RUN"]  # the list begins anew
            if token.starts_reload and token.key != "PROGRAM":
                self._found.append(Start(token.value, rule.first, token.key, certain))
