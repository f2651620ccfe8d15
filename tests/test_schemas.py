# SPDX-License-Identifier: MIT
"""The JSON Schemas themselves: whole, documented, equal to the code's own words, and true of real runs."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from crash_hotplug.cli import update
from crash_hotplug.cli.arguments import parse
from crash_hotplug.cli.main import CRASH_HOTPLUG, Program
from crash_hotplug.cli.output import SCHEMA, finding_json
from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.doctor.forecast import Change
from crash_hotplug.core.finding import Finding, Kind, Verdict
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.ranges import Range
from crash_hotplug_lab.cli.main import CRASH_HOTPLUG_LAB
from crash_hotplug_lab.in_guest import image_states
from crash_hotplug_lab.model.events import EventKind
from crash_hotplug_lab.model.panic import DumpOutcome
from crash_hotplug_lab.model.policies import POLICIES
from crash_hotplug_lab.qemu import results
from crash_hotplug_lab.qemu.results import RunOutcome
from crash_hotplug_lab.scenario.format import LOADERS, UPDATES
from tests import schemas
from tests.cli.running import run
from tests.trees import tree

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "json.md"
PROGRAMS = {program.name: program for program in (CRASH_HOTPLUG, CRASH_HOTPLUG_LAB)}
NEEDS_A_MACHINE = {"update", "watch", "load", "run", "bench"}
"""Commands that read the running kernel; the tests of each run it on a machine of files, or without its guests."""


def places(schema: object, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object inside a schema, with the way to it."""
    if isinstance(schema, dict):
        yield where, schema
        for key, value in schema.items():
            yield from places(value, f"{where}/{key}")
    elif isinstance(schema, list):
        for number, value in enumerate(schema):
            yield from places(value, f"{where}/{number}")


def commands_with_json() -> Iterator[str]:
    for program in PROGRAMS.values():
        for name in program.commands:
            parser = argparse.ArgumentParser()
            importlib.import_module(f"{program.package}.{name}").add_arguments(parser)
            if "--json" in parser.format_usage():
                yield name


def place(name: str, *keys: str) -> dict[str, Any]:
    """Return a definition of a schema; each key after the first is a property, and lists are entered."""
    found = schemas.load(name)["$defs"][keys[0]]
    for key in keys[1:]:
        while "items" in found:
            found = found["items"]
        found = found["properties"][key]
    return dict(found)


def words(schema: dict[str, Any]) -> set[Any]:
    """Return the words of an enumeration."""
    return {each["const"] for each in schema["oneOf"]} if "oneOf" in schema else set(schema["enum"])


@pytest.mark.parametrize("name", schemas.names())
def test_schema_is_valid_and_its_references_lead_somewhere(name: str) -> None:
    schema = schemas.load(name)
    Draft202012Validator.check_schema(schema)
    for where, found in places(schema):
        if isinstance(found.get("$ref"), str):
            file, _hash, way = found["$ref"].partition("#")
            target: Any = schemas.load(file[: -len(".json")]) if file else schema
            for key in way.split("/")[1:]:
                assert key in target, f"{where}: {found['$ref']}"
                target = target[key]


@pytest.mark.parametrize("name", schemas.names())
def test_every_field_and_every_word_is_described(name: str) -> None:
    for where, found in places(schemas.load(name)):
        described = [found] if "const" in found else []
        if where.rpartition("/")[2] in ("properties", "$defs"):
            described = list(found.values())
        for each in described:
            assert each.get("description") or each.get("type") == "object", f"{where}: {each}"
        for key, value in found.get("properties", {}).items():
            assert value.get("description"), f"{where}/properties/{key}"


@pytest.mark.parametrize("name", schemas.names())
def test_objects_are_closed(name: str) -> None:
    for where, found in places(schemas.load(name)):
        if found.get("type") == "object" and "propertyNames" not in found:
            assert found["additionalProperties"] is False, where
            assert set(found["required"]) <= set(found["properties"]), where


def test_each_command_with_json_has_a_schema() -> None:
    commands = set(commands_with_json())
    assert set(schemas.names()) == commands | {"failed", schemas.COMMON}
    assert words(schemas.load("failed")["properties"]["command"]) == commands


@pytest.mark.parametrize(
    ("schema", "own"),
    [
        (place("common", "kind"), Kind),
        (place("common", "verdict"), Verdict),
        (place("common", "outcome"), Outcome),
        (place("common", "loader"), Loader),
        (place("common", "dump"), DumpOutcome),
        (place("run", "run", "outcome"), RunOutcome),
        (place("simulate", "simulated", "results", "reports", "event"), EventKind),
    ],
)
def test_words_are_those_of_the_code(schema: dict[str, Any], own: type[Enum]) -> None:
    assert words(schema) == {each.value for each in own}


@pytest.mark.parametrize(
    ("schema", "own"),
    [
        (place("common", "policy"), POLICIES),
        (place("list", "update"), UPDATES),
        (place("run", "run", "loader"), [*LOADERS, "kdump-tools"]),
        (place("update", "planned", "outcome"), update.DRY_RUN_CODES),
        (place("doctor", "diagnosed", "next_hotplug", "change"), [change.label for change in Change]),
    ],
)
def test_words_are_those_of_the_code_where_it_has_no_enum(schema: dict[str, Any], own: Iterable[str]) -> None:
    assert words(schema) == set(own)


