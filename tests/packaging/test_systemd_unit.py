"""The unit file: what the service needs is allowed, and systemd's own checks have no complaint."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

UNIT = Path(__file__).parent.parent.parent / "packaging" / "systemd" / "crash-hotplug.service"


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def test_unit_allows_what_the_service_needs() -> None:
    unit = settings()
    needed = {"CAP_SYS_BOOT", "CAP_SYS_ADMIN", "CAP_SYS_RAWIO", "CAP_SYSLOG", "CAP_NET_ADMIN"}
    assert needed <= set(unit["CapabilityBoundingSet"][0].split())
    assert "kexec_load" in unit["SystemCallFilter"][0].split()
    # Each of these takes away a capability or a file without which nothing works.
    for forbidden in ("ProtectKernelTunables", "ProtectKernelLogs", "PrivateDevices", "PrivateUsers", "CPUQuota"):
        assert forbidden not in unit
    assert unit["RestrictAddressFamilies"] == ["AF_NETLINK AF_UNIX"]


def test_watchdog_allows_a_missed_wakeup_of_the_service() -> None:
    assert settings()["WatchdogSec"] == ["2min"]


def test_unit_restarts_the_service_except_after_usage_and_cannot_tell() -> None:
    unit = settings()
    assert unit["Restart"] == ["always"]
    assert unit["RestartPreventExitStatus"] == ["2 5"]
    assert unit["Type"] == ["notify"]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return the unit with a program that exists here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/crash-hotplug", "/bin/true"))
    return copy


def test_systemd_analyze_verify_reports_nothing(installed: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", str(installed)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if installed.name in line]
    assert complaints == []


def test_systemd_analyze_security_rates_the_unit_as_confined(installed: Path) -> None:
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=30", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file")
    assert done.returncode == 0, done.stdout[-200:]
