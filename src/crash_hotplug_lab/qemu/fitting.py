# SPDX-License-Identifier: MIT
"""Fits a scenario to a kernel and its architecture, or says why it cannot run there.

Scenarios are written for x86_64 guests with memory blocks of 128 MiB.  Where QEMU cannot plug a CPU, CPU 1 goes offline
and comes back instead.  Where a read of removed memory aborts, no dump is expected of a header that describes it.
Where memory blocks are larger, every DIMM and every address is larger by the same factor.
"""

from __future__ import annotations

from dataclasses import replace

from crash_hotplug.core.finding import Kind
from crash_hotplug.core.sizes import human_size
from crash_hotplug_lab.qemu.guest_architecture import X86_64
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.scenario.cpu_replug import plugs_cpus, without_cpu_hotplug
from crash_hotplug_lab.scenario.records import BLOCK_SIZE, Action, Expectation, Scenario

_FIXED = ("measure", "storm")
"""Steps whose programs plug CPUs themselves, or count those that were plugged."""
_LARGEST_VMEMMAP = 4
"""Share of the RAM at boot that struct pages of the DIMMs may take: one part of this many."""
_STRUCT_PAGE, _PAGE = 64, 4096
_KNOWS_INACCESSIBLE = (5, 16)
"""Series of the first kernel whose virtio-mem driver takes a device with VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE."""
_CREATES_RAM_REGIONS = (6, 3)
"""Series of the first kernel that makes regions of volatile CXL memory (6e099264185d)."""


def fit(scenario: Scenario, kernel: Kernel) -> tuple[Scenario, str]:
    """Return the scenario for a kernel's guests, and the reason why they cannot run it; empty where they can."""
    architecture, refusal = kernel.architecture, _refusal(scenario, kernel)
    if refusal:
        return scenario, refusal
    if not architecture.plugs_cpus and plugs_cpus(scenario):
        if any(action.do in _FIXED for action in scenario.actions):
            return scenario, f"QEMU has no CPU hot-plug on {architecture.name}"
        scenario = without_cpu_hotplug(scenario)
    scenario = _with_corrections(scenario, kernel)
    if not architecture.reads_gone_memory:
        scenario = _without_dumps_of_gone_memory(scenario)
    factor = kernel.block_size // BLOCK_SIZE
    if factor > 1:
        scenario = _with_larger_blocks(scenario, factor)
        if _dimm_bytes(scenario) // _PAGE * _STRUCT_PAGE > scenario.machine.memory // _LARGEST_VMEMMAP:
            return scenario, (
                f"memory blocks have {human_size(kernel.block_size)}: struct pages of all DIMMs do not fit into the "
                "guest's RAM"
            )
    if architecture.time_factor > 1:
        scenario = replace(scenario, time_limit=scenario.time_limit * architecture.time_factor)
    return scenario, ""


def _refusal(scenario: Scenario, kernel: Kernel) -> str:
    """Return why a kernel's guests cannot have the machine or the memory devices of a scenario; empty if they can."""
    architecture = kernel.architecture
    if scenario.machine.architectures and architecture.name not in scenario.machine.architectures:
        return f"the scenario is for {', '.join(scenario.machine.architectures)} only"
    if scenario.machine.ram_holes and architecture is not X86_64:
        return f"{architecture.name} kernels have no memmap=, which makes holes in RAM"
    if not kernel.plugs_dimms and any(action.do == "add-dimm" for action in scenario.actions):
        return "the kernel has no ACPI_HOTPLUG_MEMORY, so it takes no DIMM"
    if kernel.series < _KNOWS_INACCESSIBLE and any(map(_is_inaccessible, scenario.actions)):
        return "QEMU's virtio-mem device requires a driver that reads no unplugged memory (Linux 5.16)"
    return _cxl_refusal(scenario, kernel)


def _cxl_refusal(scenario: Scenario, kernel: Kernel) -> str:
    if all(action.arguments.get("device") != "cxl" for action in scenario.actions):
        return ""
    if kernel.series < _CREATES_RAM_REGIONS:
        return "the kernel makes no region of volatile CXL memory (Linux 6.3)"
    if scenario.counts_instructions:  # cxl_region_invalidate_memregion(); the other machine's CPU hides the flag
        return "with --count-instructions the CPU has the flag hypervisor, and Linux makes no CXL region there"
    return ""


def _is_inaccessible(action: Action) -> bool:
    """Whether a step adds a device with VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE, QEMU's default."""
    return action.do == "add-virtio-mem" and "unplugged-inaccessible=off" not in action.arguments.get("options", "")


def _with_corrections(scenario: Scenario, kernel: Kernel) -> Scenario:
    """Return a scenario that expects of the kernel no finding that its patches correct."""
    corrects, expected = kernel.source.corrects, scenario.expect.get("kernel")
    if expected is None or not corrects:
        return scenario
    findings = tuple(finding for finding in expected.findings if finding.kind not in corrects)
    return replace(scenario, expect={**scenario.expect, "kernel": replace(expected, findings=findings)})


def _without_dumps_of_gone_memory(scenario: Scenario) -> Scenario:
    """Return a scenario that expects no dump where the header would describe memory that is gone."""

    def unreadable(expectation: Expectation) -> Expectation:
        if all(finding.kind is not Kind.MEMORY_GONE for finding in expectation.findings):
            return expectation
        return replace(expectation, dump=False, findings=())

    expect = {update: unreadable(expectation) for update, expectation in scenario.expect.items()}
    return scenario if expect == scenario.expect else replace(scenario, expect=expect)


def _with_larger_blocks(scenario: Scenario, factor: int) -> Scenario:
    """Return a scenario in which each DIMM, and each distance between two addresses, is larger by a factor."""
    base = min((action.arguments["address"] for action in scenario.actions if "address" in action.arguments), default=0)

    def scaled(action: Action) -> Action:
        arguments = dict(action.arguments)
        if action.do == "add-dimm":
            arguments["size"] *= factor
            if "address" in arguments:
                arguments["address"] = base + (arguments["address"] - base) * factor
        return replace(action, arguments=arguments)

    return replace(scenario, actions=tuple(map(scaled, scenario.actions)))


def _dimm_bytes(scenario: Scenario) -> int:
    """Return the largest number of bytes in DIMMs at one time."""
    plugged: dict[str, int] = {}
    most = 0
    for action in scenario.actions:
        if action.do == "add-dimm":
            plugged[action.arguments["name"]] = action.arguments["size"]
        elif action.do == "remove-dimm":
            plugged.pop(action.arguments["name"], None)
        most = max(most, sum(plugged.values()))
    return most
