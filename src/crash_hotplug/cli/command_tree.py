"""What the parsers hold, as records: man pages and shell completions are written from these."""

from __future__ import annotations

import argparse
import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass

from crash_hotplug.cli.main import CRASH_HOTPLUG, build_parser


class Value(enum.Enum):
    """What kind of word an argument takes."""

    NOTHING = "nothing"
    WORD = "word"
    FILE = "file"
    DIRECTORY = "directory"


_FILES = {"FILE", "VMCORE", "KERNEL", "SCENARIO"}


@dataclass(frozen=True)
class Argument:
    """One option, or one positional argument where *names* is empty."""

    names: tuple[str, ...]
    metavar: str
    help: str
    value: Value
    words: tuple[str, ...]
    """The words that a person may type here, as far as they are known."""
    is_list: bool
    """Whether it may be given more than once."""

    @property
    def invocation(self) -> str:
        """How it is typed, such as ``-o, --output FILE``."""
        return " ".join(part for part in (", ".join(self.names), self.metavar) if part)


@dataclass(frozen=True)
class Command:
    """One command, with the commands below it."""

    path: tuple[str, ...]
    """The words that lead to it; none for the program itself."""
    summary: str
    parser: argparse.ArgumentParser
    arguments: tuple[Argument, ...]
    commands: tuple[Command, ...]

    @property
    def options(self) -> tuple[Argument, ...]:
        """The arguments that begin with a dash."""
        return tuple(argument for argument in self.arguments if argument.names)

    @property
    def positionals(self) -> tuple[Argument, ...]:
        """The arguments that do not."""
        return tuple(argument for argument in self.arguments if not argument.names)

    def walk(self) -> Iterator[Command]:
        """Yield this command and every one below it, parents first."""
        yield self
        for command in self.commands:
            yield from command.walk()


def read_commands() -> Command:
    """Read the whole command line as it is now."""
    return _command((), "", build_parser(CRASH_HOTPLUG))


def _command(path: tuple[str, ...], summary: str, parser: argparse.ArgumentParser) -> Command:
    arguments = []
    commands = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {chosen.dest: chosen.help or "" for chosen in action._choices_actions}
            for name, child in action.choices.items():
                commands.append(_command((*path, name), summaries.get(name, ""), child))
        elif action.help != argparse.SUPPRESS:
            arguments.append(_argument(action, parser.prog))
    return Command(path, summary, parser, tuple(arguments), tuple(commands))


def _argument(action: argparse.Action, prog: str) -> Argument:
    help_text = (action.help or "").replace("%(prog)s", prog).replace("%%", "%")
    repeated = isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+")
    if action.nargs == 0:
        return Argument(tuple(action.option_strings), "", help_text, Value.NOTHING, (), repeated)
    if action.choices is not None:
        words = tuple(map(str, action.choices))
        metavar = str(action.metavar or "{" + ",".join(words) + "}")
        return Argument(tuple(action.option_strings), metavar, help_text, Value.WORD, words, repeated)
    metavar = str(action.metavar or action.dest.upper())
    alternatives = metavar.split("|")  # what is in capitals stands for something, the rest is typed as it is
    words = tuple(word for word in alternatives if re.fullmatch(r"[a-z][a-z0-9-]*", word))
    value = Value.WORD
    if any(word.split(".")[0] in _FILES for word in alternatives):
        value = Value.FILE
    elif "DIR" in alternatives:
        value = Value.DIRECTORY
    return Argument(tuple(action.option_strings), metavar, help_text, value, words, repeated)
