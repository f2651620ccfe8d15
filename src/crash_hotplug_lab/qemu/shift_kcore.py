# SPDX-License-Identifier: MIT
"""Updates while /proc/kcore moves: DIMMs bring its headers to the end of a page, and one more comes and goes.

The guest's part is experiments/shift_kcore.py.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from functools import partial

from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.guest import Guest

PROGRAM = "/lab/shift_kcore.py"
LOG = "/tmp/shift-kcore.log"
_SIZE = 128 << 20
_FIRST, _DISTANCE = 0x1_4000_0000, 256 << 20
"""Place of the first DIMM, and distance of the next: a gap between them makes each a range of its own."""
_MOST_DIMMS = 14
"""QEMU's machine has 16 slots."""
_ENDED = re.compile(r"^(done: |Traceback|waited )", re.MULTILINE)
_WHOLE = re.compile(r"^done: .* moved [1-9]\d* times .*; 0 broken$", re.MULTILINE)


async def shift_kcore(guest: Guest, updates: int, limit: float) -> str:
    """Let the guest make *updates*, each followed by a full verification, while a DIMM comes and goes.

    :return: the guest's output
    :raise GuestError: an image was broken, or it did not end within *limit* seconds
    """
    end = time.monotonic() + 0.75 * limit
    await _fill_page(guest)
    block = (await guest.blocks("kcore0"))[0].rpartition("memory")[2]
    began = time.monotonic()
    await guest.spawn("python3", PROGRAM, str(updates), block, log=LOG)
    guest.event(f"{updates} updates", f"memory block {block} and one more DIMM come and go")
    await guest.until(partial(_began, guest), "the first update", limit)
    name = f"kcore{len(guest.dimms)}"
    plugs = 0
    saved = guest.directory / "shift-kcore.txt"
    while not _ENDED.search(output := await guest.read(LOG)):
        saved.write_text(f"{output}\n")
        # Twice an update, on average: more often, and none would end between two moves.
        took = (time.monotonic() - began) / (1 + output.count("\n"))
        if time.monotonic() > end:
            raise GuestError(f"the updates did not end in time; their output: {output[-600:]}; {plugs} plugs")
        await _plug(guest, name)
        plugs += 1
        await asyncio.sleep(random.uniform(0, took))
        await guest.until(partial(_unplug, guest, name), f"the guest to release {name}")
        await asyncio.sleep(random.uniform(0, took))
    saved.write_text(f"{output}\n")
    if not _WHOLE.search(output):
        raise GuestError(f"updates while /proc/kcore moved: {output[-600:]}")
    await _plug(guest, name)
    await guest.wait_online("kcore0", bring_online=True)
    return f"a DIMM was plugged and unplugged {plugs} times\n{output}"


async def _fill_page(guest: Guest) -> None:
    """Plug DIMMs until the range of one more makes the contents of /proc/kcore move by a page."""
    room = await _room(guest)
    for _number in range(_MOST_DIMMS):
        before = room
        await _plug(guest, f"kcore{len(guest.dimms)}")
        room = await _room(guest)
        guest.event("headers that fit into the page of /proc/kcore", str(room))
        if room < before - room:
            return
    raise GuestError(f"{_MOST_DIMMS} DIMMs leave room for {room} headers in /proc/kcore: boot with more ram-holes")


async def _room(guest: Guest) -> int:
    return int(await guest.run("python3", PROGRAM, "room"))


async def _began(guest: Guest) -> None:
    if not await guest.read(LOG):
        raise GuestError("it has not ended")


async def _unplug(guest: Guest, name: str) -> None:
    if not await guest.machine.remove(name):
        raise GuestError("it refused")


async def _plug(guest: Guest, name: str) -> None:
    address = _FIRST + int(name[len("kcore") :]) * _DISTANCE
    guest.dimms[name] = await guest.machine.add_dimm(name, _SIZE, address)
    await guest.wait_online(name, bring_online=True)
