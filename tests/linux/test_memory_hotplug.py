# SPDX-License-Identifier: MIT
"""Memory devices in ACPI, as a 6.12 guest showed them before and after a DIMM was plugged in."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.machine import MemoryBlocks
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux.memory_hotplug import acpi_device_names, count_present_acpi_devices, read_memory_blocks
from crash_hotplug.linux.sysroot import Sysroot


@pytest.mark.parametrize(("status", "present"), [("15", 1), ("0", 0), ("nonsense", 0), ("", 0), ("9" * 90, 0)])
def test_acpi_devices_count_where_they_are_plugged_in(tmp_path: Path, status: str, present: int) -> None:
    for name, text in (("PNP0C80:00", status), ("PNP0C80:01", "0"), ("PNP0A08:00", "15"), ("device:1", "15")):
        (tmp_path / "sys/bus/acpi/devices" / name).mkdir(parents=True)
        (tmp_path / "sys/bus/acpi/devices" / name / "status").write_text(f"{text}\n")
    sysroot = Sysroot(str(tmp_path))
    assert acpi_device_names(sysroot) == ["PNP0C80:00", "PNP0C80:01"]
    assert count_present_acpi_devices(sysroot) == present


def test_acpi_devices_of_a_machine_without_acpi_are_none(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    assert count_present_acpi_devices(Sysroot(str(tmp_path))) == 0


def test_memory_blocks_are_counted_by_their_state(tmp_path: Path) -> None:
    blocks = tmp_path / "sys/devices/system/memory"
    for number, state in enumerate(["online", "offline", "going-offline", "online"]):
        (blocks / f"memory{number}").mkdir(parents=True)
        (blocks / f"memory{number}" / "state").write_text(f"{state}\n")
    (blocks / "power").mkdir()
    sysroot = Sysroot(str(tmp_path))
    assert read_memory_blocks(sysroot) is None
    (blocks / "block_size_bytes").write_text("8000000\n")
    assert read_memory_blocks(sysroot) == MemoryBlocks(
        128 << 20, online=2, offline=2, offline_ram=RangeList([(1 * 128 << 20, 3 * 128 << 20)])
    )
    (blocks / "block_size_bytes").write_text("128M\n")
    with pytest.raises(InputError, match="is not a hexadecimal number: '128M'"):
        read_memory_blocks(sysroot)


def test_acpi_status_counts_by_its_lowest_bit(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/acpi/devices/PNP0C80:00"
    device.mkdir(parents=True)
    for status, present in (("14", 0), ("1", 1)):
        (device / "status").write_text(f"{status}\n")
        assert count_present_acpi_devices(Sysroot(str(tmp_path))) == present


def test_acpi_status_that_may_not_be_read_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> str:
        raise CannotTellError("no")

    (tmp_path / "sys/bus/acpi/devices/PNP0C80:00").mkdir(parents=True)
    monkeypatch.setattr(Sysroot, "read_text", refused)
    assert count_present_acpi_devices(Sysroot(str(tmp_path))) == 0
