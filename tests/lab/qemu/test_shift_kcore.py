# SPDX-License-Identifier: MIT
"""Updates while /proc/kcore moves: the host's side with a fake guest, and the parts of the guest's program."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from crash_hotplug.core import purgatory
from crash_hotplug.core.elf import PT_LOAD, PT_NOTE, ProgramHeader
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug_lab.experiments import shift_kcore as guest_program
from crash_hotplug_lab.qemu import shift_kcore as host
from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.guest import Guest

WHOLE = "done: the contents of /proc/kcore moved 7 times by [-1, 1] pages; 0 broken"


class FakeGuest:
    """Shows room in the headers of /proc/kcore, and the next output of the updates each time that it is asked."""

    def __init__(self, directory: Path, room: int, *outputs: str) -> None:
        self.directory, self.room, self.outputs = directory, room, list(outputs)
        self.dimms: dict[str, tuple[int, int]] = {}
        self.machine = self
        self.plugged: set[str] = set()
        self.removals = 0

    async def run(self, *_argv: str) -> str:
        return f"{self.room}\n"

    async def add_dimm(self, name: str, size: int, address: int) -> tuple[int, int]:
        self.plugged.add(name)
        self.room -= 2
        return address, address + size

    async def remove(self, name: str) -> bool:
        self.plugged.discard(name)
        self.removals += 1
        return True

    async def wait_online(self, name: str, bring_online: bool) -> None:
        assert name in self.plugged
        assert bring_online

    async def blocks(self, name: str) -> list[str]:
        return [f"/sys/devices/system/memory/memory{self.dimms[name][0] >> 27}"]

    async def spawn(self, *argv: str, log: str) -> int:
        assert (argv, log) == (("python3", host.PROGRAM, "200", "40"), host.LOG)
        return 1

    async def read(self, _path: str) -> str:
        return self.outputs.pop(0) if len(self.outputs) > 1 else self.outputs[0]

    async def until(self, attempt: Callable[[], Any], _what: str, _limit: float = 0) -> None:
        await attempt()

    def event(self, *_words: str) -> None:
        pass


def shift(guest: FakeGuest) -> str:
    return asyncio.run(host.shift_kcore(cast(Guest, guest), 200, 60))


def test_dimms_fill_the_page_and_the_next_one_comes_and_goes(tmp_path: Path) -> None:
    guest = FakeGuest(tmp_path, 5, "ready", "ready", f"ready\n{WHOLE}")
    output = shift(guest)
    assert output.splitlines()[0] == "a DIMM was plugged and unplugged 1 times"
    assert guest.plugged == {"kcore0", "kcore1", "kcore2"}  # two fill the page: one header has room, a DIMM takes two
    assert guest.removals == 1
    assert (tmp_path / "shift-kcore.txt").read_text() == f"ready\n{WHOLE}\n"


@pytest.mark.parametrize("end", [
    "done: the contents of /proc/kcore moved 7 times by [-1, 1] pages; 1 broken",
    "done: the contents of /proc/kcore moved 0 times by [] pages; 0 broken",
    "done: the take-over failed",
    "Traceback (most recent call last):",
    "waited 60 s: update: waits for the lock",
])  # fmt: skip
def test_broken_image_or_kcore_that_never_moved_is_a_failure(tmp_path: Path, end: str) -> None:
    with pytest.raises(GuestError, match=r"updates while /proc/kcore moved: ready"):
        shift(FakeGuest(tmp_path, 5, f"ready\n{end}"))


def test_room_that_all_dimms_do_not_fill_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="14 DIMMs leave room for 32 headers in /proc/kcore: boot with more ram-holes"):
        shift(FakeGuest(tmp_path, 60, "ready"))


class FakeKcore:
    """Headers of /proc/kcore: *ranges* ranges and notes of *notes* bytes."""

    def __init__(self, ranges: int, notes: int) -> None:
        note = ProgramHeader(PT_NOTE, 0, 0, 0, 0, notes, 0, 0)
        self.program_headers = [note, *[ProgramHeader(PT_LOAD, 0, 0, 0, 0, 0, 0, 0)] * ranges]


@pytest.mark.parametrize(("ranges", "left"), [(7, 26), (33, 0)])
def test_headers_left_counts_to_the_end_of_the_page(ranges: int, left: int) -> None:
    assert guest_program.headers_left(cast(Kcore, FakeKcore(ranges, 10284))) == left


def test_digest_is_computed_again_where_one_byte_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    real = purgatory.digest_of

    def compute(regions: Iterable[tuple[int, int]], read_phys: purgatory.ReadPhys) -> bytes:
        computed.append(1)
        return real(regions, read_phys)

    monkeypatch.setattr(purgatory, "digest_of", compute)
    memory = bytearray(range(256)) * 64
    digests = guest_program.DigestsByContent()
    regions = [(0x1000, 0x1000), (0, 0), (0x3000, 0x800)]

    def digest() -> bytes:
        return digests.digest_of(regions, lambda phys, length: bytes(memory[phys : phys + length]))

    for changed in (None, 0x37FF, None):
        if changed is not None:
            memory[changed] ^= 1
        assert digest() == sha256(memory[0x1000:0x2000] + memory[0x3000:0x3800]).digest()
    assert len(computed) == 2
