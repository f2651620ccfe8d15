"""Scenarios as TOML files; errors name the line and the key."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Union

from crash_hotplug.core.errors import InputError
from crash_hotplug.core.machine import kernel_version
from crash_hotplug_lab.model.loader import parse_hotplug_size, small_capture_kernel
from crash_hotplug_lab.model.policies import POLICIES
from crash_hotplug_lab.model.profile import CRASH_MAX_MEMORY_RANGES
from crash_hotplug_lab.model.scenario import ACTIONS, DEFAULT_KERNEL, Action, Scenario, Value
from crash_hotplug_lab.model.udev import RULES, rules_named
from crash_hotplug_lab.model.user_space import Kexec, Loader

DIRECTORY = Path(__file__).parent / "scenarios"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|\d{1,19})([KMGT]?)")
Path_ = tuple[Union[str, int], ...]


class _File:
    """A scenario's text, to say where in it something is wrong."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._lines = text.splitlines()

    def error(self, path: Path_, sentence: str) -> InputError:
        """Return the error for the key at *path*, such as ("event", 2, "cpu")."""
        key = ".".join(str(part + 1) if isinstance(part, int) else part for part in path)
        line = self._line_of(path)
        return InputError(f"{self.name}, line {line}, {key}: {sentence}")

    def _line_of(self, path: Path_) -> int:
        """Return the line of the key, else of the table that should have it, else 1."""
        tables = [part for part in path if isinstance(part, str)]
        table, key = (tables[0], tables[1]) if len(tables) > 1 else ("", tables[0])
        index = next((part for part in path if isinstance(part, int)), 0)
        current, seen, found = "", -1, 1
        for number, line in enumerate(self._lines, 1):
            header = re.match(r"\s*\[\[?\s*([\w-]+)\s*\]", line)
            if header:
                current = header[1]
                seen += current == (table or key)
                if current == (table or key) and seen == index:
                    found = number
            elif (
                current == table
                and seen == (index if table else -1)
                and re.match(rf'\s*"?{re.escape(key)}"?\s*=', line)
            ):
                return number
        return found


class _Table:
    """One table of the file: takes values out by key and type, and complains of what is left."""

    def __init__(self, file: _File, path: Path_, values: Mapping[str, Any]) -> None:
        self.file = file
        self.path = path
        self._left = dict(values)

    def error(self, key: str, sentence: str) -> InputError:
        return self.file.error((*self.path, key), sentence)

    def text(self, key: str, default: str | None = None) -> str:
        return str(self.take(key, str, "a text", default))

    def flag(self, key: str, default: bool | None = None) -> bool:
        return bool(self.take(key, bool, "true or false", default))

    def size(self, key: str, default: int | None = None, least: int = 0) -> int:
        value = self.take(key, (int, str), "a number, or a size such as 256M", default)
        matched = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if isinstance(value, str) and matched is None:
            raise self.error(key, f"{value!r} is not a size or an address such as 256M or 0x100000000")
        number = int(matched[1], 0) * _UNITS[matched[2]] if matched else int(value)
        if not least <= number < 1 << 64:
            raise self.error(key, f"{value!r} is out of range (it starts at {least})")
        return number

    def choice(self, key: str, choices: list[str], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in choices:
            raise self.error(key, f"{value!r} is none of {', '.join(choices)}")
        return value

    def numbers(self, key: str) -> tuple[int, ...]:
        values = self.take(key, list, "a list of numbers", None)
        if not all(type(value) is int and 0 <= value < 1 << 20 for value in values):
            raise self.error(key, "is not a list of small numbers")
        return tuple(values)

    def has(self, key: str) -> bool:
        return key in self._left

    def take_table(self, key: str) -> _Table:
        values = self._left.pop(key, {})
        if not isinstance(values, dict):
            raise self.error(key, "is not a table")
        return _Table(self.file, (*self.path, key), values)

    def take_tables(self, key: str) -> list[_Table]:
        values = self._left.pop(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.error(key, f"is not a list of tables: write [[{key}]] above each")
        return [_Table(self.file, (*self.path, key, i), value) for i, value in enumerate(values)]

    def end(self, known: str) -> None:
        """Complain of a key that nobody took."""
        for key in self._left:
            raise self.error(key, f"there is no such key; there are {known}")

    def take(self, key: str, kind: type | tuple[type, ...], what: str, default: object) -> Any:  # noqa: ANN401 (TOML)
        if key not in self._left:
            if default is None:
                raise self.error(key, "is missing")
            return default
        value = self._left.pop(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"{value!r} is not {what}")
        return value


def read_scenario(path: str) -> Scenario:
    """Read a scenario: a file's path, or the name of a bundled one.

    :raise InputError: it cannot be read, or something in it is wrong; the message names line and key
    """
    bundled = DIRECTORY / f"{path}.toml"
    file = bundled if re.fullmatch(r"[\w-]+", path) and bundled.is_file() else Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"the scenario {path} cannot be read: {getattr(error, 'strerror', None) or error} "
            "(simulate --list shows those that come with this program)"
        ) from error
    return parse_scenario(text, path)


def bundled_names() -> list[str]:
    """Return the names of the scenarios that come with this program."""
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def parse_scenario(text: str, name: str = "the scenario") -> Scenario:
    """Parse a scenario's text; errors as :func:`read_scenario`."""
    toml = _toml_reader()
    try:
        values = toml.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name} is not TOML: {error}") from error
    file = _File(name, text)
    top = _Table(file, (), values)
    load = top.take_table("load")
    panic = top.take_table("panic")
    machine = top.take_table("machine")
    events = top.take_tables("event")
    if not events:
        raise file.error(("event",), "there is no [[event]]: nothing happens")
    kernel = machine.text("kernel", DEFAULT_KERNEL)
    if kernel_version(kernel) is None:
        raise machine.error("kernel", f"{kernel!r} is not a kernel release such as 6.1.0")
    scenario = Scenario(
        title=top.text("title"),
        description=top.text("description", ""),
        policies=_policies(top),
        actions=tuple(_action(event) for event in events),
        kernel=kernel,
        machine=_machine(machine),
        kexec=_kexec(load),
        hotplug=load.flag("hotplug") if load.has("hotplug") else None,
        rules=rules_named(load.choice("udev", list(RULES), "rhel")),
        panic_after=panic.size("after") if panic.has("after") else None,
        panic_step=panic.text("step") if panic.has("step") else None,
    )
    if scenario.panic_after is not None and scenario.panic_after > len(events):
        raise panic.error("after", f"there are {len(events)} events only")
    top.end("title, description, policies, machine, load, event, panic")
    machine.end("kernel, memory, cpus, possible_cpus, crashkernel, crashkernel_low, block_size, auto_online")
    load.end("loader, hotplug, hotplug_size, udev, kernel_pages")
    panic.end("after, step")
    return scenario


