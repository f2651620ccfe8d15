# SPDX-License-Identifier: MIT
"""The reader of scenario files: values, repeated steps, and errors that name file, line and key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug.core.finding import Kind
from crash_hotplug_lab.scenario.file import SIZE_LIMIT, parse_scenario, read_scenario
from crash_hotplug_lab.scenario.format import KEYS
from crash_hotplug_lab.scenario.records import Action, Expectation, Scenario
from tests.lab.scenario.bundled import BUNDLED

PANIC = '[[step]]\ndo = "panic"\ncpu = 0\n'
ADD = '[[step]]\ndo = "add-cpu"\ncpu = 2\n'
DIMM = '[[step]]\ndo = "add-dimm"\nname = "d0"\nsize = "256M"\n'
WHOLE = """\
title = "Everything"
description = "All tables"
policies = ["in-place"]
time-limit = 60

[machine]
kernels = ["6.1", "6.12"]
memory = "2G"
cpus = 4
crashkernel = "256M"

[load]
loaders = ["s"]
udev = "debian12"

[[step]]
do = "add-dimm"
name = "d0"
size = "256M"
address = "0x180000000"

[[step]]
do = "load"
flock = false
actor = "administrator"

[[step]]
do = "panic"
cpu = 1

[expect.nothing]
findings = [{ kind = "cpu-missing", cpu = 2 }, { kind = "memory-missing", dimm = "d0" }]

