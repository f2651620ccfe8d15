# SPDX-License-Identifier: MIT
"""The vocabulary of a scenario file: its actions and its keys.

Two sides run scenarios: the model (:mod:`crash_hotplug_lab.model`) and QEMU with a real kernel
(:mod:`crash_hotplug_lab.qemu`).  Most actions and keys are for both.  ``only`` names the side of the
others; the other side refuses a scenario that uses them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from crash_hotplug.core.finding import Kind

MODEL, QEMU = "the model", "QEMU"
"""The two sides."""

POLICIES = ("reload", "reload-throttled", "v6", "merged", "in-place")
"""The ways of updating in the model (:data:`crash_hotplug_lab.model.policies.POLICIES`)."""
UPDATES = ("nothing", "kernel", "reload", "in-place", "watch")
"""The ways of updating under QEMU: no update, the kernel's own handler, a reload by kexec-tools, ``crash-hotplug
update``, ``crash-hotplug watch``."""
LOADERS = {
    "c": "kexec_load",
    "s": "kexec_file_load",
    "ch": "kexec_load with --hotplug",
    "own": "crash-hotplug load: kexec_file_load and take-over",
}
KEXECS = ("c", "s", "ch")
"""The loaders of kexec-tools."""
UDEV_RULES = ("rhel", "rhel-v6", "debian12")
"""The rules files of the model (:data:`crash_hotplug_lab.model.udev.RULES`)."""
MEASUREMENTS = ("updates", "kills", "bench", "handler", "watch-idle", "watch-events", "watch-trouble", "watch-forged")
ARCHITECTURES = ("x86_64", "arm64")
"""The architectures of QEMU's guests (qemu/guest_architecture.py) and of model machines (model/arch/supported.py)."""
MAX_BLOCKS = 1 << 16
"""Memory blocks of a machine; the kernel has 32,768 on a machine of 4 TiB."""
MAX_PHYSICAL = 1 << 46
"""End of the physical addresses of x86_64 with page tables of four levels (MAX_PHYSMEM_BITS)."""
ENDS = ("panic", "panic-within", "end")
"""The actions that end a scenario; each scenario has one of them."""
MEMORY_DEVICES = ("add-dimm", "add-kmem", "add-virtio-mem")
"""The actions that add memory under a name."""
KMEM_DEVICES = ("nvdimm", "cxl")
"""The kinds of memory devices that the kmem driver takes, the default first."""

Read = Callable[[object], Any]
"""Converts a value of a TOML file.

:raise ValueError: the value is wrong; the message gives the reason
"""


def text(value: object) -> str:
    """Read a string."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    return value


def flag(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def seconds(value: object) -> float:
    """Read a time in seconds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1 << 20:
        raise ValueError(f"{value!r} is not a number of seconds")
    return value


def number(least: int = 0, most: int = 1 << 20) -> Read:
    """Return the reader of a whole number."""

    def read(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{value!r} is not a number from {least} to {most}")
        return value

    return read


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|\d{1,19})([KMGT]?)")


def size(least: int = 0, most: int = MAX_PHYSICAL) -> Read:
    """Return the reader of a size or physical address in bytes: a number, ``0x...``, or a number with K, M, G or T."""

    def read(value: object) -> int:
        match = _SIZE.fullmatch(str(value)) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
        if match is None:
            raise ValueError(f"{value!r} is not a size or an address such as 256M or 0x100000000")
        found = int(match[1], 0 if match[1][:2].lower() == "0x" else 10) * _UNITS[match[2]]
        if not least <= found <= most:
            raise ValueError(f"{value!r} is out of range: the least is {least:#x}, the greatest {most:#x}")
        return found

    return read


def one_of(choices: Iterable[str]) -> Read:
    """Return the reader of one of some words."""
    known = tuple(choices)

    def read(value: object) -> str:
        if value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(known)}")
        return str(value)

    return read


def kernel(value: object) -> str:
    """Read a kernel's series, or the key of one of the lab's kernels."""
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,3}\.\d{1,3}(-?[a-z0-9]{1,8})?", value):
        raise ValueError(f"{value!r} is not a kernel series such as 6.1, or a kernel of the lab such as 7.2b")
    return value


def finding_kind(value: object) -> Kind:
    """Read the kind of a finding of ``audit``."""
    return Kind(one_of(kind.value for kind in Kind)(value))


def list_of(read_one: Read) -> Read:
    """Return the reader of a list with at least one value."""

    def read(values: object) -> tuple[Any, ...]:
        if not isinstance(values, list) or not values:
            raise ValueError(f"{values!r} is not a list of at least one value")
        return tuple(read_one(value) for value in values)

    return read


class Key(NamedTuple):
    """The reader of a key's value, and the only side that knows the key ("" for both)."""

    read: Read
    only: str = ""