def _toml_reader() -> ModuleType:
    for module in ("tomllib", "tomli"):
        try:
            return importlib.import_module(module)
        except ImportError:
            continue
    raise InputError(
        "a scenario needs Python 3.11, or the package tomli on older ones; without a file simulate needs neither"
    )


def _policies(top: _Table) -> tuple[str, ...]:
    if not top.has("policies"):
        return ("reload", "merged", "in-place")
    names = top.take("policies", list, "a list of policies", None)
    for name in names:
        if name not in POLICIES:
            raise top.error("policies", f"{name!r} is none of {', '.join(POLICIES)}")
    if not names:
        raise top.error("policies", "is empty")
    return tuple(names)


def _machine(table: _Table) -> dict[str, Value]:
    mib = 1 << 20
    boot_cpus = table.size("cpus", 2, 1)
    options: dict[str, Value] = {
        "memory": table.size("memory", 1024 * mib, 256 * mib),
        "boot_cpus": boot_cpus,
        "possible_cpus": table.size("possible_cpus", max(8, boot_cpus), 1),
        "crashkernel": table.size("crashkernel", 192 * mib, mib),
        "crashkernel_low": table.size("crashkernel_low", 0),
        "block_size": table.size("block_size", 128 * mib, mib),
        "auto_online": table.flag("auto_online", True),
        "max_memory_ranges": table.size("max_memory_ranges", CRASH_MAX_MEMORY_RANGES, 1),
    }
    memory, crashkernel, block_size = (int(str(options[key])) for key in ("memory", "crashkernel", "block_size"))
    if int(str(options["possible_cpus"])) > 128 or boot_cpus > int(str(options["possible_cpus"])):
        raise table.error("possible_cpus", f"has to be at least cpus ({boot_cpus}) and at most 128")
    if block_size & (block_size - 1):
        raise table.error("block_size", "is not a power of two")
    low = int(str(options["crashkernel_low"]))
    if low and memory <= 3 << 30:
        raise table.error("crashkernel_low", "goes with a main reservation above 4 GiB: the machine needs over 3 GiB")
    room = memory - (3 << 30) - 16 * mib if low else min(memory, 3 << 30) - 128 * mib
    if crashkernel > room or low > 1 << 30 or crashkernel % mib or low % mib:
        raise table.error("crashkernel", "does not fit into the machine's memory, or is no multiple of 1 MiB")
    return options


def _kexec(table: _Table) -> Kexec:
    pages = table.size("kernel_pages", 4, 1)
    if pages > 4096:
        raise table.error("kernel_pages", "is more than 4096 (16 MiB)")
    loader = Loader(table.choice("loader", [loader.value for loader in Loader], Loader.KEXEC_LOAD.value))
    kexec = Kexec(small_capture_kernel(pages), loader)
    if not table.has("hotplug_size"):
        return kexec
    value = table.take("hotplug_size", (int, str), "a number of bytes", None)
    try:
        return replace(kexec, hotplug_size=parse_hotplug_size(str(value)))
    except InputError as error:
        raise table.error("hotplug_size", str(error)) from error


_NUMBERS = ("cpu", "at", "size", "word", "value", "block")
_FLAGS = ("online", "flock")


def _action(table: _Table) -> Action:
    do = table.choice("do", list(ACTIONS))
    kind = ACTIONS[do]
    values: dict[str, Value] = {}
    for key in (*kind.required, *(key for key in kind.optional if table.has(key))):
        if key in _NUMBERS:
            values[key] = table.size(key)
        elif key in _FLAGS:
            values[key] = table.flag(key)
        elif key == "blocks":
            values[key] = table.numbers(key)
        elif key == "loader":
            values[key] = table.choice(key, [loader.value for loader in Loader])
        else:
            values[key] = table.text(key)
    actor = table.text("actor", "hotplug")
    table.end(", ".join(("do", "actor", *kind.required, *kind.optional)))
    return Action(do, values, actor)
