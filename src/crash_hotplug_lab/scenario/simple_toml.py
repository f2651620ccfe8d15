# SPDX-License-Identifier: MIT
"""Reads as much TOML as the bundled scenarios need, for a Python older than 3.11 that has no package tomli.

These are tables, arrays of tables, bare keys, and values that are a string, a decimal number, true or false, an
array, or an inline table.  Everything else is an error that names the line.  The tests compare it with tomllib.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

_TOKEN = re.compile(
    r'(?P<space>[ \t]+|#[^\n]*)|(?P<long>"""(?:[^"\\]|\\.|"(?!""))*""")|(?P<string>"(?:[^"\\\n]|\\.)*")'
    r"|(?P<literal>'[^'\n]*')"
    r"|(?P<word>[\w-]+)|(?P<mark>[][{}=,.])|(?P<line>\n)",
    re.DOTALL | re.ASCII,
)
_NEEDED = "needs Python 3.11 or the package tomli"
_VALUE = re.compile(r"true|false|-?(?:0|[1-9][0-9]*)")


def loads(text: str) -> dict[str, Any]:
    """Return the table that a text says.

    :raise ValueError: it is no TOML, or says something that only tomllib and tomli read; the line is named
    """
    content: dict[str, Any] = {}
    table = content
    for line, statement in _statements(text.replace("\r\n", "\n")):
        try:
            if statement[0] == "[":
                table = _new_table(content, statement)
            else:
                (assigned,) = _inline_table(statement).items()
                table.update(_unique([*table.items(), assigned]))
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise ValueError(f"line {line} is wrong, or {_NEEDED} ({error})") from None
    return content


def _statements(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each header and each assignment: the number of its first line, and its tokens."""
    at, depth, line, first_line = 0, 0, 1, 1
    statement: list[str] = []
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise ValueError(f"line {line} has {text[at]!r} and {_NEEDED}")
        at = token.end()
        if token.lastgroup == "line" and depth == 0 and statement:
            yield first_line, statement
            statement = []
        elif token.lastgroup not in ("space", "line"):
            first_line = first_line if statement else line
            statement.append(_JSON.get(token.lastgroup, str)(token[0]))
            depth += (token[0] in "[{") - (token[0] in "]}")
        line += token[0].count("\n")
    if statement:
        yield first_line, statement


def _in_one_line(string: str) -> str:
    """Return a string of several lines as JSON."""
    inner = re.sub(r"\\[ \t]*\n\s*", "", string[3:-3][string.startswith('"""\n') :])
    quoted = re.sub(r'(\\.)|"', lambda found: found[1] or '\\"', inner)
    return json.dumps(json.loads(f'"{quoted}"', strict=False))


_JSON: dict[str | None, Callable[[str], str]] = {"long": _in_one_line, "literal": lambda s: json.dumps(s[1:-1])}


def _new_table(content: dict[str, Any], header: list[str]) -> dict[str, Any]:
    """Return the empty table that a header begins."""
    brackets = 2 if header[1] == "[" else 1
    names = header[brackets:-brackets]
    if header != [*"[" * brackets, *names, *"]" * brackets] or set(names[1::2]) > {"."} or len(names) % 2 == 0:
        raise ValueError("no header")
    *parents, name = names[::2]
    for parent in parents:
        inner = content.setdefault(parent, {})
        content = inner[-1] if isinstance(inner, list) else inner
    if brackets == 2:
        content.setdefault(name, []).append({})
        last: dict[str, Any] = content[name][-1]
        return last
    content.update(_unique([*content.items(), (name, {})]))
    made: dict[str, Any] = content[name]
    return made


def _inline_table(inner: list[str]) -> dict[str, Any]:
    """Return the table of ``key = value, ...``, which is JSON but for a few marks."""
    made: dict[str, Any] = json.loads(" ".join(_as_json(["{", *inner, "}"])), object_pairs_hook=_unique)
    return made


def _as_json(tokens: list[str]) -> Iterator[str]:
    for token, following in zip(tokens, [*tokens[1:], ""]):
        if token == "," and following == "]":
            continue
        is_key = following == "=" and re.fullmatch(r"[\w-]+", token)
        if not is_key and re.match(r"[\w-]", token) and not _VALUE.fullmatch(token):
            raise ValueError(f"{token} is no value")
        yield f'"{token}"' if is_key else ":" if token == "=" else token


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is there twice")
    return made
