# SPDX-License-Identifier: MIT
"""The JSON Schemas in docs/schema/, and the check of every object that a test lets a command print.

conftest.py puts :func:`checking_print` around the one function that prints JSON, so no test has to ask for the check.
:func:`check` is for the output of other processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, wraps
from itertools import islice
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource

from crash_hotplug.cli.output import SCHEMA

DIRECTORY = Path(__file__).parent.parent / "docs" / "schema"
COMMON = "common"
"""The file of shared definitions, which describes no output of its own."""
_CHECKED_ITEMS = 1000
"""Items of a list that are checked: the check takes longer than the tests of 100,000 findings may."""
_FILES = {"lab run": "run"}
"""The file of a ``command`` that is not named after it."""


def names() -> list[str]:
    """Return the names of all schemas."""
    return sorted(path.stem for path in DIRECTORY.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    """Return a schema."""
    schema: dict[str, Any] = json.loads((DIRECTORY / f"{name}.json").read_text())
    return schema


@cache
def validator(name: str) -> Draft202012Validator:
    """Return the validator of a schema, which finds the others by their file names."""
    resources = [(f"{each}.json", Resource.from_contents(load(each))) for each in names()]
    registry: Registry[Any] = Registry().with_resources(resources)
    return Draft202012Validator({"$ref": f"{name}.json"}, registry=registry)


def check(report: Mapping[str, Any]) -> None:
    """Check one object against the schema of its command.

    :raise AssertionError: there is no such schema, or the object is not as it says
    """
    command = report.get("command", "")
    name = _FILES.get(command, command)
    assert name in names(), f"there is no schema for the output of {command!r}: {report}"
    shortened = {key: value[:_CHECKED_ITEMS] if isinstance(value, list) else value for key, value in report.items()}
    for error in map(_cause, validator(name).iter_errors(shortened)):
        raise AssertionError(f"docs/schema/{name}.json: {error.json_path}: {error.message}")


def _cause(error: ValidationError) -> ValidationError:
    """Return the error inside the alternative that fits best: the one with the fewest wrong fields of its own."""
    alternatives: dict[Any, list[ValidationError]] = {}
    for inner in error.context or ():
        alternatives.setdefault(inner.schema_path[0], []).append(inner)
    if all(inner.validator == "const" for inner in error.context or ()):  # none, or the words of an enumeration
        return error
    return _cause(min(alternatives.values(), key=lambda errors: (sum(not e.path for e in errors), len(errors)))[0])


def checking_print(print_json: Callable[[Mapping[str, Any]], None]) -> Callable[[Mapping[str, Any]], None]:
    """Return print_json() with a check of the object that it printed."""

    @wraps(print_json)
    def print_and_check(report: Mapping[str, Any]) -> None:
        seen: dict[str, Any] = {"schema": SCHEMA, **report}
        passed = dict(report)
        for key, value in report.items():
            if isinstance(value, Iterator):
                seen[key] = first = list(islice(value, _CHECKED_ITEMS))
                passed[key] = _joined(first, value)
        print_json(passed)
        check(json.loads(json.dumps(seen)))

    return print_and_check


def _joined(first: list[Any], others: Iterator[Any]) -> Iterator[Any]:
    yield from first
    yield from others


def checking(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return a function that makes an object, or reads it from another process, with a check of that object."""

    @wraps(make)
    def make_and_check(*arguments: object) -> dict[str, Any]:
        content = make(*arguments)
        check(json.loads(json.dumps(content)))
        return content

    return make_and_check