_MIB = 1 << 20
KEYS: dict[str, Key] = {
    # The scenario.
    "title": Key(text),
    "description": Key(text),
    "policies": Key(list_of(one_of(POLICIES))),
    "time-limit": Key(seconds),
    # [machine]
    "kernels": Key(list_of(kernel)),
    "architectures": Key(list_of(one_of(ARCHITECTURES))),
    "memory": Key(size(256 * _MIB)),
    "cpus": Key(number(1, 128)),
    "possible-cpus": Key(number(1, 128), MODEL),
    "crashkernel": Key(size(_MIB), MODEL),
    "crashkernel-low": Key(size(), MODEL),
    "block-size": Key(size(_MIB), MODEL),
    "auto-online": Key(flag, MODEL),
    "max-memory-ranges": Key(number(1), MODEL),
    "max-memory": Key(size()),
    "ram-holes": Key(number(), QEMU),
    "crashkernel-cma": Key(size(_MIB), QEMU),
    "nodes": Key(number(1, 8)),
    "append": Key(text, QEMU),
    # [load]
    "loaders": Key(list_of(one_of(LOADERS))),
    "hotplug-size": Key(size(1), MODEL),
    "udev": Key(one_of(UDEV_RULES), MODEL),
    "kernel-pages": Key(number(1, 4096), MODEL),
    "capture-without": Key(list_of(text), QEMU),
    "capture-modules": Key(list_of(text), QEMU),
    # [[step]]
    "name": Key(text),
    "size": Key(size(1)),
    "address": Key(size()),
    "dimm": Key(text),
    "block": Key(number()),
    "blocks": Key(list_of(number()), MODEL),
    "requested": Key(size()),
    "node": Key(number(0, 7)),
    "device": Key(one_of(KMEM_DEVICES), QEMU),
    "options": Key(text, QEMU),
    "leave-offline": Key(flag, QEMU),
    "cpu": Key(number()),
    "online": Key(flag, MODEL),
    "loader": Key(one_of(KEXECS), MODEL),
    "flock": Key(flag, MODEL),
    "after-step": Key(text, MODEL),
    "actor": Key(text, MODEL),
    "resident": Key(flag),
    "in": Key(one_of(("boot_params", "elfcorehdr-padding"))),
    "run": Key(text),
    "code": Key(number(0, 255)),
    "says": Key(text),
    "uid": Key(number()),
    "image": Key(one_of(("untouched", "changed"))),
    "if-exists": Key(text),
    "what": Key(one_of(MEASUREMENTS)),
    "number": Key(number()),
    "of": Key(text),
    "seconds": Key(seconds),
    "dimms": Key(number()),
    "keeper": Key(one_of(("watch", "reload", "throttled"))),
    "times": Key(number(1, 1000)),
    "address-step": Key(size()),
    # [expect.UPDATE]
    "dump": Key(flag),
    "fault": Key(text),
    "record": Key(flag),
    "kind": Key(finding_kind),
}
"""Every key of a scenario file that holds a value."""

MACHINE_KEYS = ("kernels", "architectures", "memory", "cpus", "possible-cpus", "crashkernel", "crashkernel-low",
                "crashkernel-cma", "block-size", "auto-online", "max-memory-ranges", "max-memory",
                "ram-holes", "nodes", "append")  # fmt: skip
LOAD_KEYS = ("loaders", "hotplug-size", "udev", "kernel-pages", "capture-without", "capture-modules")


class ActionKind(NamedTuple):
    """The required and optional keys of an action, and the only side that can take it ("" for both)."""

    needs: tuple[str, ...] = ()
    may_have: tuple[str, ...] = ()
    only: str = ""


ACTIONS: dict[str, ActionKind] = {
    "add-cpu": ActionKind(("cpu",), ("online",)),
    "remove-cpu": ActionKind(("cpu",)),
    "online-cpu": ActionKind(("cpu",)),
    "offline-cpu": ActionKind(("cpu",)),
    "add-dimm": ActionKind(("name", "size"), ("address", "node", "leave-offline")),
    "add-kmem": ActionKind(("name", "size"), ("address", "device")),
    "add-virtio-mem": ActionKind(("name", "size"), ("requested", "blocks", "address", "node", "options")),
    "resize-virtio-mem": ActionKind(("name", "requested")),
    "remove-dimm": ActionKind(("name",)),
    "online-block": ActionKind(("dimm", "block")),
    "offline-block": ActionKind(("dimm", "block")),
    "plant": ActionKind(("dimm",)),
    "busy": ActionKind(("cpu",)),
    "load": ActionKind((), ("loader", "flock")),
    "unload": ActionKind((), ("flock",), MODEL),
    "update": ActionKind((), ("resident",)),
    "look": ActionKind(),
    "wait": ActionKind(("seconds",)),
    "pace": ActionKind(("seconds",)),
    "flip": ActionKind(("in",), (), QEMU),
    "command": ActionKind(("run",), ("code", "says", "uid", "image", "if-exists"), QEMU),
    "shell": ActionKind(("run",), ("if-exists",), QEMU),
    "measure": ActionKind(("what", "number"), ("of",), QEMU),
    "storm": ActionKind(("dimms", "size", "cpus", "keeper"), ("name",), QEMU),
    "shift-kcore": ActionKind(("number",), (), QEMU),
    "panic": ActionKind(("cpu",), ("after-step",)),
    "panic-within": ActionKind(("cpu", "seconds"), (), QEMU),
    "end": ActionKind((), (), QEMU),
}
"""Every action by its name in scenarios.  Each may have an ``actor``."""
