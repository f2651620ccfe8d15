"""Scenario files: what happens to a guest, and what its vmcore must then be like.  docs/lab.md describes the format."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crash_hotplug.core.compare import Kind
from crash_hotplug_lab.qemu.errors import ScenarioError
from crash_hotplug_lab.qemu.repeated_steps import written_out

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UPDATES = ("nothing", "kernel", "reload", "in-place", "watch")
"""Who brings the crash image up to date: nobody, the kernel's own handler, kexec-tools again, or this project, when it
is told to or as a service."""
LOADERS = {
    "c": "kexec_load",
    "s": "kexec_file_load",
    "ch": "kexec_load with --hotplug",
    "own": "crash-hotplug load: kexec_file_load and take-over",
}
KEXECS = ("c", "s", "ch")
"""The loaders that are kexec-tools."""
DIRECTORY = Path(__file__).parent / "scenarios"

_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# action: (what it needs, what it may have)
_ACTIONS: dict[str, tuple[set[str], set[str]]] = {
    "add-cpu": ({"name"}, set()),
    "remove-cpu": ({"name"}, set()),
    "add-dimm": ({"name", "size"}, {"address"}),
    "remove-dimm": ({"name"}, set()),
    "offline-block": ({"dimm", "block"}, set()),
    "online-block": ({"dimm", "block"}, set()),
    "plant": ({"dimm"}, set()),
    "busy": ({"cpu"}, set()),
    "load": (set(), set()),
    "update": (set(), {"resident"}),
    "flip": ({"in"}, set()),
    "command": ({"run"}, {"code", "says", "uid", "image", "if-exists"}),
    "shell": ({"run"}, {"if-exists"}),
    "look": (set(), set()),
    "measure": ({"what", "number"}, {"of"}),
    "wait": ({"seconds"}, set()),
    "storm": ({"dimms", "size", "cpus", "keeper"}, set()),
    "pace": ({"seconds"}, set()),
    "end": (set(), set()),
    "panic": ({"cpu"}, set()),
    "panic-within": ({"cpu", "seconds"}, set()),
}
MEASURED = ("updates", "kills", "bench", "handler", "watch-idle", "watch-events", "watch-trouble", "watch-forged")
_ENDS = ("panic", "panic-within", "end")
IMAGE = ("untouched", "changed")
"""What a command may do to the image."""
FLIPPED = ("boot_params", "elfcorehdr-padding")


@dataclass(frozen=True)
class Step:
    """One thing that happens: an action and its arguments, sizes and addresses as numbers."""

    action: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the step as it is shown in a time line: ``add-dimm d0 256M``."""
        shown = [
            hex(v) if k == "address" else f"{v >> 20}M" if k == "size" else str(v) for k, v in self.arguments.items()
        ]
        return " ".join([self.action, *shown])


@dataclass(frozen=True)
class Expected:
    """One finding that the audit must have: of a kind, about a CPU or about a DIMM's whole range."""

    kind: Kind
    cpu: int | None = None
    dimm: str | None = None


@dataclass(frozen=True)
class Expectation:
    """What must come of a scenario under one way of updating."""

    dump: bool = True
    """Whether there is to be a readable vmcore at all."""
    findings: tuple[Expected, ...] = ()
    fault: str = ""
    """Why the findings are the kernel's fault, where they are; else findings are a negative control."""
    record: bool = False
    """Whether what came is only recorded, complete, stale or nothing: for panics at a moment that nobody chose."""


@dataclass(frozen=True)
class Scenario:
    """One scenario file."""

    name: str
    title: str
    steps: tuple[Step, ...]
    expect: dict[str, Expectation]
    """By update."""
    memory: int = 1 << 30
    cpus: int = 2
    kernels: tuple[str, ...] = ()
    """Keys of the kernels that it is for; empty: all."""
    loaders: tuple[str, ...] = ()
    """Loaders that it is for; empty: all."""
    capture_without: tuple[str, ...] = ()
    """Words left out of the capture kernel's command line."""
    time_limit: float = 420
    """Seconds from QEMU's start until the guest is given up."""
    ram_holes: int = 0
    """Pages that the guest reserves at boot, each of which makes one more range of its RAM."""
    max_memory: int = 32 << 30
    """How much memory the machine can have with all DIMMs, at most."""
    counts_instructions: bool = False
    """Whether the guest's clock counts instructions, and not time: then nothing outside the guest makes it slower."""

    def counted(self) -> Scenario:
        """Return this scenario on a machine whose clock counts instructions: much slower, and the same every time."""
        return replace(self, name=f"{self.name}-counted", counts_instructions=True, time_limit=4 * self.time_limit)

    @property
    def ends_without_dump(self) -> bool:
        """Whether there is no panic."""
        return self.steps[-1].action == "end"

    @property
    def most_dimms(self) -> int:
        """How many DIMMs are plugged at once, at most."""
        plugged = most = 0
        for step in self.steps:
            plugged += (step.action == "add-dimm") - (step.action == "remove-dimm")
            most = max(most, plugged)
        return most


def bundled() -> list[str]:
    """Return the names of the scenarios that come with the lab."""
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def load(name: str) -> Scenario:
    """Read a bundled scenario by name, or a file by path.

    :raise ScenarioError: when there is none, or it does not say something that can be done
    """
    path = Path(name) if name.endswith(".toml") else DIRECTORY / f"{name}.toml"
    try:
        content = tomllib.loads(path.read_text())
    except OSError:
        raise ScenarioError(f"there is no scenario {name}; bundled are {', '.join(bundled())}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path.name}: {error}") from None
    return parse(path.stem, content)


