"""CPU hot-plug: add, online, offline, remove, in the kernel's order (kernel/cpu.c, drivers/acpi/acpi_processor.c)."""

from __future__ import annotations

import errno
from dataclasses import replace

from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.cpu_state import CpuState
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.events import Event, EventKind
from crash_hotplug_lab.model.machine import ModelMachine


def add_cpu(machine: ModelMachine, number: int) -> Steps[None]:
    """Plug a CPU in: it is present then, and not yet started.

    :raise ModelError: it is not possible (ENODEV) or there already (EEXIST)
    """
    cpu = _cpu(machine, number)
    if cpu.present:
        raise ModelError(errno.EEXIST, f"CPU {number} is there already")
    machine.cpus[number] = replace(cpu, present=True)
    yield Step(f"CPU {number}: present")
    machine.send_uevent(Event(EventKind.CPU_ADD, number))
    yield Step(f"CPU {number}: uevent add")


def online_cpu(machine: ModelMachine, number: int) -> Steps[None]:
    """Start a CPU: CPUHP_BP_PREPARE_DYN, then it runs, then CPUHP_AP_ONLINE_DYN.

    :raise ModelError: it is not there (ENODEV) or runs already (EINVAL)
    """
    cpu = _cpu(machine, number)
    if not cpu.present:
        raise ModelError(errno.ENODEV, f"CPU {number} is not plugged in")
    if cpu.online:
        raise ModelError(errno.EINVAL, f"CPU {number} runs already")
    event = Event(EventKind.CPU_ONLINE, number)
    yield from machine.cpuhp_prepare.call(event)
    machine.cpus[number] = replace(cpu, online=True)
    yield Step(f"CPU {number}: online")
    yield from machine.cpuhp_online.call(event)
    machine.send_uevent(event)
    yield Step(f"CPU {number}: uevent online")


def offline_cpu(machine: ModelMachine, number: int) -> Steps[None]:
    """Stop a CPU.  While the callbacks of CPUHP_AP_ONLINE_DYN run it is still online, and still present.

    :raise ModelError: it does not run (EINVAL), or is the last one that does (EBUSY)
    """
    cpu = _cpu(machine, number)
    if not cpu.online:
        raise ModelError(errno.EINVAL, f"CPU {number} does not run")
    if machine.online_cpus == [number]:
        raise ModelError(errno.EBUSY, f"CPU {number} is the last one that runs")
    event = Event(EventKind.CPU_OFFLINE, number)
    yield from machine.cpuhp_online.call(event)
    machine.cpus[number] = replace(cpu, online=False)
    yield Step(f"CPU {number}: offline")
    yield from machine.cpuhp_prepare.call(event)
    machine.send_uevent(event)
    yield Step(f"CPU {number}: uevent offline")


def remove_cpu(machine: ModelMachine, number: int) -> Steps[None]:
    """Unplug a CPU; one that runs is stopped first.  Nothing but a uevent tells of it.

    :raise ModelError: it is not there (ENODEV)
    """
    if not _cpu(machine, number).present:
        raise ModelError(errno.ENODEV, f"CPU {number} is not plugged in")
    if machine.cpus[number].online:
        yield from offline_cpu(machine, number)
    machine.cpus[number] = replace(machine.cpus[number], present=False)
    yield Step(f"CPU {number}: removed")
    machine.send_uevent(Event(EventKind.CPU_REMOVE, number))
    yield Step(f"CPU {number}: uevent remove")


def _cpu(machine: ModelMachine, number: int) -> CpuState:
    try:
        return machine.cpus[number]
    except KeyError:
        last = len(machine.cpus) - 1
        raise ModelError(errno.ENODEV, f"CPU {number} is not possible: this machine has 0 to {last}") from None
