# SPDX-License-Identifier: MIT
"""Reloads by the family's own tool at random moments beside hot-plug, the service's updates and those of a user."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

from crash_hotplug.cli import exit_codes
from crash_hotplug.core.decision import Outcome
from crash_hotplug_lab.distro.guest import DebianGuest
from crash_hotplug_lab.distro.kexec_calls import KexecCall
from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.results import Result

_DIMM = 128 << 20
"""Bytes: one memory block."""
_SPREAD = 3.0
"""Seconds within which each round begins a reload, an update and a hot-plug."""
_ACCURATE_LIMIT = 15.0
"""Seconds after the last reload until ``status`` has to say that the image is accurate."""
_VERIFY_LIMIT = 120.0
_HELD = 8
"""Seconds for which another process holds the lock of the family's tool; an update by hand waits for 10 s."""
_LOG = "/run/crash-hotplug-lab"


async def race(guest: DebianGuest, result: Result, rounds: int) -> None:
    """Run the rounds; each begins a reload, an update by hand and a hot-plug at random moments.

    After each round the image has to be whole (``update --verify full`` hashes it) and accurate.
    """
    await _check_lock(guest, result)
    outcomes: Counter[str] = Counter()
    late: list[str] = []
    for number in range(rounds):
        reload_at, update_at, plug_at = (random.uniform(0, _SPREAD) for _ in range(3))
        await _begin(guest, reload_at, "reload", *guest.family.race)
        await _begin(guest, update_at, "update", *guest.command, "update", "--json")
        await asyncio.sleep(plug_at)
        await guest.add_dimm(f"r{number}", _DIMM)
        reloaded, updated = await _ended(guest, "reload"), await _ended(guest, "update")
        outcomes[f"reload {'succeeded' if reloaded[0] == 0 else 'failed'}"] += 1
        outcomes[f"update: {_outcome(updated[1])}"] += 1
        if reloaded[0] or updated[0] not in (exit_codes.DONE, exit_codes.NO_IMAGE):
            guest.event(f"round {number}", f"reload: {reloaded[1][-300:]}; update: {updated[1][-600:]}")
        if not await _becomes_accurate(guest):
            late.append(f"round {number}: {(await guest.own('status'))['out'].strip().splitlines()[0]}")
        outcomes[f"verified: {await _verify(guest)}"] += 1
        guest.event(f"round {number + 1} of {rounds}", ", ".join(f"{what} {n}" for what, n in outcomes.items()))
    said = ", ".join(f"{what} {number}" for what, number in sorted(outcomes.items()))
    result.check(f"no torn image in {rounds} rounds", outcomes["verified: mixed"] == 0, said)
    whole = outcomes["verified: unchanged"] + outcomes["verified: updated"]
    result.check("the digest of each image fits", whole == rounds, said)
    result.check(f"accurate within {_ACCURATE_LIMIT:.0f} s of each round", not late, "; ".join(late))


def overlaps(calls: list[KexecCall]) -> str:
    """Say how many loads of this project came within a second of a call of kexec(8), and how many calls failed."""
    own = [call for call in calls if call.program != "kexec"]
    others = [call for call in calls if call.program == "kexec"]
    near = sum(any(other.start - 1.0 < call.end and call.start < other.end + 1.0 for other in others) for call in own)
    failed = sum(not call.succeeded for call in calls)
    beside = f"{near} of {len(own)} loads of crash-hotplug within 1 s of one of {len(others)} calls of kexec"
    return f"{beside}; {failed} failed"


async def _check_lock(guest: DebianGuest, result: Result) -> None:
    """Let an update in place wait for the lock of the family's tool, which another process holds."""
    lock, unit = guest.family.lock, "lab-lock-update.service"
    await guest.run("systemd-run", "-q", f"--unit={unit}", "flock", lock, "sleep", str(_HELD))

    async def is_taken() -> None:
        if (await guest.answer("flock", "-n", lock, "true"))["rc"] == 0:
            raise GuestError(f"the lock {lock} is free")

    await guest.until(is_taken, f"the lock {lock} to be taken")
    done = await guest.own("update", "--strategy", "in-place")
    held = (await guest.answer("systemctl", "is-active", unit))["out"].strip()
    said = f"{done['seconds']} s: {(done['out'] or done['err']).strip()}"
    result.check(f"an update in place waits for the lock {lock}", done["rc"] == 0 and held != "active", said)


async def _begin(guest: DebianGuest, delay: float, name: str, *command: str) -> None:
    """Start a command after some seconds; its output and its exit code go to files."""
    script = f'sleep {delay:.2f}; "$@" >{_LOG}.{name} 2>&1; echo $? >{_LOG}.{name}.code'
    await guest.run("rm", "-f", f"{_LOG}.{name}.code")
    await guest.spawn("sh", "-c", script, "sh", *command, log="/dev/null")


async def _ended(guest: DebianGuest, name: str, limit: float = 300.0) -> tuple[int, str]:
    """Wait until a command has ended; return its exit code and its output."""
    code = ""

    async def has_ended() -> None:
        nonlocal code
        code = (await guest.answer("cat", f"{_LOG}.{name}.code"))["out"].strip()
        if not code:
            raise GuestError(f"the {name} has not ended")

    await guest.until(has_ended, f"the {name} to end", limit)
    return int(code), await guest.read(f"{_LOG}.{name}")


async def _verify(guest: DebianGuest) -> str:
    """Hash the whole image, as soon as no other process updates or reloads it; return the outcome of that update."""
    outcome, end = "", time.monotonic() + _VERIFY_LIMIT
    while not outcome or (outcome == Outcome.LOCK_BUSY.value and time.monotonic() < end):
        outcome = _outcome((await guest.own("update", "--strategy", "in-place", "--verify", "full", "--json"))["out"])
    return outcome


async def _becomes_accurate(guest: DebianGuest) -> bool:
    end = time.monotonic() + _ACCURATE_LIMIT
    while (await guest.own("status"))["rc"]:
        if time.monotonic() > end:
            return False
    return True


def _outcome(text: str) -> str:
    try:
        said: dict[str, Any] = json.loads(text)
    except ValueError:
        return f"no JSON ({text.strip()[-80:]})"
    return str(said.get("outcome", said.get("reason")))
