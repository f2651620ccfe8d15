# SPDX-License-Identifier: MIT
"""The commands and their arguments as records, read from the parsers, for man pages and shell completions."""

from __future__ import annotations

import argparse
import enum
import re
from dataclasses import dataclass

from crash_hotplug.cli.arguments import build_parser
from crash_hotplug.cli.main import CRASH_HOTPLUG, Program


class Value(enum.Enum):
    """The kind of value that an argument takes."""

    NOTHING = "nothing"
    WORD = "word"
    FILE = "file"
    DIRECTORY = "directory"


_FILES = {"FILE", "VMCORE", "KERNEL"}


@dataclass(frozen=True)
class Argument:
    """One option, or one positional argument where *names* is empty."""

    names: tuple[str, ...]
    metavar: str
    help: str
    value: Value
    words: tuple[str, ...]
    """The values that are known, such as the choices."""
    is_list: bool
    """Whether it may be given more than once."""

    @property
    def invocation(self) -> str:
        """The form in which it is typed, such as ``-o, --output FILE``."""
        return " ".join(part for part in (", ".join(self.names), self.metavar) if part)


@dataclass(frozen=True)
class Command:
    """One command, or the program itself."""

    name: str
    """The word that a person types; empty for the program itself."""
    summary: str
    parser: argparse.ArgumentParser
    options: tuple[Argument, ...]
    """The arguments that begin with a dash."""
    positionals: tuple[Argument, ...]
    """All other arguments."""


def read_commands(program: Program = CRASH_HOTPLUG) -> list[Command]:
    """Read the parsers: the program itself comes first, then every command."""
    parser = build_parser(program)
    found = [_command("", "", parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {chosen.dest: chosen.help or "" for chosen in action._choices_actions}
            found += [_command(name, summaries[name], child) for name, child in action.choices.items()]
    return found


def _command(name: str, summary: str, parser: argparse.ArgumentParser) -> Command:
    arguments = [
        _argument(action, parser.prog)
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction) and action.help != argparse.SUPPRESS
    ]
    options = tuple(argument for argument in arguments if argument.names)
    return Command(name, summary, parser, options, tuple(argument for argument in arguments if not argument.names))


def _argument(action: argparse.Action, prog: str) -> Argument:
    help_text = (action.help or "").replace("%(prog)s", prog).replace("%%", "%")
    metavar, value, words = _value(action)
    is_list = isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+")
    return Argument(tuple(action.option_strings), metavar, help_text, value, words, is_list)


def _value(action: argparse.Action) -> tuple[str, Value, tuple[str, ...]]:
    """Return the name of the value, its kind, and its known words."""
    if action.nargs == 0:
        return "", Value.NOTHING, ()
    if action.choices is not None:
        words = tuple(map(str, action.choices))
        return str(action.metavar or "{" + ",".join(words) + "}"), Value.WORD, words
    metavar = str(action.metavar or action.dest.upper())
    alternatives = metavar.split("|")  # a word in capitals stands for a value; any other is typed as it is
    words = tuple(word for word in alternatives if re.fullmatch(r"[a-z][a-z0-9-]*", word))
    if any(word.split(".")[0] in _FILES for word in alternatives):
        return metavar, Value.FILE, words
    return metavar, Value.DIRECTORY if "DIR" in alternatives else Value.WORD, words
