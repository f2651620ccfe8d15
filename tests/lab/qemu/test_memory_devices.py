# SPDX-License-Identifier: MIT
"""Memory devices of a guest: QEMU's options, the modules, and the range that a resize leaves."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from crash_hotplug_lab.in_guest import kmem
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


def test_cxl_device_has_a_bridge_a_port_and_a_window_of_its_size() -> None:
    options = " ".join(boot_options(scenario("add-kmem", device="cxl")))
    assert options == (
        "-object memory-backend-ram,id=mem-m0,size=2147483648,reserve=off -machine cxl=on "
        "-device pxb-cxl,id=m0-bridge,bus_nr=16 -device cxl-rp,id=m0-port,bus=m0-bridge,port=0,chassis=0,slot=1 "
        "-device cxl-type3,id=m0,bus=m0-port,volatile-memdev=mem-m0 "
        "-machine cxl-fmw.0.targets.0=m0-bridge,cxl-fmw.0.size=2147483648"
    )


def test_scenario_without_memory_devices_has_no_options_and_no_modules() -> None:
    plain = read_scenario("hot-add")
    assert (boot_options(plain), modules_of(plain)) == ([], ())


def test_guest_gets_the_modules_of_its_devices_once() -> None:
    two = Scenario("test", (*scenario("add-virtio-mem").actions, *scenario("add-virtio-mem").actions))
    assert modules_of(two) == ("virtio_mem",)
    assert modules_of(scenario("add-kmem"))[-1] == "kmem"
    assert modules_of(scenario("add-kmem", device="cxl"))[0] == "cxl_acpi"
    assert modules_of(scenario("add-kmem", device="nvdimm"))[0] == "nfit"


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


def test_cxl_region_has_all_memory_of_the_device_and_is_deleted_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = tmp_path / "devices"
    for path, text in (("mem0/ram/size", "0x10000000\n"), ("decoder0.0/create_ram_region", "region3\n")):
        (devices / path).parent.mkdir(parents=True)
        (devices / path).write_text(text)
    for path in ("endpoint2/decoder2.1", "endpoint2/decoder2.0", "decoder0.0/region3"):
        (devices / path).mkdir(parents=True)
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(kmem, "_CXL", tmp_path)
    monkeypatch.setattr(kmem, "_DAX", tmp_path / "dax")
    monkeypatch.setattr(kmem, "write", lambda path, text: written.append((str(path.relative_to(tmp_path)), text)))
    kmem.make_of_cxl()
    region, decoder = "devices/decoder0.0/region3", "devices/endpoint2/decoder2.0"
    assert written == [
        ("devices/decoder0.0/create_ram_region", "region3"),
        (f"{region}/interleave_granularity", "256"),
        (f"{region}/interleave_ways", "1"),
        (f"{decoder}/mode", "ram"),
        (f"{decoder}/dpa_size", "0x10000000"),
        (f"{region}/size", "0x10000000"),
        (f"{region}/target0", "decoder2.0"),
        (f"{region}/commit", "1"),
        ("drivers/cxl_region/bind", "region3"),
    ]
    written.clear()
    (devices / "region3").symlink_to("decoder0.0/region3")
    kmem.remove()
    assert written == [(f"{region}/commit", "0"), ("devices/decoder0.0/delete_region", "region3")]


def test_kmem_waits_for_memory_that_the_driver_adds_later_and_leaves_its_blocks_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    readings = [[], [], [(START, START + BLOCK)]]
    written: list[object] = []
    monkeypatch.setattr(kmem, "make_of_cxl", lambda: None)
    monkeypatch.setattr(kmem, "ram", lambda: readings.pop(0))
    monkeypatch.setattr(kmem, "write", lambda *given: written.append(given))
    kmem.add("cxl")
    assert (capsys.readouterr().out, written) == (f"{START} {START + BLOCK}\n", [])
    monkeypatch.setattr(kmem, "ram", list)
    monkeypatch.setattr(kmem, "_LIMIT", 0.0)
    with pytest.raises(SystemExit, match="kmem added no memory"):
        kmem.add("cxl")
