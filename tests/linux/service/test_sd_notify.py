# SPDX-License-Identifier: MIT
"""The notification protocol, over sockets that the tests listen on."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from crash_hotplug.linux.service.sd_notify import Notifier


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_what_systemd_hears(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@crash-hotplug-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name if kind == "path" else "\0" + name[1:])
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())})
        assert notifier.watchdog_seconds == 120
        notifier.ready()
        notifier.status("accurate:\na panic now")
        notifier.alive()
        notifier.reloading()
        notifier.stopping()
        heard = [systemd.recv(4096).decode() for _ in range(5)]
    assert heard[:3] == ["READY=1", "STATUS=accurate: a panic now", "WATCHDOG=1"]
    assert heard[3].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert heard[4] == "STOPPING=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/does/not/exist"}])
def test_nobody_listens(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.ready()
    notifier.alive()


@pytest.mark.parametrize(
    "environ",
    [{"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-5"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}],
)
def test_a_watchdog_that_is_not_ours(environ: dict[str, str]) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/nobody", **environ}).watchdog_seconds is None


def test_watchdog_without_a_process_id_is_ours(tmp_path: Path) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/nobody", "WATCHDOG_USEC": "5000000"}).watchdog_seconds == 5


def test_watchdog_that_systemd_does_not_have_is_not_fed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}).alive()
        with pytest.raises(BlockingIOError):
            systemd.recv(100)


def test_reload_has_the_monotonic_time_in_microseconds(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        before = time.monotonic()
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}).reloading()
        told = systemd.recv(100).decode()
        assert before <= int(told.removeprefix("RELOADING=1\nMONOTONIC_USEC=")) / 1e6 + 1e-5 <= time.monotonic() + 1e-4
