# SPDX-License-Identifier: MIT
"""The conclusions of the programs that measure in the guest."""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.arch.arm64 import ARM64
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.plan import UpdatePlan
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import Step
from crash_hotplug_lab.bench.kexec_call_timer import kexec_filter
from crash_hotplug_lab.experiments import kill_updates, measure_handler, measure_updates

OLD, NEW, OTHER = ("old",), ("new",), ("other",)


@pytest.mark.parametrize(
    ("now", "calls", "said"),
    [
        (OLD, 0, "as before"),
        (NEW, 0, "WRONG"),
        (NEW, 1, "as after"),
        (OLD, 1, "WRONG"),
        (OTHER, 1, "WRONG"),
        (OLD, None, "as before"),
        (NEW, None, "as after"),
        (OTHER, None, "WRONG"),
        (kill_updates.NOTHING, 0, "NOTHING"),
        (kill_updates.NOTHING, 1, "NOTHING"),
        (kill_updates.NOTHING, None, "NOTHING"),
    ],
)
def test_kill_verdict_names_the_loaded_image(now: tuple[str], calls: int | None, said: str) -> None:
    assert kill_updates.verdict(OLD, NEW, now, calls) == said


def test_slow_update_is_explained_by_a_stopped_clock() -> None:
    updates = [(float(n), n + 0.05, 0.004) for n in range(10)] + [(10.0, 13.0, 2.8)]
    lines = measure_updates.explain(updates, [(3.0, 3.02), (10.1, 12.6)])
    assert lines == [
        "slow: kexec_load 2800.0 ms in an update of 3000.0 ms, in which the clock's watcher stood still for 2500.0 ms"
    ]


def test_durations_are_read_from_a_function_graph_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trace").write_text(
        "# tracer: function_graph\n"
        " 1) # 9876.543 us |  crash_handle_hotplug_event();\n"
        " 0)               |  __x64_sys_kexec_load() {\n"
        " 0)   1.500 us    |    kimage_free();\n"
        " 0)   0.500 us    |    kimage_free();\n"
        " 0) $ 2000000 us  |  } /* __x64_sys_kexec_load */\n"
        " 0) * 12345.67 us |  } /* __x64_sys_kexec_load [kernel] */\n"
    )
    monkeypatch.setattr(measure_handler, "_TRACING", str(tmp_path))
    assert measure_handler.durations() == {
        "crash_handle_hotplug_event": [pytest.approx(9.876543)],
        "kimage_free": [pytest.approx(0.0015), pytest.approx(0.0005)],
        "__x64_sys_kexec_load": [pytest.approx(2000), pytest.approx(12.34567)],
    }
    assert measure_handler.durations() == {}


def seccomp(program: bytes, number: int, machine: int, arguments: Sequence[int]) -> int:
    """Run a seccomp program of loads, comparisons and returns (linux/filter.h) for one system call."""
    data = struct.pack("<iIQ6Q", number, 0xC0000000 | machine, 0, *arguments)
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", data, operand)
        elif code == 0x06:
            return int(operand)
        else:
            holds = loaded == operand if code == 0x15 else bool(loaded & operand)
            at += if_true if holds else if_false


@pytest.mark.parametrize(("architecture", "load", "file_load"), [(X86_64, 246, 320), (ARM64, 104, 294)])
def test_crash_kexec_calls_of_an_architecture_are_stopped_and_no_others(
    architecture: Architecture, load: int, file_load: int
) -> None:
    program, machine = kexec_filter(architecture), architecture.machine_number
    stopped = [(load, (0, 0, 0, 1)), (load, (0, 0, 0, 62 << 16 | 9)), (file_load, (0, 0, 0, 0, 2))]
    others = [(load, (0, 0, 0, 0)), (load, (1, 1, 1, 2)), (file_load, (0, 0, 0, 2, 1)), (load + 1, (0, 0, 0, 1))]
    for calls, result in ((stopped, 0x7FF00000), (others, 0x7FFF0000)):
        for number, arguments in calls:
            assert seccomp(program, number, machine, (*arguments, *[0] * (6 - len(arguments)))) == result
    assert seccomp(program, load, machine + 1, (0, 0, 0, 1, 0, 0)) == 0x7FFF0000


class FakeLook:
    """Takes the text of a file for the loaded image."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def expect(self, plan: UpdatePlan) -> None:
        pass

    def state(self) -> tuple[object, ...]:
        return (self.path.read_text(),)


class FakeMachine:
    """Counts as loaded once it has made its call."""

    kexec_seconds = 0.0
    seen = b""

    def observe(self) -> FakeMachine:
        return self

    def identity(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


def fake_update(path: Path, machine: FakeMachine) -> Iterator[Step]:
    """Open a file, make a plan, load something by a write that stands for kexec_load, open a file again."""
    os.close(os.open("/dev/null", os.O_RDONLY))
    os.getppid()
    yield Step("planned", UpdatePlan(0, (), (), Range(0, 4096), False))
    os.close(os.open("/dev/null", os.O_RDONLY))
    target = os.open(path, os.O_WRONLY)
    os.pwrite(target, b"new", 0)
    machine.kexec_seconds = 1.0
    os.close(os.open("/dev/null", os.O_RDONLY))
    yield Step("loaded")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of x86_64's system calls")
def test_children_are_killed_from_each_file_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loaded"
    path.write_text("old")
    monkeypatch.setattr(kill_updates, "LiveMachine", FakeMachine)
    monkeypatch.setattr(kill_updates, "KillableMachine", FakeMachine)
    monkeypatch.setattr(kill_updates, "say", print)
    monkeypatch.setattr(kill_updates, "_KEXEC_LOAD", 18)  # pwrite64
    monkeypatch.setattr(kill_updates, "what_was_there", lambda _plan: (0, [], 0))
    monkeypatch.setattr(kill_updates, "kexec_load", lambda *_: path.write_text("old"))
    killing = kill_updates.Killing("fake", lambda machine: fake_update(path, machine), FakeLook(path))  # type: ignore[arg-type, return-value]
    killing.make(3)
    assert path.read_text() == "new"
    assert sum(killing.inside.values()) == 3
    assert set(killing.at_stops) == {"as before", "as after"}
    # before and after: open, close, getppid, open, close, open, and before the write
    assert killing.at_stops["as before"] >= 13
    # after it, and before and after: open, close, and what closes the last file
    assert killing.at_stops["as after"] >= 5
