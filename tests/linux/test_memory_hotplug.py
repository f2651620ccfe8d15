# SPDX-License-Identifier: MIT
"""Memory devices in ACPI, as a 6.12 guest showed them before and after a DIMM was plugged in."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.linux.memory_hotplug import acpi_device_names, count_present_acpi_devices
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
