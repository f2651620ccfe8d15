# SPDX-License-Identifier: MIT
"""Man pages from the text of ``--help``: ``python3 -m crash_hotplug.cli.man_page DIRECTORY``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from crash_hotplug import __version__
from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.command_tree import Argument, Command, read_commands
from crash_hotplug.linux.atomic_file import write_atomically

SECTION = 8
"""Administration: the section of kexec, kdumpctl, kdump-config and makedumpfile."""

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
_SEE_ALSO = "kexec(8), kdumpctl(8), kdump-config(8), makedumpfile(8), crash(8)"


def main_page(program: Command, commands: Sequence[Command]) -> str:
    """Return crash-hotplug(8): the purpose of the program, its commands, exit codes and files."""
    parser = program.parser
    lines = _head("crash-hotplug", "keeps the loaded crash image accurate while CPUs and memory come and go")
    lines += [
        ".B crash\\-hotplug",
        "\\fICOMMAND\\fR [\\fIOPTION\\fR...]",
        ".SH DESCRIPTION",
        *_text(parser.description or ""),
        ".SH COMMANDS",
    ]
    for command in commands:
        lines += [".TP", f".BR crash\\-hotplug\\-{_roff(command.name)} ({SECTION})", _roff(command.summary)]
    lines += [".SH OPTIONS", *_arguments(program.options), *_epilog(parser.epilog or ""), ".SH FILES"]
    for paths, text in _FILES.items():
        lines += [".TP", f".I {_roff(paths)}", _roff(text)]
    pages = ", ".join(f"{_page_name(command)}({SECTION})" for command in commands)
    return _page([*lines, *_see_also(f"{pages}, {_SEE_ALSO}")])


def command_page(command: Command) -> str:
    """Return the page of one command, such as crash-hotplug-status(8)."""
    parser = command.parser
    lines = [*_head(_page_name(command), command.summary), *_synopsis(command), ".SH DESCRIPTION"]
    lines += _text(parser.description or "")
    lines += [".SH OPTIONS", *_arguments([*command.positionals, *command.options]), *_epilog(parser.epilog or "")]
    return _page([*lines, *_see_also(f"crash-hotplug({SECTION})")])


def _page_name(command: Command) -> str:
    return f"crash-hotplug-{command.name}"


def _synopsis(command: Command) -> list[str]:
    usage = " ".join(command.parser.format_usage().split()[1:])
    return [f".B {_roff(command.parser.prog)}", _roff(usage[len(command.parser.prog) :].strip())]


def _arguments(arguments: Iterable[Argument]) -> Iterator[str]:
    for argument in arguments:
        yield from (".TP", f".B {_roff(argument.invocation)}", _roff(argument.help))


def _head(name: str, summary: str) -> list[str]:
    title = f'.TH {_roff(name.upper())} {SECTION} "" "crash-hotplug {__version__}" "System Administration"'
    # No word of a usage line is broken at a hyphen, and none is spread over the line.
    return [title, ".nh", ".ad l", ".SH NAME", f"{_roff(name)} \\- {_roff(summary)}", ".SH SYNOPSIS"]


def _text(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines += [".PP", *(_roff(line.strip()) for line in paragraph.splitlines())]
    return lines[1:]


def _epilog(epilog: str) -> list[str]:
    """Turn the headed, preformatted parts of an epilog ("examples:") into sections; the exit status is a list."""
    lines: list[str] = []
    inside = False
    for line in epilog.replace(exit_codes.HELP, "").strip().splitlines():
        if re.fullmatch(r"[a-z ]+:", line):
            lines += [".fi"] if inside else []
            lines += [f".SH {line[:-1].upper()}", ".nf"]
            inside = True
        elif line.strip():
            lines.append(_roff(line))
    lines += [".fi"] if inside else []
    if exit_codes.HELP in epilog:
        lines.append(".SH EXIT STATUS")
        for code, meaning in exit_codes.MEANINGS.items():
            lines += [".TP", f".B {code}", _roff(meaning)]
    return lines


def _see_also(pages: str) -> list[str]:
    lines = [".SH SEE ALSO"]
    for page in pages.split(", "):
        name, section = page.rstrip(")").split("(")
        lines.append(f".BR {_roff(name)} ({section}),")
    return [*lines[:-1], lines[-1].rstrip(",")]


def _page(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    """Escape the characters that troff would take for markup."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def pages() -> dict[str, str]:
    """Return every page by its file's name."""
    program, *commands = read_commands()
    texts = {_page_name(command): command_page(command) for command in commands}
    return {
        f"{name}.{SECTION}": text for name, text in {"crash-hotplug": main_page(program, commands), **texts}.items()
    }


def main(directory: str) -> None:
    """Write every page into a directory, which is made if it does not exist."""
    os.makedirs(directory, exist_ok=True)
    for name, page in pages().items():
        write_atomically(os.path.join(directory, name), page.encode(), 0o644)


if __name__ == "__main__":
    main(sys.argv[1])
