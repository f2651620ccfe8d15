"""The same full Debian guest without this package and with it: plugged CPUs and DIMMs, a panic, kdump-tools' own dump.

Without it, the distribution's own rule has to keep the crash image up to date.  With it, the service, after
``doctor --fix``.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from pathlib import Path
from typing import Any, Callable

from crash_hotplug.core.compare import Kind
from crash_hotplug.lab import dump
from crash_hotplug.lab.distro_guest import DebianGuest, saved_dumps
from crash_hotplug.lab.distro_image import RELEASES, DebianImage
from crash_hotplug.lab.distro_machine import DebianMachine
from crash_hotplug.lab.errors import GuestError, LabError
from crash_hotplug.lab.judge import found_findings
from crash_hotplug.lab.results import Outcome, Result

WITHOUT, WITH = "without", "with"
SIDES = (WITHOUT, WITH)
_DIMMS = ("d0", "d1", "d2", "d3")
_DIMM_SIZE = 256 << 20
_CPUS = ("c0", "c1")
_TITLES = {WITHOUT: "Debian's own rule", WITH: "this package's service"}
_LIMIT = 1800.0
_DUMP_LIMIT = 900.0
_SECONDS_ALLOWED = 1.0
"""Between the last event and an accurate header: the service's own promise (``--max-delay``)."""


async def run(image: DebianImage, side: str, deb: Path | None, directory: Path, say: Callable[[str], None]) -> Result:
    """Do one side.  Whatever happens in the guest is in the result; the serial log and the journal are beside it.

    :param deb: the package that is installed, for the side ``with``
    :raise LabError: when the lab is not set up; never for what a guest did
    """
    kernel = image.kernel()
    result = Result("debian-guest", f"Debian {RELEASES[image.release]}, {_TITLES[side]}", kernel.key, kernel.version,
                    kernel.release, "kdump-tools", side)  # fmt: skip
    result.files = directory.name
    begin = time.monotonic()
    disk = image.copy(directory / "disk")
    machine = DebianMachine(kernel, image.initramfs, disk, directory)
    try:
        await asyncio.wait_for(_live(machine, side, deb, directory, result, say), _LIMIT)
    except (GuestError, asyncio.TimeoutError) as error:
        result.reason = str(error) or f"the time limit of {_LIMIT:.0f} s is over"
    else:
        _conclude(result, side)
    finally:
        disk.unlink(missing_ok=True)
    result.seconds = round(time.monotonic() - begin, 1)
    return result


async def _live(machine: DebianMachine, side: str, deb: Path | None, directory: Path, result: Result,
                say: Callable[[str], None]) -> None:  # fmt: skip
    guest = DebianGuest(machine, directory, result, say)
    word = secrets.randbits(64)
    async with machine:
        await guest.boot()
        if side == WITH:
            await _set_up(guest, result, deb)
        else:
            await guest.copy_source()
        await guest.look("loaded")
        await guest.record_events()
        mark = await _mark(guest)
        for name in _DIMMS:
            await guest.add_dimm(name, _DIMM_SIZE)
        for name in _CPUS:
            await guest.add_cpu(name)
        await guest.run("udevadm", "settle", "--timeout=120")
        await asyncio.sleep(5)
        await guest.look("before-panic")
        await _judge_hotplug(guest, result, side, directory, mark)
        phys = await guest.plant(_DIMMS[-1], word)
        await guest.panic(guest.cpus[-1], _DUMP_LIMIT)
    _judge_dump(result, side, directory, guest, (phys, word))


async def _set_up(guest: DebianGuest, result: Result, deb: Path | None) -> None:
    """Install the package, hear what doctor has to say, let it mend that, and see the service run."""
    if deb is None:
        raise LabError("the side `with` needs the package (--deb FILE; `make deb` builds it)")
    await guest.install(deb)
    before = await guest.own("doctor")
    said = before["out"].strip()
    guest.event("doctor", said.split("\n")[0])
    result.check("doctor says that the rule fails silently", before["rc"] == 4 and "50-kdump-tools" in said, said)
    fixed = await guest.own("doctor", "--fix")
    guest.event("doctor --fix", (fixed["out"] or fixed["err"]).strip())
    after = await guest.own("doctor")
    result.check("doctor is content after --fix", after["rc"] == 0, (after["out"] or after["err"]).strip())
    active = await guest.answer("systemctl", "is-active", "crash-hotplug.service")
    result.check("the service is active", active["out"].strip() == "active", active["out"].strip())


