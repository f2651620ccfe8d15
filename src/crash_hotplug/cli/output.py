# SPDX-License-Identifier: MIT
"""Output of results: JSON objects, coloured verdicts, labelled lines, ranges."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from crash_hotplug.core.finding import Comparison, Finding, Verdict
    from crash_hotplug.core.ranges import Range

SCHEMA = 1
SHOWN = 20
"""Findings, notes or ranges that are printed at most; --json has all of them."""
_LABEL_WIDTH = 14
GOOD = "32;1"
"""Terminal colours: green, red, yellow."""
BAD = "31;1"
UNSURE = "33;1"
_COLOURS = {"accurate": GOOD, "not accurate": BAD, "no crash image": BAD}


def printable(text: str) -> str:
    """Return *text* with every character escaped that a terminal may act on, as ``\\x1b``: it may come from a file.

    Each command prints text that it did not write itself through this function.  A line end is escaped as well, so that
    no file can add a line to a report.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def print_json(report: Mapping[str, Any]) -> None:
    """Print one JSON object, its schema first: a line for each key, and for each item of a list below a key.

    json's own indentation is written in Python: for 100,000 findings it takes 2 s and 400 MiB.  Items of
    an iterator are made while they are printed.
    """
    from json import JSONEncoder  # noqa: PLC0415 takes as long as the whole comparison

    encode = JSONEncoder(check_circular=False).encode
    separator = "{\n  "
    for key, value in {"schema": SCHEMA, **report}.items():
        sys.stdout.write(f"{separator}{encode(key)}: ")
        separator = ",\n  "
        if isinstance(value, (list, tuple, Iterator)):
            sys.stdout.writelines(_json_items(value, encode))
        elif isinstance(value, dict) and value:
            lines = (f"{encode(name)}: {encode(item)}" for name, item in value.items())
            sys.stdout.write("{\n    " + ",\n    ".join(lines) + "\n  }")
        else:
            sys.stdout.write(encode(value))
    print("\n}")


def _json_items(items: Iterable[Any], encode: Callable[[Any], str]) -> Iterator[str]:
    separator = "[\n    "
    for item in items:
        yield separator + encode(item)
        separator = ",\n    "
    yield "[]" if separator.startswith("[") else "\n  ]"


def print_json_line(report: Mapping[str, Any]) -> None:
    """Print one JSON object in a line of its own, its schema first."""
    from json import dumps  # noqa: PLC0415

    made = {key: list(value) if isinstance(value, Iterator) else value for key, value in report.items()}
    print(dumps({"schema": SCHEMA, **made}))


def print_verdict(verdict: Verdict, sentence: str) -> None:
    """Print the first line: the verdict in capitals, coloured on a terminal, and its meaning."""
    print_headline(verdict.value, sentence, _COLOURS.get(verdict.value, UNSURE))


def print_verdict_line(subject: str, word: str, sentence: str) -> None:
    """Print a verdict on one of several subjects, which stands before it."""
    sys.stdout.write(printable(subject))
    print_headline(word, sentence, _COLOURS.get(word, BAD if word == "failed" else UNSURE))


def print_headline(word: str, sentence: str, colour: str) -> None:
    """Print a first line: a word in capitals, coloured on a terminal, and its meaning."""
    word = word.upper()
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb":
        word = f"\033[{colour}m{word}\033[0m"
    print(f"{word}: {printable(sentence)}")


def print_labelled(label: str, lines: Iterable[str], width: int = _LABEL_WIDTH) -> None:
    """Print lines behind a label, aligned."""
    for number, line in enumerate(lines):
        print(f"{label if number == 0 else '':<{width}}{printable(line)}")


def print_comparison(comparison: Comparison) -> None:
    """Print findings, notes and unmade checks, each under its heading."""
    from crash_hotplug.core.summary import summarize  # noqa: PLC0415 JSON needs none

    groups = (
        ("Findings", summarize(comparison.findings), len(comparison.findings)),
        ("Notes", summarize(comparison.notes), len(comparison.notes)),
        ("Not checked", [*comparison.unchecked, *comparison.left_out], 0),
    )
    for heading, sentences, number in groups:
        if sentences:
            print(f"\n{heading}" + (f" ({number:,}; --json lists each)" if number > len(sentences) else ""))
            for sentence in limited(sentences):
                print(f"  {printable(sentence)}")


def limited(lines: list[str]) -> list[str]:
    """Return the first lines, and one that counts the others."""
    if len(lines) <= SHOWN:
        return lines
    return [*lines[:SHOWN], f"... and {len(lines) - SHOWN} more (--json lists all)"]


def comparison_json(comparison: Comparison) -> dict[str, list[Any]]:
    """Return findings, notes and unmade checks for JSON."""
    return {name: list(items) for name, items in comparison_items(comparison).items()}


def comparison_items(comparison: Comparison) -> dict[str, Iterable[Any]]:
    """Return :func:`comparison_json` for :func:`print_json`, with findings and notes that are made while printed."""
    return {
        "findings": map(finding_json, comparison.findings),
        "notes": map(finding_json, comparison.notes),
        "unchecked": [*comparison.unchecked, *comparison.left_out],
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return one finding for JSON."""
    report: dict[str, Any] = {"kind": finding.kind.value, "sentence": finding.sentence, "bytes": finding.size}
    report["ranges"] = ranges_json(finding.ranges)
    if finding.cpu is not None:
        report["cpu"] = finding.cpu
    return report


def ranges_json(ranges: Iterable[Range]) -> list[dict[str, Any]]:
    """Return physical ranges for JSON: hex strings; *end* is the first byte behind the range."""
    return [{"start": hex(start), "end": hex(end), "size": end - start} for start, end in ranges]


def progress(what: str) -> None:
    """Print, on a terminal, the name of work that takes more than a moment."""
    if sys.stderr.isatty():
        print(f"{printable(what)} ...", file=sys.stderr, flush=True)
