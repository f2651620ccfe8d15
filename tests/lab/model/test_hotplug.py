# SPDX-License-Identifier: MIT
"""The order of hot-plug steps, notifiers and uevents, the notifier chains, and udev's rules."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.steps import Step, Steps, run
from crash_hotplug_lab.model.arch.x86_64 import default_profile
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.events import Event, EventKind
from crash_hotplug_lab.model.hotplug import (
    KMEM_RAM,
    VIRTIO_MEM_RAM,
    add_cpu,
    add_memory,
    add_virtio_mem,
    offline_block,
    offline_cpu,
    online_block,
    online_cpu,
    remove_cpu,
    remove_memory,
    resize_virtio_mem,
)
from crash_hotplug_lab.model.in_kernel import install_in_kernel_handler
from crash_hotplug_lab.model.loader import small_capture_kernel
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.notifier import NotifierChain
from crash_hotplug_lab.model.policies import V6, Merged
from crash_hotplug_lab.model.udev import RULES, crash_hotplug_attribute
from crash_hotplug_lab.model.user_space import Kexec, LoadCall

BLOCK = 128 << 20
DIMM = Range(4 << 30, (4 << 30) + 2 * BLOCK)


def booted(release: str = "5.10.0-model", **options: object) -> ModelMachine:
    return boot(default_profile(release, **options))  # type: ignore[arg-type]


def listener(seen: list[object], what: Callable[[], object]) -> Callable[[Event], Steps[None]]:
    def called(event: Event) -> Steps[None]:
        seen.append((event.kind, what()))
        yield Step("heard")

    return called


def test_chain_calls_higher_priorities_first_and_equal_ones_in_order() -> None:
    chain: NotifierChain[Event] = NotifierChain()
    heard: list[object] = []
    for name, priority in (("a", 0), ("b", 10), ("c", 0), ("d", -1)):
        chain.register(name, listener(heard, name.upper), priority)
    run(chain.call(Event(EventKind.LOOK)))
    assert heard == [(EventKind.LOOK, name) for name in "BACD"]


def test_leaving_cpu_is_present_and_online_while_the_v6_notifier_runs() -> None:
    machine = booted()
    heard: list[object] = []
    machine.cpuhp_online.register("test", listener(heard, lambda: (machine.cpus[1].present, machine.cpus[1].online)))
    run(remove_cpu(machine, 1))
    assert heard == [(EventKind.CPU_OFFLINE, (True, True))]
    assert not machine.cpus[1].present


def test_merged_handler_is_called_before_a_cpu_starts() -> None:
    machine = booted()
    heard: list[object] = []
    machine.cpuhp_prepare.register("test", listener(heard, lambda: machine.cpus[2].online))
    run(add_cpu(machine, 2))
    run(online_cpu(machine, 2))
    assert heard == [(EventKind.CPU_ONLINE, False)]


def test_block_is_in_iomem_at_mem_offline_and_its_removal_is_not_notified() -> None:
    machine = booted()
    run(add_memory(machine, "dimm0", DIMM))
    heard: list[object] = []
    in_iomem = listener(heard, lambda: machine.ram.covers(RangeList([DIMM])))
    machine.memory_chain.register("test", in_iomem)
    run(remove_memory(machine, "dimm0"))
    assert heard == [(EventKind.MEMORY_OFFLINE, True)] * 2
    assert not machine.ram.contains(DIMM.start)
    assert machine.uevents[-1].kind is EventKind.MEMORY_REMOVE


def test_hotplug_of_driver_added_and_sparse_memory() -> None:
    machine = booted(auto_online=False)
    run(add_memory(machine, "dax0.0", DIMM, KMEM_RAM))
    run(add_virtio_mem(machine, "virtio0", Range(8 << 30, 9 << 30), (0, 2, 5)))
    assert machine.devices["virtio0"].resource == VIRTIO_MEM_RAM
    assert machine.devices["virtio0"].plugged.size == 3 * BLOCK
    assert len(machine.devices["virtio0"].plugged) == 3
    assert list(machine.blocks.values()).count(False) == 5


def test_virtio_mem_plugs_the_lowest_blocks_and_unplugs_the_highest_one_at_a_time() -> None:
    machine = booted()
    region = Range(8 << 30, 9 << 30)
    run(add_virtio_mem(machine, "virtio0", region, ()))
    assert not machine.devices["virtio0"].plugged
    run(resize_virtio_mem(machine, "virtio0", 2 * BLOCK + 1))
    assert machine.devices["virtio0"].plugged == RangeList([(8 << 30, (8 << 30) + 3 * BLOCK)])
    heard: list[object] = []
    size = listener(heard, lambda: machine.ram.intersect(RangeList([region])).size // BLOCK)
    machine.memory_chain.register("test", size)
    run(resize_virtio_mem(machine, "virtio0", 0))
    assert heard == [(EventKind.MEMORY_OFFLINE, 3), (EventKind.MEMORY_OFFLINE, 2), (EventKind.MEMORY_OFFLINE, 1)]
    assert machine.uevents[-1].memory == Range(8 << 30, (8 << 30) + BLOCK)
    assert not machine.ram.intersect(RangeList([region]))
    with pytest.raises(ModelError, match="has less than"):
        run(resize_virtio_mem(machine, "virtio0", 2 << 30))
    assert "virtio0" in machine.devices


@pytest.mark.parametrize(
    ("action", "number"),
    [
        (lambda m: add_cpu(m, 1), errno.EEXIST),
        (lambda m: add_cpu(m, 99), errno.ENODEV),
        (lambda m: online_cpu(m, 5), errno.ENODEV),
        (lambda m: online_cpu(m, 1), errno.EINVAL),
        (lambda m: offline_cpu(m, 5), errno.EINVAL),
        (lambda m: remove_cpu(m, 5), errno.ENODEV),
        (lambda m: add_memory(m, "d", Range(4 << 30, (4 << 30) + 4096)), errno.EINVAL),
        (lambda m: add_memory(m, "d", Range(0, BLOCK)), errno.EEXIST),
        (lambda m: add_memory(m, "d", Range(1 << 46, (1 << 46) + BLOCK)), errno.E2BIG),
        (lambda m: add_memory(m, "d", Range(4 << 30, (4 << 30) + (BLOCK << 16))), errno.ENOMEM),
        (lambda m: online_block(m, 0), errno.EINVAL),
        (lambda m: online_block(m, 99), errno.ENODEV),
        (lambda m: offline_block(m, 0), errno.EBUSY),
        (lambda m: remove_memory(m, "d"), errno.ENODEV),
        (lambda m: add_virtio_mem(m, "v", DIMM, (7,)), errno.EINVAL),
        (lambda m: resize_virtio_mem(m, "v", BLOCK), errno.ENODEV),
    ],
)
def test_hotplug_refuses_impossible_actions(action: Callable[[ModelMachine], Steps[None]], number: int) -> None:
    with pytest.raises(ModelError) as refused:
        run(action(booted()))
    assert refused.value.number == number


def test_last_cpu_cannot_go_offline() -> None:
    machine = booted(boot_cpus=1)
    with pytest.raises(ModelError, match="last one"):
        run(offline_cpu(machine, 0))


def test_handlers_subscribe_with_priority_0() -> None:
    for release, policy in (("5.18.0", V6()), ("6.12.0", Merged())):
        machine = booted(release)
        install_in_kernel_handler(machine, policy)
        assert [block.priority for block in machine.memory_chain.blocks] == [0]


def test_udev_rules_start_no_reload_where_the_kernel_updates() -> None:
    event = Event(EventKind.MEMORY_ONLINE)
    old, new = booted(), booted("6.12.0-model")
    assert RULES["rhel"].reacts_to(old, event)
    assert not RULES["rhel-v6"].reacts_to(old, event)
    assert RULES["rhel"].reacts_to(new, event)  # nothing is loaded that the kernel could update
    run(Kexec(small_capture_kernel(), LoadCall.KEXEC_FILE_LOAD).load(new))
    assert crash_hotplug_attribute(new) == 1
    assert not RULES["rhel"].reacts_to(new, event)
    assert RULES["debian12"].reacts_to(new, event)
    new.kexec_locked = True
    assert crash_hotplug_attribute(new) == 0  # a read that loses the lock makes udev reload