async def _mark(guest: DebianGuest) -> float:
    """Return the guest's monotonic time."""
    return float((await guest.run("cat", "/proc/uptime")).split()[0])


async def _judge_hotplug(guest: DebianGuest, result: Result, side: str, directory: Path, mark: float) -> None:
    """What udev and kdump-tools did since ``mark``, and what is loaded now."""
    events = await guest.events()
    reacted = [(action, device) for _, action, device in events if _starts_reload(action, device)]
    journal = _since(await guest.journal(), mark)
    failed = sum("failed to unload kdump kernel" in line for line in journal)
    loaded = sum("loaded kdump kernel" in line and "unloaded" not in line for line in journal)
    unloaded = sum("unloaded kdump kernel" in line for line in journal)
    guest.event("events", f"{len(events)} from the kernel, {len(reacted)} that Debian's rule is about")
    said = f"{unloaded} unloaded, {loaded} loaded, {failed} failed to unload; {len(reacted)} events"
    same = _header_of(directory / "loaded") == _header_of(directory / "before-panic")
    verdict = result.moments[-1].verdict
    if side == WITHOUT:
        result.check("every reload by Debian's rule failed", failed == len(reacted) > 0 and not loaded, said)
        result.check("the header stayed as it was", same)
        result.check("the image is not accurate", verdict == "not accurate", result.moments[-1].reason)
        return
    result.check("no reload by Debian's rule", not failed and not loaded and not unloaded, said)
    result.check("the header was brought up to date", not same)
    result.check("the image is accurate", verdict == "accurate", result.moments[-1].reason)


def _starts_reload(action: str, device: str) -> bool:
    """Whether Debian's 50-kdump-tools.rules reacts to an event."""
    if device.startswith("memory"):
        return action in ("online", "offline")
    return device.startswith("cpu") and action in ("add", "remove", "online")


def _since(journal: str, mark: float) -> list[str]:
    """Return the lines of a journal in ``short-monotonic`` from a time on."""
    lines = []
    for line in journal.splitlines():
        found = re.match(r"\[ *([\d.]+)\] ", line)
        if found and float(found.group(1)) >= mark:
            lines.append(line)
    return lines


def _header_of(tree: Path) -> bytes:
    return (tree / "crash-image/elfcorehdr").read_bytes()


def _judge_dump(result: Result, side: str, directory: Path, guest: DebianGuest, planted: tuple[int, int]) -> None:
    """What kdump-tools saved by itself, against the snapshot and what QEMU had plugged."""
    dumps = saved_dumps(directory / "disk", directory)
    if not result.check("kdump-tools saved a dump by itself", len(dumps) == 1, ", ".join(d.name for d in dumps)):
        return
    (vmcore,) = dumps
    report = dump.audit(vmcore, directory / "before-panic")
    result.dump = dump.ranges(vmcore)
    found = found_findings(report)
    wanted: set[tuple[str, Any]] = set()
    if side == WITHOUT:
        start, end = min(guest.dimms.values())[0], max(guest.dimms.values())[1]
        wanted = {(Kind.MEMORY_MISSING.value, (start, end))} | {(Kind.CPU_MISSING.value, cpu) for cpu in guest.cpus}
    said = "; ".join(finding["sentence"] for finding in report["findings"]) or "nothing is missing"
    result.check("audit", found == wanted, said)
    phys, word = planted
    read = dump.word_at(vmcore, phys)
    shown = "not in the dump" if read is None else hex(read)
    result.check("the word planted in the last DIMM", read == (word if side == WITH else None),
                 f"{word:#x} at phys {phys:#x}: {shown}")  # fmt: skip
    vmcore.unlink()


def _conclude(result: Result, side: str) -> None:
    failed = [check for check in result.checks if not check.ok]
    result.outcome = (Outcome.FAIL if failed else Outcome.PASS).value
    if failed:
        result.reason = "; ".join(f"{c.name}: {c.detail}" if c.detail else c.name for c in failed)
    else:
        result.reason = "the dump is complete" if side == WITH else "the dump lacks all that was plugged, as it must"
