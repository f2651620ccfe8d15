# SPDX-License-Identifier: MIT
"""The unit file allows the needs of the service, fits its wake-ups, and passes systemd's own checks."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import cast

import pytest

from crash_hotplug.core.service.watch_record import WatchRecord
from crash_hotplug.core.service.watch_schedule import HEARTBEAT, Schedule
from crash_hotplug.linux import torn_image
from crash_hotplug.linux.loading import reload
from crash_hotplug.linux.loading.live_machine import PATIENCE_SECONDS
from crash_hotplug.linux.service.reconciler import Reconciler
from crash_hotplug.linux.service.sd_notify import Notifier
from crash_hotplug.linux.service.uevents import UeventSocket
from crash_hotplug.linux.service.watch_service import Service

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


def test_mark_of_a_torn_image_can_be_written_and_outlives_the_service() -> None:
    unit = settings()
    assert [f"/run/{name}" for name in unit["RuntimeDirectory"]] == [str(Path(torn_image.PATH).parent)]
    assert unit["RuntimeDirectoryPreserve"] == ["yes"]


def seconds(key: str) -> float:
    """Return a time of the unit in seconds."""
    matched = re.fullmatch(r"(\d+)(s|min|h|)", settings()[key][0])
    assert matched is not None
    return int(matched[1]) * {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}[matched[2]]


def watchdog_seconds() -> float:
    """Return WatchdogSec= in seconds."""
    return seconds("WatchdogSec")


@pytest.mark.parametrize("heartbeat", [HEARTBEAT, 86400.0], ids=["default", "longest"])
def test_watchdog_allows_a_missed_wakeup_of_the_idle_service(heartbeat: float) -> None:
    schedule = Schedule(time.monotonic(), heartbeat=heartbeat)
    while schedule.due < time.monotonic() + heartbeat - 1:  # looks grow apart until the heartbeat
        schedule.finished(time.monotonic(), has_news=False)
    notifier = Notifier({"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": f"{watchdog_seconds() * 1e6:.0f}"})
    reconciler, uevents = cast("Reconciler", None), cast("UeventSocket", None)  # neither is asked
    service = Service(reconciler, uevents, schedule, WatchRecord("1", 0.0), lambda *_: None, notifier)
    assert 0 < service._sleep_milliseconds() / 1000 <= watchdog_seconds() / 2 + 0.01


def test_watchdog_adds_no_wakeup_to_the_default_heartbeat() -> None:
    assert watchdog_seconds() / 2 >= HEARTBEAT


def test_watchdog_is_longer_than_every_wait_of_a_look() -> None:
    assert watchdog_seconds() / 2 > reload._WAKE_SECONDS + PATIENCE_SECONDS


def test_unit_restarts_the_service_except_after_usage_and_cannot_tell() -> None:
    unit = settings()
    assert unit["Restart"] == ["always"]
    assert unit["RestartPreventExitStatus"] == ["2 5"]
    assert unit["Type"] == ["notify"]


@pytest.mark.parametrize("failing", [0.0, seconds("WatchdogSec"), seconds("TimeoutStartSec")])
def test_start_limit_ends_a_loop_of_failures(failing: float) -> None:
    start_limit = UNIT.read_text().partition("[Service]")[0]
    assert "\nStartLimitIntervalSec=" in start_limit
    assert "\nStartLimitBurst=" in start_limit
    cycle = failing + seconds("TimeoutStopSec") + seconds("RestartSec")
    assert int(settings()["StartLimitBurst"][0]) * cycle < seconds("StartLimitIntervalSec")


def test_start_limit_allows_a_few_restarts_by_hand() -> None:
    assert int(settings()["StartLimitBurst"][0]) >= 5


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
