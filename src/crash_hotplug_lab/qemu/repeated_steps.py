"""Steps that a scenario file has repeated, written out: each name gets the repetition's number, each address moves."""

from __future__ import annotations

from typing import Any, Callable

from crash_hotplug_lab.qemu.errors import ScenarioError

_KEYS = {"do", "times", "address-step", "step"}
_MOST = 1000


def written_out(name: str, raw: list[dict[str, Any]], size: Callable[[str, object], int]) -> list[dict[str, Any]]:
    """Return the steps of a scenario file with each ``repeat`` replaced by what it stands for.

    ``{n}`` in a text becomes the number of the repetition, from 0; ``address-step`` is added to every ``address``.

    :param name: the scenario's, for errors
    :param size: reads a size such as ``256M``
    :raise ScenarioError: a repetition says something else
    """
    steps = []
    for number, step in enumerate(raw, 1):
        if step.get("do") != "repeat":
            steps.append(step)
            continue
        where = f"{name}: step {number}"
        times, inner = step.get("times"), step.get("step")
        for key in step.keys() - _KEYS:
            raise ScenarioError(f"{where}: {key} is not known here; known are {', '.join(sorted(_KEYS))}")
        if not isinstance(times, int) or not 1 <= times <= _MOST:
            raise ScenarioError(f"{where}: times is {times!r}, not a number from 1 to {_MOST}")
        if not isinstance(inner, list) or not all(isinstance(s, dict) for s in inner):
            raise ScenarioError(f"{where}: repeat needs a list of steps ([[step.step]])")
        apart = size(f"{where}: address-step", step.get("address-step", 0))
        for n in range(times):
            steps += [_copy(s, n, n * apart, where, size) for s in inner]
    return steps


def _copy(step: dict[str, Any], n: int, farther: int, where: str, size: Callable[[str, object], int]) -> dict[str, Any]:
    copied = {key: value.replace("{n}", str(n)) if isinstance(value, str) else value for key, value in step.items()}
    if "address" in copied:
        copied["address"] = size(f"{where}: address", copied["address"]) + farther
    return copied