[expect.in-place]
"""


def test_scenario_has_every_table_of_its_file() -> None:
    found = parse_scenario(WHOLE, "everything")
    assert (found.name, found.title, found.policies, found.time_limit) == (
        "everything",
        "Everything",
        ("in-place",),
        60,
    )
    assert (found.machine.kernels, found.machine.memory, found.machine.cpus) == (("6.1", "6.12"), 2 << 30, 4)
    assert (found.load.loaders, found.load.udev, found.load.hotplug_size) == (("s",), "debian12", None)
    assert found.actions == (
        Action("add-dimm", {"name": "d0", "size": 256 << 20, "address": 6 << 30}),
        Action("load", {"flock": False}, "administrator"),
        Action("panic", {"cpu": 1}),
    )
    assert [(f.kind, f.cpu, f.dimm) for f in found.expect["nothing"].findings] == [
        (Kind.CPU_MISSING, 2, None),
        (Kind.MEMORY_MISSING, None, "d0"),
    ]
    assert found.expect["in-place"] == Expectation()


def test_scenario_by_path_has_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[step]]\ndo = "panic"\ncpu = 1\n[expect.reload]\n')
    found = read_scenario(str(path))
    assert (found.name, found.actions[0].arguments, list(found.expect)) == ("mine", {"cpu": 1}, ["reload"])


@pytest.mark.parametrize("name", ["nonsense", "/nonexistent.toml"])
def test_missing_scenario_is_a_sentence(name: str) -> None:
    with pytest.raises(InputError, match=rf"there is no scenario {name}; `crash-hotplug-lab list` shows"):
        read_scenario(name)


def test_unreadable_scenario_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a regular file"):
        read_scenario(str(tmp_path))
    (tmp_path / "s.toml").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"cannot be read: .*utf-8"):
        read_scenario(str(tmp_path / "s.toml"))


def test_scenario_that_is_a_device_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(InputError, match=f"the scenario {name} is not a regular file"):
            read_scenario(name)


def test_scenario_file_has_a_greatest_size(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    text = '[[step]]\ndo = "panic"\ncpu = 1\n#'
    path.write_text(text.ljust(SIZE_LIMIT))
    assert read_scenario(str(path)).actions[0].do == "panic"
    path.write_text(text.ljust(SIZE_LIMIT + 1))
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        read_scenario(str(path))


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        ('memory = "1000000000G"', r"line 2, machine.memory: '1000000000G' is out of range: .*greatest 0x4"),
        ('memory = "9T"', r"line 2, machine.memory: has more than 65536 memory blocks of 134217728 bytes"),
        ('memory = "128G"\nblock-size = "1M"', r"line 2, machine.memory: has more than 65536 memory blocks"),
    ],
)
def test_machine_larger_than_the_model_names_file_line_and_key(machine: str, sentence: str) -> None:
    text = "[machine]\n{}\n[[step]]\ndo = 'panic'\ncpu = 1\n"
    with pytest.raises(InputError, match=f"^s.toml, {sentence}"):
        parse_scenario(text.format(machine), "s.toml")
    assert parse_scenario(text.format('memory = "8T"')).machine.memory == 8 << 40


@pytest.mark.parametrize(
    ("value", "size"),
    [("256M", 256 << 20), ("0x100000000", 1 << 32), ("2G", 2 << 30), (4096, 4096), ("64K", 65536), ("010", 10)],
)
def test_size_has_units(value: object, size: int) -> None:
    assert KEYS["address"].read(value) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 1\n" + PANIC, "s.toml, line 1, title: 1 is not a string"),
        ("speed = 1\n" + PANIC, "s.toml, line 1, speed: there is no such key; there are title, "),
        ('title = "t"\n', "s.toml, line 1, step: there is no [[step]]: nothing happens"),
        ('title = "t"\n[machine]\nmemory = "lots"\n' + PANIC, "line 3, machine.memory: 'lots' is not a size"),
        ("[machine]\nmemory = -1\n" + PANIC, "line 2, machine.memory: -1 is not a size"),
        ("[machine]\nmemory = 4096\n" + PANIC, "line 2, machine.memory: 4096 is out of range"),
        ("[machine]\nmemroy = 1\n" + PANIC, "line 2, machine.memroy: there is no such key"),
        ("[machine]\ncpus = 4\npossible-cpus = 2\n" + PANIC, "line 3, machine.possible-cpus: is less than cpus (4)"),
        ("[machine]\nblock-size = 3000000\n" + PANIC, "line 2, machine.block-size: is not a power of two"),
        ('[machine]\ncrashkernel = "2G"\n' + PANIC, "line 2, machine.crashkernel: does not fit"),
        ('[machine]\ncrashkernel-low = "1M"\n' + PANIC, "line 2, machine.crashkernel-low: goes with"),
        (
            '[machine]\nkernels = ["six"]\n' + PANIC,
            "line 2, machine.kernels: 'six' is not a kernel series",
        ),
        ("machine = 1\n" + PANIC, "line 1, machine: is not a table"),
        ('[load]\nloaders = ["x"]\n' + PANIC, "line 2, load.loaders: 'x' is none of c, s, ch, own"),
        ('[load]\nhotplug-size = "x"\n' + PANIC, "line 2, load.hotplug-size: 'x' is not a size"),
        ('policies = ["fast"]\n' + PANIC, "line 1, policies: 'fast' is none of reload"),
        ("policies = []\n" + PANIC, "line 1, policies: [] is not a list of at least one value"),
        ("step = 1\n", "line 1, step: is not a list of tables: write [[step]] above each"),
        (ADD, "line 1, step: exactly one step has to be one of panic, panic-within, end; 0 are"),
        (PANIC + PANIC, "line 1, step: exactly one step has to be one of panic, panic-within, end; 2 are"),
        (PANIC + ADD, "line 1, step: no step can follow panic"),
        (ADD + '[[step]]\ndo = "add-cpu"\ncpu = true\n', "line 6, step.2.cpu: True is not a number"),
        (ADD + '[[step]]\ndo = "fly"\n', "line 5, step.2.do: 'fly' is none of add-cpu"),
        (ADD + '[[step]]\ndo = "add-cpu"\n', "line 4, step.2.cpu: is missing"),
        ('[[step]]\ndo = "panic"\ncpu = "two"\n', "line 3, step.1.cpu: 'two' is not a number from 0"),
        ('[[step]]\ndo = "panic"\ncpu = 0\nwhy = 1\n', "line 4, step.1.why: there is no such key; there are do, cpu"),
        ('[[step]]\ndo = "add-dimm"\nname = "d0"\nsize = "big"\n', "line 4, step.1.size: 'big' is not a size"),
        (
            '[[step]]\ndo = "add-kmem"\nname = "c0"\nsize = "256M"\ndevice = "cxl"\naddress = "6G"\n',
            "line 6, step.1.address: QEMU places the window of a CXL device itself",
        ),
        (
            '[[step]]\ndo = "add-kmem"\nname = "c0"\nsize = "256M"\ndevice = "dimm"\n',
            "line 5, step.1.device: 'dimm' is none of nvdimm, cxl",
        ),
        ('[[step]]\ndo = "flip"\nin = "kernel"\n', "line 3, step.1.in: 'kernel' is none of boot_params"),
        ('[[step]]\ndo = "command"\n', "line 1, step.1.run: is missing"),
        ('[[step]]\ndo = "command"\nrun = "a"\ncode = "one"\n', "line 4, step.1.code: 'one' is not a number"),
        ('[[step]]\ndo = "command"\nrun = "a"\nimage = "odd"\n', "line 4, step.1.image: 'odd' is none of untouched"),
        ('[[step]]\ndo = "shell"\nrun = """\nuid = 1\n"""\nuid = 1\n', "line 6, step.1.uid: there is no such key"),
        (PANIC + "[expect.magic]\n", "line 4, expect.magic: there is no such key; there are nothing, kernel, reload"),
        (PANIC + "[expect.reload]\ndump = 1\n", "line 5, expect.reload.dump: 1 is neither true nor false"),
        (
            PANIC + '[expect.nothing]\nfindings = [{ kind = "odd" }]\n',
            "line 5, expect.nothing.findings.1.kind: 'odd' is none of cpu-missing",
        ),
        (
            PANIC + '[expect.nothing]\nfindings = [\n  { kind = "memory-missing", dimm = "d9" },\n]\n',
            "line 5, expect.nothing.findings.1.dimm: no step adds the DIMM d9",
        ),
        ("title = \n", "s.toml is not TOML"),
        ("[[step\n", "s.toml is not TOML: "),
    ],
)
def test_scenario_error_names_file_line_and_key(text: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^s\.toml[ ,]") as refused:
        parse_scenario(text, "s.toml")
    assert message in str(refused.value)


REPEATED = '[[step.step]]\ndo = "add-dimm"\nname = "d{n}"\nsize = "128M"\naddress = "0x100000000"\n'


def actions(text: str) -> tuple[Action, ...]:
    return parse_scenario(text + PANIC).actions[:-1]


def test_repeated_steps_are_numbered_and_their_addresses_move() -> None:
    repeat = '[[step]]\ndo = "repeat"\ntimes = 3\naddress-step = "256M"\n'
    assert [(action.arguments["name"], action.arguments["address"]) for action in actions(repeat + REPEATED)] == [
        ("d0", 0x1_0000_0000), ("d1", 0x1_1000_0000), ("d2", 0x1_2000_0000),
    ]  # fmt: skip


def test_repeated_steps_stand_between_those_around_them() -> None:
    wait, update = 'do = "wait"\nseconds = 1\n', 'do = "update"\n'
    repeat = f'[[step]]\ndo = "repeat"\ntimes = 2\n[[step.step]]\n{update}[[step.step]]\n{wait}'
    found = actions(f"[[step]]\n{wait}{repeat}[[step]]\n{update}")
    assert [action.do for action in found] == ["wait", "update", "wait", "update", "wait", "update"]


@pytest.mark.parametrize(
    ("repeat", "message"),
    [
        ("times = 0\n" + REPEATED, "line 6, step.2.times: 0 is not a number from 1 to 1000"),
        (REPEATED, "line 4, step.2.times: is missing"),
        ("times = 2\n", "line 4, step.2.step: is missing"),
        ("times = 2\nstep = 1\n", "line 7, step.2.step: is not a list of tables: write [[step]] above each"),
        ('times = 2\nname = "d"\n' + REPEATED, "line 7, step.2.name: there is no such key"),
        (
            "times = 2\n" + REPEATED.replace("0x100000000", "high"),
            "line 11, step.2.step.1.address: 'high' is not a size",
        ),
        ('times = 2\n[[step.step]]\ndo = "repeat"\n', "line 8, step.2.step.1.do: 'repeat' is none of"),
    ],
)
def test_repeat_error_names_line_and_key(repeat: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        actions(f'{ADD}[[step]]\ndo = "repeat"\n{repeat}')
    assert message in str(refused.value)


@pytest.mark.parametrize("scenario", BUNDLED, ids=lambda scenario: scenario.name)
def test_bundled_scenario_has_a_title_and_a_side(scenario: Scenario) -> None:
    assert scenario.title != scenario.name
    assert scenario.policies or scenario.expect
    assert any(action.do.startswith("panic") for action in scenario.actions) or scenario.ends_without_dump


def test_bundled_scenarios_cover_every_class() -> None:
    assert sum(bool(scenario.policies) for scenario in BUNDLED) >= 12
    assert {action.do for scenario in BUNDLED if scenario.expect for action in scenario.actions} >= {
        "add-cpu", "remove-cpu", "add-dimm", "remove-dimm", "offline-block", "plant", "busy", "update", "flip", "panic",
    }  # fmt: skip


def test_bundled_scenarios_have_negative_controls() -> None:
    controls = [scenario.expect["nothing"] for scenario in BUNDLED if "nothing" in scenario.expect]
    kinds = {finding.kind for control in controls for finding in control.findings}
    assert kinds >= {Kind.CPU_MISSING, Kind.MEMORY_MISSING, Kind.MEMORY_GONE}
