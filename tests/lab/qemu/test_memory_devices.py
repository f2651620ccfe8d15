# SPDX-License-Identifier: MIT
"""Memory devices of a guest: QEMU's options, the modules, and the range that a resize leaves."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from crash_hotplug_lab.qemu import memory_devices
from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.guest import Guest
from crash_hotplug_lab.qemu.memory_devices import boot_options, modules_of, resize
from crash_hotplug_lab.scenario.file import read_scenario
from crash_hotplug_lab.scenario.records import Action, Scenario

BLOCK = 128 << 20
START = 4 << 30


def scenario(do: str, **arguments: object) -> Scenario:
    return Scenario("test", (Action(do, {"name": "m0", "size": 2 << 30, **arguments}), Action("panic", {"cpu": 0})))


def test_virtio_mem_device_is_in_the_machine_from_the_boot_on_and_empty() -> None:
    options = " ".join(boot_options(scenario("add-virtio-mem", requested=1 << 20, options="block-size=128M")))
    assert options == (
        "-object memory-backend-ram,id=mem-m0,size=2147483648,reserve=off "
        "-device virtio-mem-pci,id=m0,memdev=mem-m0,requested-size=0,block-size=128M"
    )


def test_nvdimm_is_at_its_address_and_node() -> None:
    options = " ".join(boot_options(scenario("add-kmem", address=6 << 30, node=1)))
    assert options.endswith("-device nvdimm,id=m0,memdev=mem-m0,addr=6442450944,node=1 -machine nvdimm=on")


def test_scenario_without_memory_devices_has_no_options_and_no_modules() -> None:
    plain = read_scenario("hot-add")
    assert (boot_options(plain), modules_of(plain)) == ([], ())


def test_guest_gets_the_modules_of_its_devices_once() -> None:
    two = Scenario("test", (*scenario("add-virtio-mem").actions, *scenario("add-virtio-mem").actions))
    assert modules_of(two) == ("virtio_mem",)
    assert modules_of(scenario("add-kmem"))[-1] == "kmem"


class FakeGuest:
    """A guest whose device plugs a GiB less each time that it is asked."""

    def __init__(self, plugged: list[int]) -> None:
        self.machine = self
        self.plugged = plugged
        self.requested = 0

    async def qmp(self, command: str, **arguments: Any) -> int:  # noqa: ANN401
        if command == "qom-set":
            self.requested = arguments["value"]
            return 0
        return START if arguments["property"] == "memaddr" else self.plugged.pop(0)

    async def block_size(self) -> int:
        return BLOCK

    async def until(self, attempt: Any, what: str, limit: float) -> None:  # noqa: ANN401
        while True:
            try:
                await attempt()
            except GuestError:
                if not self.plugged:
                    raise
            else:
                return


@pytest.mark.parametrize(("size", "end"), [(0, START), (1, START + BLOCK), (300 << 20, START + 3 * BLOCK)])
def test_resize_waits_for_the_size_and_ends_at_a_whole_memory_block(size: int, end: int) -> None:
    guest = FakeGuest([1 << 30, size])
    assert asyncio.run(resize(cast("Guest", guest), "m0", size)) == (START, end)
    assert guest.requested == size


def test_resize_that_the_guest_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_devices, "_RESIZE_LIMIT", 0.0)
    with pytest.raises(GuestError, match="0 of 4096 bytes are plugged"):
        asyncio.run(resize(cast("Guest", FakeGuest([0])), "m0", 4096))
