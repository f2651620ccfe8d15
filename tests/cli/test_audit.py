# SPDX-License-Identifier: MIT
"""The output and the exit codes of `audit`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from crash_hotplug.core.arch.boot_params import E820_COUNT, E820_ENTRY, E820_RAM, E820_TABLE
from tests.cli.running import run
from tests.core.dump.saved_dumps import flattened, saved_dump
from tests.machines import machine
from tests.trees import tree, vmcore_head


def test_contents_of_a_dump_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "audit", vmcore_head("6.12-s"))
    assert ran.code == 5
    for shown in (
        "CANNOT TELL: ",
        " bytes are missing; no defect was found in the headers, which are there",
        "6.12.107+deb13-cloud-amd64",
        "panicked at 2026-11-22 17:33:29 UTC",
        "3 saved registers",
        "0x000100000000 - 0x000110000000     256 MiB",
        "Not checked",
    ):
        assert shown in ran.out


def test_file_that_is_whole_and_one_that_is_truncated(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dump = tmp_path / "vmcore"
    dump.write_bytes(vmcore_head("6.1-s").read_bytes())
    announced = run(capsys, "audit", dump, "--json").json["announced_size"]
    with dump.open("r+b") as file:
        file.truncate(announced)  # sparse: takes no room
    whole = run(capsys, "audit", dump)
    assert (whole.code, whole.out.splitlines()[0]) == (
        0,
        "ACCURATE: it is well formed and whole (--sysroot compares it with the machine)",
    )
    with dump.open("r+b") as file:
        file.truncate(announced - (100 << 20))
    cut = run(capsys, "audit", dump, "--sysroot", tree("6.1-s", 0))
    assert cut.code == 4
    assert "the file ends 100 MiB early" in cut.out


@pytest.mark.parametrize("kept", [8 << 10, 16 << 10, 32 << 10, 256 << 10, 1 << 20])
def test_dump_cut_to_its_beginning_is_cannot_tell_with_the_missing_bytes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kept: int
) -> None:
    dump = tmp_path / "vmcore"
    dump.write_bytes(vmcore_head("6.1-c").read_bytes())
    announced = run(capsys, "audit", dump, "--json").json["announced_size"]
    os.truncate(dump, kept)
    for more in ([], ["--sysroot", tree("6.1-c", 0)]):
        ran = run(capsys, "audit", dump, *more)
        assert ran.code == 5
        assert ran.out.startswith(f"CANNOT TELL: {announced - kept:,} of {announced:,} bytes are missing; no defect")


def test_missing_cpu_has_no_number_with_a_tree_without_the_loaded_header(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    run(capsys, "snapshot", "--sysroot", tree("6.1-c", 1), "-o", source)
    (source / "crash-image" / "elfcorehdr").unlink()
    ran = run(capsys, "audit", vmcore_head("6.1-c"), "--sysroot", source)
    assert ran.code == 4
    assert "2 CPUs saved registers, 3 were online: only the elfcorehdr that was loaded can show" in ran.out


def test_memory_that_the_capture_kernel_was_given_as_ram_must_not_be_in_the_dump(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """crashkernel=SIZE,cma on Linux 6.17 and 6.18, where only the image's E820 table shows it."""
    source = tmp_path / "source"
    run(capsys, "snapshot", "--sysroot", tree("6.1-c", 1), "-o", source)
    parameters = bytearray((source / "crash-image" / "boot_params").read_bytes())
    at = E820_TABLE + parameters[E820_COUNT] * E820_ENTRY.size
    parameters[at : at + E820_ENTRY.size] = E820_ENTRY.pack(0x1000_0000, 0x100_0000, E820_RAM)
    parameters[E820_COUNT] += 1
    (source / "crash-image" / "boot_params").write_bytes(parameters)
    ran = run(capsys, "audit", vmcore_head("6.1-c"), "--sysroot", source)
    assert "16 MiB at 0x10000000 was described but reserved" in ran.out


def test_dump_of_another_kernel_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "audit", vmcore_head("6.1-c"), "--sysroot", tree("6.12-s", 0))
    assert ran.code == 1
    assert "this vmcore is of kernel 6.1.0-50-cloud-amd64, the machine ran 6.12.107" in ran.err


def test_dump_of_another_boot_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "audit", vmcore_head("6.1-c"), "--sysroot", tree("6.1-s", 0))
    assert ran.code == 4
    assert "the kernel text is described as" in ran.out


@pytest.fixture
def dumps(tmp_path: Path) -> dict[str, Path]:
    """Return files of dumps by name."""
    whole = saved_dump(machine(), 2)
    parts = {f"part{n}": replace(whole, part=pages) for n, pages in enumerate([(0, 0x400), (0x400, whole.max_mapnr)])}
    made = {name: dump.to_bytes() for name, dump in {"whole": whole, **parts}.items()}
    made["cut"] = made["whole"][:-1]
    made["beginning"] = made["whole"][: whole.descriptors_offset + 1]
    made["flat"] = flattened(whole.pieces())
    made["text"] = b"no dump at all, \x1b[31mbut some text that is longer than the header of an ELF file"
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    return {name: tmp_path / name for name in made}


