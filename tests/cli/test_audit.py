# SPDX-License-Identifier: MIT
"""The output and the exit codes of `audit`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash_hotplug.core.arch.boot_params import E820_COUNT, E820_ENTRY, E820_RAM, E820_TABLE
from tests.cli.running import run
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
