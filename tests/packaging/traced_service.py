# SPDX-License-Identifier: MIT
"""A run of the watch service over a machine of files, for strace: everything that it does but kexec_load itself.

Run with a scratch directory as its argument.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from crash_hotplug import __version__
from crash_hotplug.core.service.watch_record import WatchRecord
from crash_hotplug.core.service.watch_schedule import Schedule, VerificationSchedule
from crash_hotplug.linux.loading import kdump_lock, reload, system_calls
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.running_architecture import running_architecture
from crash_hotplug.linux.service.reconciler import Reconciler, Reloading
from crash_hotplug.linux.service.sd_notify import Notifier
from crash_hotplug.linux.service.uevents import UeventSocket
from crash_hotplug.linux.service.watch_service import Service
from tests.linux.fake_kexec import FakeKexec


def main(scratch: Path) -> None:
    """Start, update in place, verify, be reloaded by a signal, reload, write metrics, and stop."""
    scratch.mkdir(exist_ok=True)
    fake = FakeKexec(scratch)
    kdump_lock.RED_HAT, kdump_lock.DEBIAN = str(scratch / "kdump"), str(scratch / "kdump_lock")
    harmless = running_architecture()._replace(kexec_load_number=39)  # getpid(2)
    vars(system_calls)["running_architecture"] = lambda: harmless
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(scratch / "notify"))
    threading.Thread(target=_drain, args=(systemd,), daemon=True).start()
    notifier = Notifier({"NOTIFY_SOCKET": str(scratch / "notify"), "WATCHDOG_USEC": "120000000"})
    machine = LiveMachine(fake.sysroot, fake.kexec_load, hardware="x86_64")
    reloading = Reloading(lambda: True, lambda why, wait: reload.reload_outside(why, wait, ["/bin/true"]))
    reconciler = Reconciler(machine, fake.sysroot, reloading=reloading)
    reconciler._verification = VerificationSchedule(float("-inf"))
    service = Service(
        reconciler, UeventSocket(), Schedule(time.monotonic(), 0.05), WatchRecord(__version__, time.time()),
        _say, notifier, str(scratch / "metrics.prom"),
    )  # fmt: skip

    def act() -> None:
        for number in (signal.SIGHUP, signal.SIGTERM):
            time.sleep(1)
            os.kill(os.getpid(), number)
            if number == signal.SIGHUP:
                fake.before_load = lambda: fake.write(0x3680_0000, b"another kernel")  # torn: reloaded
                fake.add_ranges(2)

    threading.Thread(target=act).start()
    service.run()
    with contextlib.suppress(system_calls.KexecError):
        system_calls.kexec_load(0, fake.loads[0], 0)


def _say(_priority: int, line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _drain(systemd: socket.socket) -> None:
    while True:
        systemd.recv(4096)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
