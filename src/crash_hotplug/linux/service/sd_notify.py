# SPDX-License-Identifier: MIT
"""sd_notify(3): tell systemd how the service is doing, over the datagram socket that it names in the environment."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Sends to systemd; does nothing where no systemd listens."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Take what systemd put into the environment: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_seconds = _watchdog_seconds(environ) if self._address else None
        """systemd ends a service that is silent for longer; None where it does not."""

    def ready(self) -> None:
        """Tell that the service does its work."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Tell that it reads everything anew; :meth:`ready` ends that."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Tell that it ends."""
        self._send("STOPPING=1")

    def status(self, line: str) -> None:
        """Set the line that ``systemctl status`` shows."""
        self._send("STATUS=" + " ".join(line.split()))

    def alive(self) -> None:
        """Feed the watchdog."""
        if self.watchdog_seconds is not None:
            self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        flags = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        # Whether systemd listens is no reason to do the work worse.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, flags) as sender:
            sender.sendto("\n".join(assignments).encode(errors="backslashreplace"), self._address)


def _address(name: str) -> bytes | None:
    """Return the socket's address: a path, or a name in the abstract name space (``@``)."""
    if len(name) < 2 or name[0] not in "/@":
        return None
    return os.fsencode("\0" + name[1:] if name[0] == "@" else name)


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    text = environ.get("WATCHDOG_USEC", "")
    meant = environ.get("WATCHDOG_PID", str(os.getpid()))
    if not text.isascii() or not text.isdigit() or int(text) == 0 or meant != str(os.getpid()):
        return None
    return int(text) / 1e6
