# SPDX-License-Identifier: MIT
"""The reference page of a program or a command, from the text of ``--help``.

``man_page`` writes these pages for troff, ``tools/build_docs.py`` writes them as Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.command_tree import Argument, Command

_FILES = {
    "/proc/iomem, /proc/kcore, /proc/kallsyms, /sys/devices/system/cpu, /sys/devices/system/memory": (
        "The CPUs and memory of the machine, and the loaded crash image. Only root sees the addresses in them."
    ),
    "/sys/kernel/kexec_crash_loaded, /sys/kernel/kexec_crash_size, /sys/kernel/crash_elfcorehdr_size": (
        "Whether an image is loaded, and the memory reserved for it; in /sys/kernel/kexec since Linux 6.19."
    ),
    "/etc/default/crash-hotplug, /etc/sysconfig/crash-hotplug": (
        'The OPTIONS with which the service starts crash-hotplug watch, such as OPTIONS="--heartbeat 30".'
    ),
    "/var/lib/crash-hotplug/doctor.json": "The previous contents of the files that crash-hotplug doctor --fix changed.",
}


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, as the lines of its source."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Definition:
    """A term, such as an option or an exit code, and its meaning."""

    term: str
    meaning: str


@dataclass(frozen=True)
class Preformatted:
    """Lines that are shown as they are."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A headed part of a page."""

    title: str
    content: tuple[Paragraph | Definition | Preformatted, ...]


@dataclass(frozen=True)
class ReferencePage:
    """The page of a command, or of a program with its commands."""

    name: str
    """The words of the command, such as ``crash-hotplug status``."""
    summary: str
    synopsis: str
    """The arguments, in one line."""
    sections: tuple[Section, ...]


def program_page(program: Command, commands: Sequence[Command], summary: str) -> ReferencePage:
    """Return the page of crash-hotplug: its purpose, commands, exit codes and files."""
    parser = program.parser
    definitions = tuple(Definition(command.parser.prog, command.summary) for command in commands)
    return ReferencePage(
        parser.prog,
        summary,
        "COMMAND [OPTION...]",
        (
            Section("DESCRIPTION", tuple(_paragraphs(parser.description or ""))),
            Section("COMMANDS", definitions),
            Section("OPTIONS", tuple(_arguments(program.options))),
            *_epilog(parser.epilog or ""),
            Section("FILES", tuple(Definition(paths, text) for paths, text in _FILES.items())),
        ),
    )


def command_page(command: Command) -> ReferencePage:
    """Return the page of one command."""
    parser = command.parser
    usage = " ".join(parser.format_usage().split()[1:])
    return ReferencePage(
        parser.prog,
        command.summary,
        usage[len(parser.prog) :].strip(),
        (
            Section("DESCRIPTION", tuple(_paragraphs(parser.description or ""))),
            Section("OPTIONS", tuple(_arguments([*command.positionals, *command.options]))),
            *_epilog(parser.epilog or ""),
        ),
    )


def _arguments(arguments: Iterable[Argument]) -> Iterator[Definition]:
    for argument in arguments:
        yield Definition(argument.invocation, argument.help)


def _paragraphs(text: str) -> Iterator[Paragraph]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        yield Paragraph(tuple(line.strip() for line in paragraph.splitlines()))


def _epilog(epilog: str) -> Iterator[Section]:
    """Yield the headed, preformatted parts of an epilog ("examples:"), and the exit codes."""
    title = ""
    lines: list[str] = []
    for line in epilog.replace(exit_codes.HELP, "").strip().splitlines():
        if re.fullmatch(r"[a-z ]+:", line):
            yield from _preformatted(title, lines)
            title, lines = line[:-1].upper(), []
        elif line.strip():
            lines.append(line)
    yield from _preformatted(title, lines)
    if exit_codes.HELP in epilog:
        definitions = (Definition(str(code), meaning) for code, meaning in exit_codes.MEANINGS.items())
        yield Section("EXIT STATUS", tuple(definitions))


def _preformatted(title: str, lines: list[str]) -> Iterator[Section]:
    if lines:
        yield Section(title, (Preformatted(tuple(lines)),))
