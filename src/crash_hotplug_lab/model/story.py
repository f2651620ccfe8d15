"""The story that ``simulate`` tells without arguments, and how long each policy leaves a machine without an image."""

from __future__ import annotations

from typing import NamedTuple

from crash_hotplug_lab.scenario.records import Action, Scenario

MIB, GIB = 1 << 20, 1 << 30

STORY = Scenario(
    title="Two CPUs and a DIMM come, another DIMM comes and goes, then the kernel panics",
    description="A guest with 2 CPUs and 1 GiB of RAM, whose kdump was loaded when it booted:",
    actions=(
        Action("add-cpu", {"cpu": 2}),
        Action("add-cpu", {"cpu": 3}),
        Action("add-dimm", {"name": "dimm0", "size": 256 * MIB}),
        Action("plant", {"dimm": "dimm0"}),
        Action("add-dimm", {"name": "dimm1", "size": 128 * MIB, "address": 5 * GIB}),
        Action("remove-dimm", {"name": "dimm1"}),
    ),
    policies=("reload", "merged", "in-place"),
)


WHAT_A_POLICY_DOES = {
    "reload": "udev has the image unloaded and loaded again at every event",
    "reload-throttled": "udev has the image reloaded, events that come together at once (RHEL)",
    "v6": "the kernel patches of 2022 rewrite the header at every event",
    "merged": "the kernel's own handler rewrites the header (6.6 and newer)",
    "in-place": "crash-hotplug replaces the header in the loaded image",
}
"""Each policy in a few words, for people."""


class WindowCost(NamedTuple):
    """How long one update leaves the machine without a crash image, in seconds, and who measured it."""

    least: float
    most: float
    source: str


WINDOWS = {
    "reload": WindowCost(0.5, 1.0, "one kdumpctl reload takes 0.5 to 1 s or more; the image is gone for most of it"),
    "v6": WindowCost(0.0067, 0.023, "not measured for v6; the merged handler's time is taken"),
    "merged": WindowCost(0.0067, 0.023, "crash_handle_hotplug_event of 6.12 under the kexec lock, an emulated guest"),
    "in-place": WindowCost(0.0048, 0.0088, "medians of 180 kexec_load calls on 5.10 and 6.1, an emulated guest"),
}
WINDOWS["reload-throttled"] = WINDOWS["reload"]


def window_sentence(policy: str, windows: int) -> str:
    """Say how long the machine was without a crash image: so many windows at the measured time of each."""
    if windows == 0:
        return "never"
    cost = WINDOWS[policy]
    times = "once" if windows == 1 else f"{windows} times"
    return f"{times}, {_seconds(cost.least * windows)} to {_seconds(cost.most * windows)}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"
