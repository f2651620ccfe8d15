# SPDX-License-Identifier: MIT
"""The host's end of the serial line to the guest's agent (``in_guest/agent.py``)."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from pathlib import Path
from typing import Any

from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.machine import QemuMachine


class Agent:
    """Sends orders to the program in the guest, one at a time."""

    def __init__(self, machine: QemuMachine) -> None:
        """Take the machine; nothing is connected yet."""
        self._machine = machine
        self.pid = 0
        """Process id of the agent in the guest, which writes to sysrq-trigger."""
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def connect(self, timeout: float) -> None:
        """Wait until the guest has booted and its agent answers.

        :raise GuestError: it does not answer within ``timeout`` seconds
        """
        path = str(self._machine.agent_socket)
        self._reader, self._writer = await asyncio.open_unix_connection(path, limit=1 << 28)
        answer = await self._answer(timeout, "boot")
        self.pid = int(answer.get("ready", 0))

    async def order(self, name: str, timeout: float = 180, **arguments: Any) -> Any:  # noqa: ANN401 JSON
        """Send one order and return its answer.

        :raise GuestError: it fails, takes longer than ``timeout`` seconds, or the guest dies
        """
        await self.send(name, **arguments)
        answer = await self._answer(timeout, name)
        if "error" in answer:
            raise GuestError(f"in the guest, {name} failed: {answer['error']}")
        return answer["value"]

    async def send(self, name: str, **arguments: Any) -> None:  # noqa: ANN401 JSON
        """Send an order without waiting for its answer; a panic has none."""
        self._writer.write(json.dumps([name, arguments]).encode() + b"\n")
        try:
            await self._writer.drain()
        except OSError:
            raise GuestError(f"the guest is gone at {name}") from None

    async def run(self, *argv: str, timeout: float = 180, uid: int = 0) -> dict[str, Any]:
        """Run a program in the guest; the answer has ``rc``, ``out``, ``err`` and ``seconds``."""
        answer: dict[str, Any] = await self.order("run", timeout + 10, argv=list(argv), limit=timeout, uid=uid)
        return answer

    async def fetch(self, guest_path: str, to: Path) -> None:
        """Bring a file of the guest to the host."""
        to.write_bytes(zlib.decompress(base64.b64decode(await self.order("get", path=guest_path))))

    async def put(self, guest_path: str, content: bytes) -> None:
        """Write a file in the guest."""
        await self.order("put", path=guest_path, data=base64.b64encode(zlib.compress(content)).decode())

    async def _answer(self, timeout: float, what: str) -> dict[str, Any]:
        try:
            line = await asyncio.wait_for(self._reader.readline(), timeout)
        except asyncio.TimeoutError:
            raise GuestError(f"the guest did not answer within {timeout:.0f} s ({what})") from None
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise GuestError(f"the guest is gone ({what})")
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise GuestError(f"the guest's agent did not answer in JSON ({what})") from None
        return answer