def parse(name: str, content: dict[str, Any]) -> Scenario:
    """Check a scenario's content.

    :raise ScenarioError: names the file's key that is wrong
    """
    known = {
        "title",
        "step",
        "expect",
        "memory",
        "cpus",
        "kernels",
        "loaders",
        "capture-without",
        "time-limit",
        "ram-holes",
        "max-memory",
    }
    _no_others(name, "", content, known)
    raw_steps = written_out(name, _list(name, content, "step"), size)
    steps = tuple(_step(f"{name}: step {n}", raw) for n, raw in enumerate(raw_steps, 1))
    if [s.action for s in steps if s.action in _ENDS] not in (["panic"], ["panic-within"], ["end"]):
        raise ScenarioError(f"{name}: one step, and no other, has to be a panic (or end, where no dump is wanted)")
    if steps[-1].action not in ("panic", "end") and not any(s.action == "panic-within" for s in steps):
        raise ScenarioError(f"{name}: nothing can happen after the panic")
    raw_expect = content.get("expect", {})
    _no_others(name, "expect.", raw_expect, set(UPDATES))
    if not raw_expect:
        raise ScenarioError(f"{name}: expect is missing; it says what must come of each of {', '.join(UPDATES)}")
    dimms = {s.arguments["name"] for s in steps if s.action == "add-dimm"}
    expect = {u: _expectation(f"{name}: expect.{u}", raw, dimms) for u, raw in raw_expect.items()}
    for loader in content.get("loaders", ()):
        if loader not in LOADERS:
            raise ScenarioError(f"{name}: loaders has {loader}; known are {', '.join(LOADERS)}")
    return Scenario(
        name,
        str(content.get("title", name)),
        steps,
        expect,
        size(f"{name}: memory", content.get("memory", "1G")),
        int(content.get("cpus", 2)),
        tuple(content.get("kernels", ())),
        tuple(content.get("loaders", ())),
        tuple(content.get("capture-without", ())),
        float(content.get("time-limit", 420)),
        int(content.get("ram-holes", 0)),
        size(f"{name}: max-memory", content.get("max-memory", "32G")),
    )


def size(where: str, value: object) -> int:
    """Return a size or an address in bytes: a number, ``0x…``, or with K, M or G behind it.

    :raise ScenarioError: when it is none; the sentence begins with ``where``
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"(0x[0-9a-fA-F]+|\d+)([KMG]?)", str(value))
    if not match:
        raise ScenarioError(f"{where}: {value!r} is not a size such as 256M or 0x10000000")
    return int(match.group(1), 0) * _SIZES[match.group(2)]


def _list(name: str, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = content.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ScenarioError(f"{name}: {key} is not a list of tables ([[{key}]])")
    return value


def _no_others(name: str, prefix: str, content: object, known: set[str]) -> None:
    if not isinstance(content, dict):
        raise ScenarioError(f"{name}: {prefix.rstrip('.')} is not a table")
    for key in content:
        if key not in known:
            raise ScenarioError(f"{name}: {prefix}{key} is not known here; known are {', '.join(sorted(known))}")


def _step(where: str, raw: dict[str, Any]) -> Step:
    action = raw.get("do")
    if action not in _ACTIONS:
        raise ScenarioError(f"{where}: do is {action!r}; known are {', '.join(_ACTIONS)}")
    needed, optional = _ACTIONS[action]
    _no_others(where, "", raw, {"do"} | needed | optional)
    for key in needed - raw.keys():
        raise ScenarioError(f"{where}: {action} needs {key}")
    arguments = {key: value for key, value in raw.items() if key != "do"}
    for key in ("size", "address"):
        if key in arguments:
            arguments[key] = size(f"{where}: {key}", arguments[key])
    for key in ("cpu", "block", "number", "code", "uid", "dimms", "cpus"):
        if not isinstance(arguments.get(key, 0), int):
            raise ScenarioError(f"{where}: {key} is {arguments[key]!r}, not a number")
    if action == "measure" and arguments["what"] not in MEASURED:
        raise ScenarioError(f"{where}: what is {arguments['what']!r}; known are {', '.join(MEASURED)}")
    if arguments.get("image", IMAGE[0]) not in IMAGE:
        raise ScenarioError(f"{where}: image is {arguments['image']!r}; known are {', '.join(IMAGE)}")
    if action == "flip" and arguments["in"] not in FLIPPED:
        raise ScenarioError(f"{where}: in is {arguments['in']!r}; known are {', '.join(FLIPPED)}")
    return Step(action, arguments)


def _expectation(where: str, raw: dict[str, Any], dimms: set[str]) -> Expectation:
    _no_others(where, "", raw, {"dump", "findings", "fault", "record"})
    findings = []
    for entry in _list(where, raw, "findings"):
        _no_others(where, "findings.", entry, {"kind", "cpu", "dimm"})
        try:
            kind = Kind(entry.get("kind"))
        except ValueError:
            raise ScenarioError(f"{where}: kind {entry.get('kind')!r} is no kind of finding") from None
        if entry.get("dimm") is not None and entry["dimm"] not in dimms:
            raise ScenarioError(f"{where}: no step adds the DIMM {entry['dimm']}")
        findings.append(Expected(kind, entry.get("cpu"), entry.get("dimm")))
    return Expectation(
        bool(raw.get("dump", True)), tuple(findings), str(raw.get("fault", "")), bool(raw.get("record", False))
    )
