# SPDX-License-Identifier: MIT
"""The unit file allows the needs of the service, fits its wake-ups, and passes systemd's own checks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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
    assert "kexec_load" in unit["SystemCallFilter"][-1].split()
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


def calls_of(names: list[str]) -> set[str]:
    """Return the system calls of a filter's names, those of each group included."""
    calls: set[str] = set()
    for name in names:
        if not name.startswith("@"):
            calls.add(name)
            continue
        command = ["systemd-analyze", "--no-pager", "syscall-filter", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = [line.strip() for line in done.stdout.splitlines()[1:]]
        calls |= calls_of([line for line in lines if line and not line.startswith("#")])
    return calls


@pytest.fixture(scope="module")
def allowed() -> set[str]:
    """Return the calls that the unit's filter allows: lines with ~ remove, the others add."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    calls: set[str] = set()
    for line in settings()["SystemCallFilter"]:
        if line.startswith("~"):
            calls -= calls_of(line[1:].split())
        else:
            calls |= calls_of(line.split())
    return calls | calls_of(["@default"])


def test_filter_allows_no_group_that_the_service_does_not_use(allowed: set[str]) -> None:
    groups = ["@privileged", "@setuid", "@chown", "@keyring", "@ipc", "@aio", "@resources", "@debug", "@mount"]
    assert calls_of(groups) & allowed == {"kexec_load", "pipe2"}


def test_filter_allows_every_call_that_the_service_makes(allowed: set[str], tmp_path: Path) -> None:
    """An update, a verification, a reload that is torn, a reload by a child, metrics, a signal, and the end."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-o", str(trace), sys.executable, "-m", "tests.packaging.traced_service"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(
            [*command, str(tmp_path / "machine")], cwd=UNIT.parents[2], env=environment, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
    finally:
        made = set(re.findall(r"^\d+ +([a-z_0-9]+)\(", trace.read_text() if trace.exists() else "", re.MULTILINE))
    if "ptrace" in done.stderr or "uevents cannot be received" in done.stderr:
        pytest.skip("this machine forbids ptrace or netlink")
    assert done.returncode == 0, done.stderr
    for part in ("in-place: updated", "daily verification", "reload: failed"):
        assert part in done.stdout
    assert {"sendto", "recvmsg", "mlock", "wait4", "flock", "pipe2"} <= made
    assert made - allowed == set()
