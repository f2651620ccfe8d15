# SPDX-License-Identifier: MIT
"""`header`: the rules that it follows, the parts that it keeps, and its output."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from crash_hotplug.cli.main import main
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from tests.cli.running import run
from tests.trees import tree


def test_header_keeps_the_loaders_parts_by_default(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "header"
    ran = run(capsys, "header", "--sysroot", tree("6.1-c", 1), "-o", output)
    assert ran.code == 0
    assert "9 entries, 568 bytes (1024 with padding), by the rules of kexec-tools" in ran.out
    header = parse_elfcorehdr(output.read_bytes())
    assert header.backup_region is not None
    assert run(capsys, "status", "--sysroot", tree("6.1-c", 1), "--elfcorehdr", output).code == 0


def test_backup_region_given_is_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "header"
    arguments = ("--loader", "kexec-tools", "--backup-region", "0x36f00000", "-o", output, "--json")
    assert run(capsys, "header", "--sysroot", tree("6.1-s", 0), *arguments).json["dialect"] == "kexec-tools"
    backup = parse_elfcorehdr(output.read_bytes()).backup_region
    assert backup is not None
    assert backup.p_offset == 0x36F00000
    refused = run(capsys, "header", "--sysroot", tree("6.1-s", 0), "--loader", "kexec-tools", "-o", output)
    assert refused.code == 5
    assert "points to the backup region" in refused.err


def test_header_without_a_loaded_image_follows_the_kernels_rules(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(tree("6.1-c", 0), tmp_path / "copy")
    (tmp_path / "copy/sys/kernel/kexec_crash_loaded").write_text("0\n")
    ran = run(capsys, "header", "--sysroot", tmp_path / "copy", "-o", tmp_path / "header")
    assert "by the rules of the kernel" in ran.out


def test_cma_range_that_kexec_tools_keeps_from_the_capture_kernel_is_described(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(tree("6.1-c", 1), tmp_path / "copy")
    (tmp_path / "copy/sys/kernel/kexec").mkdir(exist_ok=True)
    (tmp_path / "copy/sys/kernel/kexec/crash_cma_ranges").write_text("28000000-2dffffff\n")
    run(capsys, "header", "--sysroot", tree("6.1-c", 1), "-o", tmp_path / "without")
    run(capsys, "header", "--sysroot", tmp_path / "copy", "-o", tmp_path / "with")
    assert (tmp_path / "with").read_bytes() == (tmp_path / "without").read_bytes()


def test_header_goes_to_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["header", "--sysroot", str(tree("6.1-s", 0)), "-o", "-"]) == 0
    written = capfdbinary.readouterr().out
    assert written == (tree("6.1-s", 0) / "crash-image" / "elfcorehdr").read_bytes()


@pytest.mark.parametrize("output", ["/nowhere/header", "/dev/full", "."])
def test_output_that_cannot_be_written_is_one_sentence(capsys: pytest.CaptureFixture[str], output: str) -> None:
    ran = run(capsys, "header", "--sysroot", tree("6.1-s", 0), "-o", output)
    assert ran.code == 1
    assert output in ran.err


def test_failure_leaves_the_previous_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    output = tmp_path / "header"
    output.write_bytes(b"previous")
    (tmp_path / "bad").write_bytes(b"no header")
    base = tmp_path / "bad"
    assert run(capsys, "header", "--sysroot", tree("6.1-s", 0), "--from", base, "-o", output).code == 1
    assert output.read_bytes() == b"previous"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "header"]
