"""Man pages out of what ``--help`` says: ``python3 -m crash_hotplug.cli.man_page DIRECTORY``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable

from crash_hotplug import __version__
from crash_hotplug.cli.main import COMMANDS, build_parser

SECTION = 1


def main_page() -> str:
    """Return crash-hotplug(1): what the program is for, its commands, the exit codes."""
    parser = build_parser()
    lines = _head("crash-hotplug", "is the loaded crash image accurate?")
    lines += [
        "crash\\-hotplug \\fICOMMAND\\fR [\\fIOPTION\\fR...]",
        ".SH DESCRIPTION",
        *_text(parser.description or ""),
    ]
    lines.append(".SH COMMANDS")
    for name, summary in COMMANDS.items():
        lines += [".TP", f".BR crash\\-hotplug\\-{_roff(name)} ({SECTION})", _roff(summary)]
    return _page([*lines, *_epilog(parser.epilog or "")])


def command_page(name: str) -> str:
    """Return the page of one command, such as crash-hotplug-status(1)."""
    parser = _command_parser(name)
    lines = _head(f"crash-hotplug-{name}", COMMANDS[name])
    usage = " ".join(parser.format_usage().split()[1:])
    lines += [_roff(usage), ".SH DESCRIPTION", *_text(parser.description or ""), ".SH OPTIONS"]
    for action in parser._actions:
        lines += [
            ".TP",
            f".B {_roff(_invocation(action))}",
            _roff((action.help or "").replace("%(prog)s", parser.prog)),
        ]
    return _page([*lines, *_epilog(parser.epilog or ""), ".SH SEE ALSO", f".BR crash\\-hotplug ({SECTION})"])


def _command_parser(name: str) -> argparse.ArgumentParser:
    for action in build_parser(name)._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser = action.choices[name]
            assert isinstance(parser, argparse.ArgumentParser)
            return parser
    raise KeyError(name)


def _invocation(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar or action.dest)
    choices = None if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}"
    value = "" if action.nargs == 0 else f" {action.metavar or choices or action.dest.upper()}"
    return ", ".join(action.option_strings) + value


def _head(name: str, summary: str) -> list[str]:
    title = f'.TH {_roff(name.upper())} {SECTION} "" "crash-hotplug {__version__}" "User Commands"'
    return [title, ".SH NAME", f"{_roff(name)} \\- {_roff(summary)}", ".SH SYNOPSIS"]


def _text(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines += [".PP", *(_roff(line.strip()) for line in paragraph.splitlines())]
    return lines[1:]


def _epilog(epilog: str) -> list[str]:
    """Turn the headed, preformatted parts of an epilog ("examples:", "exit status:") into sections."""
    lines: list[str] = []
    inside = False
    for line in epilog.strip().splitlines():
        if re.fullmatch(r"[a-z ]+:", line):
            lines += [".fi"] if inside else []
            lines += [f".SH {line[:-1].upper()}", ".nf"]
            inside = True
        elif line.strip():
            lines.append(_roff(line))
    return [*lines, ".fi"] if inside else lines


def _page(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    """Escape what troff would take for markup."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(directory: str) -> None:
    """Write every page into a directory, which is made."""
    os.makedirs(directory, exist_ok=True)
    pages = {"crash-hotplug": main_page(), **{f"crash-hotplug-{name}": command_page(name) for name in COMMANDS}}
    for name, page in pages.items():
        with open(os.path.join(directory, f"{name}.{SECTION}"), "w") as file:
            file.write(page)


if __name__ == "__main__":
    main(sys.argv[1])
