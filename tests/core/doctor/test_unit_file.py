"""May a service's processes load a crash image?"""

from __future__ import annotations

import pytest

from crash_hotplug.core.doctor.unit_file import Sandbox, sandbox_of, settings


def service(*lines: str) -> str:
    return "[Unit]\nSystemCallFilter=@reboot\n[Service]\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), Sandbox.OPEN),
        (("SystemCallFilter=@system-service @module @raw-io bpf", "SystemCallFilter=~@clock"), Sandbox.NO_SYSTEM_CALL),
        (("SystemCallFilter=@system-service kexec_load kexec_file_load",), Sandbox.OPEN),
        (("SystemCallFilter=@system-service @reboot",), Sandbox.OPEN),
        (("SystemCallFilter=@system-service @privileged", "SystemCallFilter=~@reboot"), Sandbox.NO_SYSTEM_CALL),
        (("SystemCallFilter=@system-service kexec_load",), Sandbox.ONE_SYSTEM_CALL),
        (("SystemCallFilter=~@clock",), Sandbox.OPEN),
        (("SystemCallFilter=~@reboot:EPERM",), Sandbox.NO_SYSTEM_CALL),
        (("SystemCallFilter=~kexec_load:EPERM kexec_file_load",), Sandbox.NO_SYSTEM_CALL),
        (("SystemCallFilter=@system-service", "SystemCallFilter="), Sandbox.OPEN),
        (("SystemCallFilter=@system-service \\", "  @reboot"), Sandbox.OPEN),
        (("# SystemCallFilter=@system-service",), Sandbox.OPEN),
        (("CapabilityBoundingSet=~CAP_SYS_TIME CAP_WAKE_ALARM",), Sandbox.OPEN),
        (("CapabilityBoundingSet=~CAP_SYS_BOOT",), Sandbox.NO_CAPABILITY),
        (("CapabilityBoundingSet=CAP_SYS_ADMIN",), Sandbox.NO_CAPABILITY),
        (("CapabilityBoundingSet=CAP_SYS_ADMIN", "CapabilityBoundingSet=cap_sys_boot"), Sandbox.OPEN),
        (("CapabilityBoundingSet=",), Sandbox.NO_CAPABILITY),
        (("CapabilityBoundingSet=", "CapabilityBoundingSet=~"), Sandbox.OPEN),
    ],
)
def test_sandbox(lines: tuple[str, ...], expected: Sandbox) -> None:
    assert sandbox_of([service(*lines)]) is expected


def test_a_drop_in_comes_behind_the_unit() -> None:
    unit = service("SystemCallFilter=@system-service")
    assert sandbox_of([unit]) is Sandbox.NO_SYSTEM_CALL
    assert sandbox_of([unit, "[Service]\nSystemCallFilter=@reboot\n"]) is Sandbox.OPEN


def test_only_the_section_that_was_asked_for() -> None:
    assert settings(["[A]\nx=1\n[B]\nx=2\n"], "B", "x") == ["2"]
