# SPDX-License-Identifier: MIT
"""In the guest: measures how long the kernel's own handler and an update in place hold the kexec lock.

The kernel's function_graph tracer times the two functions, first without the functions that they call, so that tracing
adds no time, then with them.  A panic while the lock is held leaves no dump.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from crash_hotplug.core.update import update as update_steps
from crash_hotplug.linux.loading.live_machine import LiveMachine, run_patiently
from crash_hotplug_lab.bench.bench_updates import rewrite_header

_TRACING = "/sys/kernel/tracing"
_HANDLER, _CALL = "crash_handle_hotplug_event", "__x64_sys_kexec_load"
_PARTS = (
    "arch_kexec_unprotect_crashkres", "arch_kexec_protect_crashkres", "arch_crash_handle_hotplug_event", "kimage_free",
    "machine_kexec_prepare", "kimage_load_segment", "kimage_crash_copy_vmcoreinfo", "kimage_alloc_control_pages",
    "do_kimage_alloc_init", "machine_kexec_cleanup", "crash_prepare_elf64_headers", "kernel_map_pages_in_pgd",
    "kernel_ident_mapping_init",
)  # fmt: skip
_MEMORY = "/sys/devices/system/memory"
_LINE = re.compile(r"\d+\)\s+(?:\S\s+)?([\d.]+) us\s+\|\s+(?:([\w.]+)\(\);|\} /\* ([\w.]+)[^*]*\*/)")


def write(path: str, text: str) -> None:
    """Write a file of procfs, sysfs or tracefs."""
    with open(path, "w") as file:
        file.write(text)


def read(path: str) -> str:
    """Read a file of procfs, sysfs or tracefs."""
    with open(path) as file:
        return file.read()


def trace(functions: tuple[str, ...]) -> list[str]:
    """Trace those of the functions that the kernel has, and return their names."""
    if not os.path.exists(f"{_TRACING}/current_tracer"):
        subprocess.run(["mount", "-t", "tracefs", "tracefs", _TRACING], check=True)
    known = {line.split()[0] for line in read(f"{_TRACING}/available_filter_functions").splitlines()}
    there = [name for name in functions if name in known]
    write(f"{_TRACING}/current_tracer", "nop")
    write(f"{_TRACING}/set_ftrace_filter", "\n".join(there))
    write(f"{_TRACING}/current_tracer", "function_graph")
    write(f"{_TRACING}/trace_options", "funcgraph-tail")  # an option of that tracer: known only now
    write(f"{_TRACING}/trace", "")
    return there


def durations() -> dict[str, list[float]]:
    """Return the milliseconds of each call since the last time, by function."""
    found: dict[str, list[float]] = {}
    for line in read(f"{_TRACING}/trace").splitlines():
        matched = _LINE.search(line)
        if matched:
            found.setdefault(matched[2] or matched[3], []).append(float(matched[1]) / 1e3)
    write(f"{_TRACING}/trace", "")
    return found


def hotplugged_block() -> str:
    """Return the sysfs directory of the last memory block, which can go offline."""
    blocks = [name for name in os.listdir(_MEMORY) if re.fullmatch(r"memory\d+", name)]
    return f"{_MEMORY}/{max(blocks, key=lambda name: int(name[6:]))}"


def update(machine: LiveMachine) -> None:
    """Update in place, even if the header is accurate."""
    rewrite_header(machine)


def events(number: int) -> dict[str, list[dict[str, list[float]]]]:
    """Cause each kind of event and update *number* times, in turn; return the traced times of each kind."""
    block, machine = hotplugged_block(), LiveMachine()
    kinds: dict[str, Callable[[], None]] = {
        "memory offline": lambda: write(f"{block}/state", "offline"),
        "memory online": lambda: write(f"{block}/state", "online_movable"),
        "CPU offline": lambda: write("/sys/devices/system/cpu/cpu1/online", "0"),
        "CPU online": lambda: write("/sys/devices/system/cpu/cpu1/online", "1"),
        "update in place": lambda: update(machine),
    }
    found: dict[str, list[dict[str, list[float]]]] = {kind: [] for kind in kinds}
    durations()
    for _ in range(number):
        for kind, happen in kinds.items():
            happen()
            time.sleep(0.05)
            found[kind].append(durations())
    return found


def main(number: int) -> None:
    """Measure and print."""
    machine = LiveMachine()
    print(f"take-over: {run_patiently(update_steps(machine)).outcome.value}")
    if _HANDLER not in trace((_HANDLER, _CALL)):
        sys.exit("this kernel has no handler of its own")
    for kind, traced in events(number).items():
        function = _CALL if kind == "update in place" else _HANDLER
        values = [sum(calls[function]) for calls in traced if function in calls]
        if not values:
            print(f"{kind}: {function} did not run")
            continue
        print(
            f"{kind}: {function} {len(values)} times, median {statistics.median(values):.2f} ms "
            f"({min(values):.2f} to {max(values):.2f})"
        )
    trace((_HANDLER, _CALL, *_PARTS))
    for kind, traced in events(max(3, number // 4)).items():
        names = {name for calls in traced for name in calls}
        parts = {name: statistics.median([sum(calls.get(name, [0.0])) for calls in traced]) for name in names}
        shown = ", ".join(f"{name} {ms:.2f}" for name, ms in sorted(parts.items(), key=lambda part: -part[1]))
        print(f"inside {kind}, median ms: {shown}")
    write(f"{_TRACING}/current_tracer", "nop")


if __name__ == "__main__":
    main(int(sys.argv[1]))
