# SPDX-License-Identifier: MIT
"""Man pages from the text of ``--help``: ``python3 -m crash_hotplug.cli.man_page DIRECTORY``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator

from crash_hotplug import __version__
from crash_hotplug.cli.command_tree import read_commands
from crash_hotplug.cli.reference_page import (
    Definition,
    Paragraph,
    Preformatted,
    ReferencePage,
    Section,
    command_page,
    program_page,
)
from crash_hotplug.linux.atomic_file import write_atomically

SECTION = 8
"""Administration: the section of kexec, kdumpctl, kdump-config and makedumpfile."""

SUMMARY = "keeps the loaded crash image accurate while CPUs and memory come and go"
"""The purpose of crash-hotplug, in the line of apropos(1)."""

_SEE_ALSO = "kexec(8), kdumpctl(8), kdump-config(8), makedumpfile(8), crash(8)"


def roff(page: ReferencePage, see_also: str) -> str:
    """Return a page for troff's man macros.

    :param see_also: the pages of its last section, such as ``kexec(8), crash(8)``
    """
    name = page.name.replace(" ", "-")
    # No word of a usage line is broken at a hyphen, and none is spread over the line.
    lines = [f'.TH {_roff(name.upper())} {SECTION} "" "crash-hotplug {__version__}" "System Administration"']
    lines += [".nh", ".ad l", ".SH NAME", f"{_roff(name)} \\- {_roff(page.summary)}"]
    lines += [".SH SYNOPSIS", f".B {_roff(page.name)}", _synopsis(page.synopsis)]
    for section in page.sections:
        lines += [f".SH {section.title}", *_content(section)]
    lines.append(".SH SEE ALSO")
    for other in see_also.split(", "):
        other_name, number = other.rstrip(")").split("(")
        lines.append(f".BR {_roff(other_name)} ({number}),")
    return "\n".join(lines).rstrip(",") + "\n"


def _synopsis(usage: str) -> str:
    """Return a line of usage with its values, which are in capitals, in italics."""
    return re.sub(r"\b[A-Z]+\b", r"\\fI\g<0>\\fR", _roff(usage))


def _content(section: Section) -> Iterator[str]:
    for number, part in enumerate(section.content):
        if isinstance(part, Paragraph):
            yield from [".PP"] if number else []
            yield from map(_roff, part.lines)
        elif isinstance(part, Definition):
            yield from (".TP", _term(section.title, part.term), _roff(part.meaning))
        elif isinstance(part, Preformatted):
            yield from (".nf", *map(_roff, part.lines), ".fi")


def _term(title: str, term: str) -> str:
    if title == "COMMANDS":
        return f".BR {_roff(term.replace(' ', '-'))} ({SECTION})"
    return f"{'.I' if title == 'FILES' else '.B'} {_roff(term)}"


def _roff(text: str) -> str:
    """Escape the characters that troff would take for markup."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def pages() -> dict[str, str]:
    """Return every page by its file's name."""
    program, *commands = read_commands()
    command_pages = [command_page(command) for command in commands]
    names = [page.name.replace(" ", "-") for page in command_pages]
    see_also = ", ".join([*(f"{name}({SECTION})" for name in names), _SEE_ALSO])
    texts = {name: roff(page, f"crash-hotplug({SECTION})") for name, page in zip(names, command_pages)}
    texts["crash-hotplug"] = roff(program_page(program, commands, SUMMARY), see_also)
    return {f"{name}.{SECTION}": text for name, text in texts.items()}


def main(directory: str) -> None:
    """Write every page into a directory, which is made if it does not exist."""
    os.makedirs(directory, exist_ok=True)
    for name, page in pages().items():
        write_atomically(os.path.join(directory, name), page.encode(), 0o644)


if __name__ == "__main__":
    main(sys.argv[1])