def test_states_of_a_storm_are_those_of_the_sampler() -> None:
    state = place("run", "storm", "states")["items"]["prefixItems"][1]
    assert words(state) == {image_states.ACCURATE, image_states.STALE, image_states.NO_IMAGE}


def test_topics_of_doctor_are_those_that_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "doctor", "--sysroot", tree("6.1-c", 0), "--json").json["facts"]
    assert words(place("doctor", "diagnosed", "facts", "topic")) == {fact["topic"] for fact in found}


def test_version_is_that_of_the_code() -> None:
    assert place("common", "schema")["const"] == SCHEMA == results.SCHEMA


def documented() -> list[str]:
    """Return the examples in the table of the document."""
    return re.findall(r"^\| `\w+\.json` \| `([^`]*)`", DOCUMENT.read_text(), re.MULTILINE)


def test_document_has_an_example_of_each_command() -> None:
    shown = re.findall(r"^\| `(\w+)\.json`", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(shown) == schemas.names()
    assert {shlex.split(line)[1] for line in documented()} == set(commands_with_json())


@pytest.mark.parametrize("line", documented())
def test_documented_example_prints_what_its_schema_says(
    line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, arguments = split(line)
    if arguments[0] in NEEDS_A_MACHINE:
        assert parse(program, arguments).json
        return
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "list":
        pytest.importorskip("qemu.qmp", reason="the lab's extra is not installed")
    report = run(capsys, *arguments, program=program).json
    schemas.check(report)
    assert report["command"] == arguments[0]
    assert report.get("verdict") != "failed"


def split(line: str) -> tuple[Program, list[str]]:
    program, *arguments = shlex.split(line)
    return PROGRAMS[program], arguments


def shell_examples() -> list[tuple[str, str]]:
    """Return each command line of the first console block with what it prints."""
    block = DOCUMENT.read_text().partition("```console\n")[2].partition("```")[0]
    return re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
@pytest.mark.parametrize(("line", "printed"), shell_examples())
def test_documented_jq_prints_what_the_document_shows(
    line: str, printed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, jq = line.split(" | ")
    program, arguments = split(command)
    monkeypatch.chdir(ROOT)
    out = run(capsys, *arguments, program=program).out
    assert subprocess.run(shlex.split(jq), input=out, stdout=subprocess.PIPE, text=True, check=True).stdout == printed


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the object of a status with two findings."""
    return run(capsys, "status", "--sysroot", tree("6.1-c", 1), "--json").json


def complaint(report: dict[str, Any]) -> str:
    with pytest.raises(AssertionError) as caught:
        schemas.check(report)
    return str(caught.value)


def test_check_notices_a_field_that_no_schema_has(report: dict[str, Any]) -> None:
    schemas.check(report)
    report["kernel"]["colour"] = "red"
    assert "status.json: $.kernel: " in complaint(report)
    assert "('colour' was unexpected)" in complaint(report)


def test_check_notices_a_field_that_is_missing(report: dict[str, Any]) -> None:
    del report["crash_image"]["room"]
    assert complaint(report).endswith("status.json: $.crash_image: 'room' is a required property")


def test_check_notices_a_wrong_type(report: dict[str, Any]) -> None:
    report["memory"]["ram"][0]["start"] = 4096
    assert complaint(report).endswith("status.json: $.memory.ram[0].start: 4096 is not of type 'string'")


def test_check_notices_a_word_that_no_schema_has(report: dict[str, Any]) -> None:
    report["findings"][1]["kind"] = "memory-lost"
    assert "$.findings[1].kind: 'memory-lost' is not valid" in complaint(report)


def test_check_notices_a_command_without_a_schema(report: dict[str, Any]) -> None:
    assert "there is no schema for the output of 'stat'" in complaint({**report, "command": "stat"})
    assert "there is no schema" in complaint({"schema": 1})


def test_check_notices_another_version(report: dict[str, Any]) -> None:
    assert "$.schema: 1 was expected" in complaint({**report, "schema": 2})


def test_every_object_that_a_command_prints_is_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crash_hotplug.cli.output.finding_json", lambda found: {**finding_json(found), "colour": "red"})
    with pytest.raises(AssertionError, match=r"\$\.findings\[0\]: Additional properties .*'colour' was unexpected"):
        run(capsys, "status", "--sysroot", tree("6.1-c", 1), "--json")


@pytest.mark.parametrize("end", [1, 1 << 64])
def test_addresses_up_to_the_end_of_the_address_space_are_accepted(report: dict[str, Any], end: int) -> None:
    report["findings"] = [finding_json(Finding(Kind.MEMORY_MISSING, "memory is missing", (Range(0, end),)))]
    schemas.check(report)
    report["findings"][0]["ranges"][0]["end"] = hex(end).upper()
    assert "does not match" in complaint(report)
