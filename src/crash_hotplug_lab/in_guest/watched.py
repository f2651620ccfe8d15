# SPDX-License-Identifier: MIT
"""In the guest: the watch service as a process, its metrics and its log; and the loads of another loader."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable

LOAD = (
    "kexec", "-p", "/boot/vmlinuz", "--initrd=/boot/capture.img",
    "--append=console=ttyS0 quiet irqpoll nr_cpus=1 reset_devices panic=1 rdinit=/init no_timer_check "
    "acpi_no_memhotplug",
)  # fmt: skip
"""Command line that loads the image; an option for the system call is added."""


class Watched:
    """A running watch service."""

    def __init__(self, *options: str, metrics: str = "/tmp/watched.prom", log: str = "/tmp/watched.log") -> None:
        """Start it."""
        self.metrics_file, self.log_file = metrics, log
        if os.path.exists(metrics):
            os.unlink(metrics)
        self.started = time.monotonic()
        with open(log, "wb") as file:
            command = [sys.executable, "-m", "crash_hotplug", "watch", "--metrics-file", metrics, *options]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.pid = self._process.pid

    def metric(self, name: str) -> float:
        """Return a metric, summed over its labels; 0 where it is missing."""
        try:
            with open(self.metrics_file) as file:
                text = file.read()
        except FileNotFoundError:
            return 0.0
        return sum(map(float, re.findall(rf"^crash_hotplug_{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)))

    def log(self) -> list[str]:
        """Return the lines of the service's log."""
        with open(self.log_file) as file:
            return file.read().splitlines()

    def said(self, words: str) -> bool:
        """Return whether a line of the log has these words."""
        return any(words in line for line in self.log())

    def status(self, key: str) -> str:
        """Return a line of /proc/PID/status."""
        with open(f"/proc/{self.pid}/status") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith(f"{key}:"))

    def descriptors(self) -> int:
        """Return the number of open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu_seconds(self) -> float:
        """Return user and system time (fields 14 and 15 of /proc/PID/stat)."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self, number: int = signal.SIGTERM) -> float:
        """Send a signal that ends the service; return the seconds until it has ended."""
        began = time.monotonic()
        self._process.send_signal(number)
        self._process.wait(60)
        return time.monotonic() - began

    def send(self, number: int) -> None:
        """Send a signal that does not end the service."""
        self._process.send_signal(number)

    def wait_ended(self, seconds: float) -> bool:
        """Wait until the service exits or is killed."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_accurate(self, seconds: float = 60) -> float:
        """Wait until the metrics report an accurate image; return the seconds since the start."""
        wait(lambda: self.metric("accurate") == 1, "the service to say accurate", seconds)
        return time.monotonic() - self.started


def wait(condition: Callable[[], object], what: str, seconds: float = 60) -> float:
    """Wait until a condition holds; return the seconds until then.  Exits the program if it never holds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            sys.exit(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.05)
    return time.monotonic() - began


def status() -> tuple[str, bool]:
    """Return the verdict of ``status``, and whether every possible CPU is described, as this project does on 6.1."""
    command = [sys.executable, "-m", "crash_hotplug", "status", "--json"]
    report = json.loads(subprocess.run(command, capture_output=True, check=False).stdout)
    cpus = report.get("cpus", {"described": 0, "possible": [0]})
    return report["verdict"], cpus["described"] >= len(cpus["possible"])


def load(*options: str) -> None:
    """Load an image with kexec-tools, as another loader."""
    subprocess.run([*LOAD, *(options or ("-c",))], check=True, capture_output=True)


def write(path: str, text: str) -> None:
    """Write a file of sysfs."""
    with open(path, "w") as file:
        file.write(text)
