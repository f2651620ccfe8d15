# SPDX-License-Identifier: MIT
"""Steps that run a command in the guest, with stand-ins for the agent and the machine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crash_hotplug_lab.qemu.command_steps import take_command, take_shell
from crash_hotplug_lab.qemu.errors import GuestError, LabError
from crash_hotplug_lab.qemu.results import Result
from crash_hotplug_lab.scenario.records import Action
from tests.trees import tree


class Guest:
    """Gives every program the same answer; with *changes*, its memory changes after the first program."""

    def __init__(self, out: Path, rc: int = 0, said: str = "", changes: bool = False) -> None:
        self.out, self.rc, self.said, self.changes = out, rc, said, changes
        self.ran: list[tuple[tuple[str, ...], int]] = []

    async def run(self, *argv: str, uid: int = 0) -> dict[str, Any]:
        self.ran.append((argv, uid))
        return {"rc": self.rc, "out": self.said, "err": ""}

    async def qmp(self, command: str, filename: str, **place: int) -> None:
        assert (command, place["size"] > 0) == ("pmemsave", True)
        Path(filename).write_bytes(b"changed" if self.changes and self.ran else b"the same")


def take(guest: Guest, **arguments: object) -> Result:
    result = Result("s", "", "6.1", "", "", "c", "in-place")
    action = Action("command", arguments)
    snapshot = tree("6.1-c", 1)
    saved: Any = guest
    asyncio.run(take_command(saved, saved, action, snapshot, "panic=1", result, lambda *_: None))
    return result


def test_command_must_end_with_the_steps_exit_code_and_words(tmp_path: Path) -> None:
    guest = Guest(tmp_path, 5, "cannot tell: run as root")
    result = take(guest, run="update --append {append}", code=5, says="run as root", uid=65534)
    assert [check.ok for check in result.checks] == [True]
    assert guest.ran == [(("python3", "-m", "crash_hotplug", "update", "--append", "panic=1"), 65534)]
    assert [c.ok for c in take(guest, run="update", code=0, says="run as root").checks] == [False]
    assert [c.ok for c in take(guest, run="update", code=5, says="lockdown").checks] == [False]


def test_shell_line_that_fails_breaks_the_run(tmp_path: Path) -> None:
    saved: Any = Guest(tmp_path, 1, "no such thing")
    with pytest.raises(GuestError, match="no such thing"):
        asyncio.run(take_shell(saved, Action("shell", {"run": "x"}), "", lambda *_: None))


def test_step_is_left_out_where_its_file_is_missing(tmp_path: Path) -> None:
    guest = Guest(tmp_path, 1)
    assert take(guest, run="update", **{"if-exists": "/proc/nothing"}).checks == []
    assert guest.ran == [(("test", "-e", "/proc/nothing"), 0)]


def test_image_is_compared_from_outside_the_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabError, match="does not say where kexec_crash_image is"):
        take(Guest(tmp_path), run="update", image="untouched")  # the captures were saved without that symbol
    symbols = {"_text": 0x1000, "kexec_crash_image": 0x2000}
    monkeypatch.setattr("crash_hotplug.linux.kallsyms.read_symbols", lambda *_: symbols)
    for changes, image, ok in (
        (False, "untouched", True),
        (True, "untouched", False),
        (True, "changed", True),
        (False, "changed", False),
    ):
        result = take(Guest(tmp_path, changes=changes), run="update", image=image)
        assert [check.ok for check in result.checks] == [True, ok]
