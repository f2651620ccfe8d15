# SPDX-License-Identifier: MIT
"""readelf, gdb and makedumpfile open the model's vmcores and find the planted word and registers."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from crash_hotplug_lab.model.actions import PLANTED_OFFSET, PLANTED_WORD
from crash_hotplug_lab.model.simulation import STORY, run_scenario
from crash_hotplug_lab.scenario.records import BUSY_REGISTERS, Action

WORD_PHYS = (4 << 30) + PLANTED_OFFSET
POLICIES = ("reload", "merged", "in-place")


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed (Debian has it)")


def output(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C", "HOME": "/nonexistent"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=POLICIES)
def dump(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Return a vmcore, and its direct map: virtual minus physical address."""
    story = replace(STORY, actions=(*STORY.actions[:4], Action("busy", {"cpu": 3})))
    result = run_scenario(story, request.param)
    assert result.panic.vmcore is not None
    path = tmp_path_factory.mktemp("dump") / "vmcore"
    result.panic.vmcore.write(str(path))
    return path, result.machine.profile.page_offset


@needs("readelf")
def test_readelf_has_no_complaint(dump: tuple[Path, int]) -> None:
    shown = output("readelf", "-a", str(dump[0]))
    assert "Warning" not in shown
    assert "Error" not in shown
    assert shown.count("NT_PRSTATUS") == 4


@needs("gdb")
def test_gdb_reads_the_planted_word_and_register_of_hot_added_parts(dump: tuple[Path, int]) -> None:
    path, offset = dump
    commands = ("info threads", "thread 4", "p/x $r12", f"x/gx {WORD_PHYS + offset:#x}")
    shown = output("gdb", "-nx", "-batch", "-c", str(path), *(part for c in commands for part in ("-ex", c)))
    assert shown.count("LWP 100") >= 4
    assert f"= {BUSY_REGISTERS['r12']:#x}" in shown
    assert f"{PLANTED_WORD:#018x}" in shown


@needs("makedumpfile")
@pytest.mark.parametrize("options", [("-d", "31"), ("-c", "-d", "1"), ("-E", "-d", "31")])
def test_makedumpfile_saves_the_vmcore(dump: tuple[Path, int], tmp_path: Path, options: tuple[str, ...]) -> None:
    shown = output("makedumpfile", *options, str(dump[0]), str(tmp_path / "out"))
    assert "makedumpfile Completed" in shown


@needs("makedumpfile")
def test_makedumpfile_keeps_the_planted_word(dump: tuple[Path, int], tmp_path: Path) -> None:
    output("makedumpfile", "-E", "-d", "31", str(dump[0]), str(tmp_path / "out"))
    assert PLANTED_WORD.to_bytes(8, "little") in (tmp_path / "out").read_bytes()


@needs("makedumpfile")
def test_makedumpfile_refuses_a_damaged_dump(dump: tuple[Path, int], tmp_path: Path) -> None:
    damaged = tmp_path / "vmcore"
    damaged.write_bytes(dump[0].open("rb").read(4096))
    done = subprocess.run(
        ["makedumpfile", "-d", "31", str(damaged), str(tmp_path / "out")], capture_output=True, check=False, timeout=60
    )
    assert done.returncode != 0