def test_format_and_sizes_of_a_compressed_dump_are_shown(
    capsys: pytest.CaptureFixture[str], dumps: dict[str, Path]
) -> None:
    ran = run(capsys, "audit", dumps["whole"])
    assert ran.code == 0
    for shown in (
        "ACCURATE: it is well formed and whole (--sysroot compares it with the machine)",
        "Format        kdump-compressed, pages compressed with lzo\n",
        "dump level 31: without zero, non-private cache, private cache, user, free pages\n",
        "2 saved registers",
        "0x000000100000 - 0x000020000000     511 MiB",
        "40 KiB saved, 767.0 MiB left out by makedumpfile",
    ):
        assert shown in ran.out
    report = run(capsys, "audit", dumps["flat"], "--json").json
    assert {name: report[name] for name in ("format", "flattened", "dump_level", "compression", "files")} == {
        "format": "kdump-compressed",
        "flattened": True,
        "dump_level": 31,
        "compression": "lzo",
        "files": [str(dumps["flat"])],
    }
    sizes = [report[name] for name in ("described_size", "saved_size", "left_out_size")]
    assert sizes == [767 << 20, 10 * 4096, (767 << 20) - 10 * 4096]


def test_format_of_an_elf_dump_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Format        ELF\n" in run(capsys, "audit", vmcore_head("6.12-s")).out
    report = run(capsys, "audit", vmcore_head("6.12-s"), "--json").json
    expected = {"format": "elf", "flattened": False, "dump_level": None, "compression": None, "left_out_size": 0}
    assert {name: report[name] for name in expected} == expected


def test_several_dumps_are_a_line_each_and_the_exit_code_is_the_worst(
    capsys: pytest.CaptureFixture[str], dumps: dict[str, Path]
) -> None:
    for names, code in (
        (("whole", "flat"), 0),
        (("whole", "beginning"), 5),
        (("beginning", "whole", "cut"), 4),
        (("text", "cut", "beginning", "whole"), 1),
    ):
        ran = run(capsys, "audit", *(dumps[name] for name in names))
        assert ran.code == code
        assert [line.split(":")[0] for line in ran.out.splitlines()] == [str(dumps[name]) for name in names]
    verdicts = [line.split(": ")[1] for line in ran.out.splitlines()]
    assert verdicts == ["FAILED", "NOT ACCURATE", "CANNOT TELL", "ACCURATE"]


def test_several_dumps_are_an_object_a_line_in_json(capsys: pytest.CaptureFixture[str], dumps: dict[str, Path]) -> None:
    names = [str(dumps[name]) for name in ("cut", "part0", "text", "part1")]
    ran = run(capsys, "audit", "--json", *names)
    objects = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, [o["schema"] for o in objects]) == (1, [1, 1, 1])
    assert [o["files"] for o in objects] == [[names[0]], [names[1], names[3]], [names[2]]]
    assert [o["verdict"] for o in objects] == ["not accurate", "accurate", "failed"]
    assert objects[0]["findings"][0]["kind"] == "truncated"
    assert objects[2]["reason"].startswith(
        "this vmcore is not an ELF file, and not in makedumpfile's format: it starts"
    )
    whole = run(capsys, "audit", "--json", names[1], names[3])
    assert (whole.code, whole.json["saved_size"], whole.out.count("\n")) == (0, 10 * 4096, 1)


def test_parts_of_a_split_dump_are_reported_as_one_dump(
    capsys: pytest.CaptureFixture[str], dumps: dict[str, Path]
) -> None:
    ran = run(capsys, "audit", dumps["part1"], dumps["part0"])
    assert ran.code == 0
    assert "Format        kdump-compressed, pages compressed with lzo, in 2 parts\n" in ran.out
    alone = run(capsys, "audit", dumps["part1"])
    assert alone.code == 4
    assert "the part with the pages from 0x0 to 0x400 of this split dump is not given" in alone.out


def test_dump_of_another_kernel_among_several_fails_alone(
    capsys: pytest.CaptureFixture[str], dumps: dict[str, Path]
) -> None:
    ran = run(capsys, "audit", dumps["whole"], vmcore_head("6.12-s"), "--sysroot", tree("6.12-s", 0))
    first, second = ran.out.splitlines()
    assert ran.code == 1
    assert "FAILED: this vmcore is of kernel 6.1.0-test, the machine ran 6.12.107" in first
    assert "NOT ACCURATE: " in second or "CANNOT TELL: " in second


def test_dumps_that_all_fail_are_a_line_each(capsys: pytest.CaptureFixture[str], dumps: dict[str, Path]) -> None:
    ran = run(capsys, "audit", dumps["text"], dumps["text"])
    assert ran.code == 1
    assert ran.out.count("FAILED: this vmcore is not an ELF file") == 2


@pytest.mark.parametrize("name", ["whole", "flat", "cut", "beginning"])
def test_dump_from_standard_input_is_audited_as_the_file(dumps: dict[str, Path], name: str) -> None:
    command = [sys.executable, "-m", "crash_hotplug", "audit", "--json"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    file = subprocess.run([*command, str(dumps[name])], env=environment, capture_output=True, check=False)
    with subprocess.Popen(["cat", str(dumps[name])], stdout=subprocess.PIPE) as cat:
        pipe = subprocess.run([*command, "-"], env=environment, stdin=cat.stdout, capture_output=True, check=False)
    assert pipe.returncode == file.returncode
    assert json.loads(pipe.stdout) == {**json.loads(file.stdout), "files": ["-"]}


def test_standard_input_can_be_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "audit", "-", "-")
    assert ran.code == 2
    assert "standard input can be only one of the dumps" in ran.err
