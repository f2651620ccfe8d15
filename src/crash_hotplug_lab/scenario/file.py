# SPDX-License-Identifier: MIT
"""Reads scenario files (TOML); errors name the file, the line and the key.  docs/scenarios.md describes the format."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Union

from crash_hotplug.core.errors import InputError
from crash_hotplug.linux.sysroot import open_regular, read_all
from crash_hotplug_lab.scenario import simple_toml
from crash_hotplug_lab.scenario.format import (
    ACTIONS,
    ENDS,
    KEYS,
    LOAD_KEYS,
    MACHINE_KEYS,
    MAX_BLOCKS,
    MEMORY_DEVICES,
    UPDATES,
)
from crash_hotplug_lab.scenario.records import HOTPLUG_ACTOR, Action, Expectation, Expected, Hardware, Loading, Scenario

DIRECTORY = Path(__file__).parent.parent / "scenarios"
"""The bundled scenarios."""
SIZE_LIMIT = 1 << 20
"""Bytes that a scenario file may have."""
Place = tuple[Union[str, int], ...]
"""The place of a value in a file: ("step", 2, "cpu") is the key ``cpu`` below the third ``[[step]]``."""


def bundled_names() -> list[str]:
    """Return the names of the bundled scenarios."""
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def bundled_scenarios() -> list[Scenario]:
    """Read all bundled scenarios, in the order of their names."""
    return [read_scenario(name) for name in bundled_names()]


def read_scenario(name: str) -> Scenario:
    """Read a bundled scenario by its name, or a scenario file by its path.

    :raise CannotTellError: the file may not be read
    :raise InputError: there is no such file, it is no regular file or too large, or its content is wrong
    """
    bundled = DIRECTORY / f"{name}.toml"
    path = bundled if re.fullmatch(r"[\w-]+", name) and bundled.is_file() else Path(name)
    opened = open_regular(str(path), f"the scenario {name}")
    if opened is None:
        raise InputError(
            f"there is no scenario {name}; `crash-hotplug-lab list` shows those that come with this program"
        )
    with opened as file:
        data = read_all(file, SIZE_LIMIT, f"the scenario {name}")
    try:
        text = data.decode()
    except ValueError as error:
        raise InputError(f"the scenario {name} cannot be read: {error}") from error
    return replace(parse_scenario(text, name), name=path.stem)


def parse_scenario(text: str, name: str = "the scenario") -> Scenario:
    """Parse the text of a scenario file.

    :param name: the file's name, for errors
    :raise InputError: the content is wrong; the message names the line and the key
    """
    try:
        content = _toml_reader().loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not TOML: {error}") from error
    file = _File(name, text)
    values = file.values((), content, (), _TOP_KEYS)
    actions = _actions(file, content.get("step"))
    return Scenario(
        **{"title": name, **_as_fields(values)},
        actions=actions,
        name=name,
        expect=_expect(file, content.get("expect", {}), actions),
        machine=_hardware(file, content.get("machine", {})),
        load=Loading(**_as_fields(file.values(("load",), content.get("load", {}), (), LOAD_KEYS))),
    )


def _toml_reader() -> ModuleType:
    for module in ("tomllib", "tomli"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    return simple_toml


_TOP_KEYS = ("title", "description", "policies", "time-limit", "machine", "load", "step", "expect")
_KEY = re.compile(r"""\s*(["']?)([\w-]+)\1\s*=""")
_HEADER = re.compile(r"""\s*(\[\[?)([\w."' -]+)\]""")


class _File:
    """The text of a scenario file, for errors that name its lines."""

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text

    def error(self, place: Place, sentence: str) -> InputError:
        """Return the error for the value at *place*."""
        return InputError(f"{self.where(place)}: {sentence}")

    def where(self, place: Place) -> str:
        """Return the file, the line and the key of the value at *place*."""
        key = ".".join(str(part + 1) if isinstance(part, int) else part for part in place)
        return f"{self._name}, line {self._line_of(place)}, {key}"

    def _line_of(self, place: Place) -> int:
        """Return the line of a key, or of its table if the key is missing."""
        while place not in self._lines and place:
            place = place[:-1]
        return self._lines.get(place, 1)

    @cached_property
    def _lines(self) -> dict[Place, int]:
        """Return the line of each table and of each key."""
        lines: dict[Place, int] = {}
        table: Place = ()
        seen: Counter[Place] = Counter()
        in_text = False
        for number, line in enumerate(self._text.splitlines(), 1):
            header, key = _HEADER.match(line), _KEY.match(line)
            if header and not in_text:
                table = ()
                for name in header[2].split("."):
                    if table in seen:  # [[step.step]] belongs to the last [[step]]
                        table = (*table, seen[table] - 1)
                    table = (*table, name.strip().strip("\"'"))
                if header[1] == "[[":
                    seen[table] += 1
                    table = (*table, seen[table] - 1)
                lines.setdefault(table, number)
            elif key and not in_text:
                lines[(*table, key[2])] = number
            in_text ^= (line.count('"""') + line.count("'''")) % 2 == 1
        return lines

    def values(self, place: Place, raw: object, needed: Iterable[str], optional: Iterable[str]) -> dict[str, Any]:
        """Return the values of the table at *place*, without nested tables.

        :raise InputError: the table lacks a key or has an unknown one, or a value is wrong
        """
        known = (*needed, *optional)
        if not isinstance(raw, dict):
            raise self.error(place, "is not a table")
        for key in raw:
            if key not in known:
                raise self.error((*place, key), f"there is no such key; there are {', '.join(known)}")
        for key in needed:
            if key not in raw:
                raise self.error((*place, key), "is missing")
        return {key: self.value((*place, key), raw[key]) for key in raw if key in KEYS}

    def value(self, place: Place, raw: object) -> Any:  # noqa: ANN401 (the key decides the type)
        """Convert the value at *place*."""
        try:
            return KEYS[str(place[-1])].read(raw)
        except ValueError as error:
            raise self.error(place, str(error)) from None

    def tables(self, place: Place, raw: object) -> list[dict[str, Any]]:
        """Return the tables of a list."""
        if not isinstance(raw, list) or not all(isinstance(table, dict) for table in raw):
            raise self.error(place, f"is not a list of tables: write [[{place[-1]}]] above each")
        return raw


def _as_fields(values: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in values.items()}


def _hardware(file: _File, raw: object) -> Hardware:
    """Read ``[machine]``."""
    values = _as_fields(file.values(("machine",), raw, (), MACHINE_KEYS))
    values.setdefault("possible_cpus", max(Hardware.possible_cpus, values.get("cpus", 0)))
    machine = Hardware(**values)

    def error(key: str, sentence: str) -> InputError:
        return file.error(("machine", key), sentence)

    mib, gib = 1 << 20, 1 << 30
    if machine.possible_cpus < machine.cpus:
        raise error("possible-cpus", f"is less than cpus ({machine.cpus})")
    if machine.block_size & (machine.block_size - 1):
        raise error("block-size", "is not a power of two")
    if machine.memory // machine.block_size > MAX_BLOCKS:
        raise error("memory", f"has more than {MAX_BLOCKS} memory blocks of {machine.block_size} bytes")
    if machine.crashkernel_low and machine.memory <= 3 * gib:
        raise error("crashkernel-low", "goes with a main reservation above 4 GiB: the machine needs over 3 GiB")
    room = min(machine.memory, 3 * gib) - 128 * mib
    if machine.crashkernel_low:
        room = machine.memory - 3 * gib - 16 * mib
    if machine.crashkernel > room or machine.crashkernel_low > gib:
        raise error("crashkernel", "does not fit into the machine's memory")
    if machine.crashkernel % mib or machine.crashkernel_low % mib:
        raise error("crashkernel", "is not a multiple of 1 MiB")
    return machine


def _actions(file: _File, raw: object) -> tuple[Action, ...]:
    """Read every ``[[step]]``."""
    if raw is None or raw == []:
        raise file.error(("step",), "there is no [[step]]: nothing happens")
    actions: list[Action] = []
    for number, table in enumerate(file.tables(("step",), raw)):
        place = ("step", number)
        actions += _repeated(file, place, table) if table.get("do") == "repeat" else [_action(file, place, table)]
    ends = [action.do for action in actions if action.do in ENDS]
    if len(ends) != 1:
        raise file.error(("step",), f"exactly one step has to be one of {', '.join(ENDS)}; {len(ends)} are")
    if ends != ["panic-within"] and actions[-1].do not in ENDS:
        raise file.error(("step",), f"no step can follow {ends[0]}")
    return tuple(actions)


def _action(file: _File, place: Place, raw: dict[str, Any]) -> Action:
    do = raw.get("do")
    if not isinstance(do, str) or do not in ACTIONS:
        raise file.error((*place, "do"), f"{do!r} is none of {', '.join((*ACTIONS, 'repeat'))}")
    arguments = file.values(place, raw, ("do", *ACTIONS[do].needs), (*ACTIONS[do].may_have, "actor"))
    if arguments.get("device") == "cxl" and "address" in arguments:
        raise file.error((*place, "address"), "QEMU places the window of a CXL device itself")
    actor = arguments.pop("actor", HOTPLUG_ACTOR)
    return Action(do, arguments, actor, file.where(place))


def _repeated(file: _File, place: Place, raw: dict[str, Any]) -> list[Action]:
    """Expand a ``repeat``: replace ``{n}`` in strings by the number of the repetition, and move each address."""
    values = file.values(place, raw, ("do", "times", "step"), ("address-step",))
    steps = file.tables((*place, "step"), raw["step"])
    actions = []
    for n in range(values["times"]):
        for number, step in enumerate(steps):
            copied = {k: v.replace("{n}", str(n)) if isinstance(v, str) else v for k, v in step.items()}
            action = _action(file, (*place, "step", number), copied)
            if "address" in action.arguments:
                moved = action.arguments["address"] + n * values.get("address-step", 0)
                action = replace(action, arguments={**action.arguments, "address": moved})
            actions.append(action)
    return actions


def _expect(file: _File, raw: object, actions: tuple[Action, ...]) -> dict[str, Expectation]:
    """Read every ``[expect.UPDATE]``."""
    file.values(("expect",), raw, (), UPDATES)
    assert isinstance(raw, dict)
    dimms = [action.arguments["name"] for action in actions if action.do in MEMORY_DEVICES]
    return {update: _expectation(file, ("expect", update), table, dimms) for update, table in raw.items()}


def _expectation(file: _File, place: Place, raw: dict[str, Any], dimms: list[str]) -> Expectation:
    values = file.values(place, raw, (), ("dump", "findings", "fault", "record"))
    findings = []
    for number, table in enumerate(file.tables((*place, "findings"), raw.get("findings", []))):
        at = (*place, "findings", number)
        found = file.values(at, table, ("kind",), ("cpu", "dimm", "block"))
        if found.get("dimm") not in (None, *dimms):
            raise file.error((*at, "dimm"), f"no step adds the DIMM {found['dimm']}")
        findings.append(Expected(found["kind"], found.get("cpu"), found.get("dimm"), found.get("block")))
    return Expectation(findings=tuple(findings), **values)
