# SPDX-License-Identifier: MIT
"""The verdicts on captures of real machines: `status` and `audit` say the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.trees import arm64_tree, tree, vmcore_head

CPU_2 = ("cpu-missing", "", 0, 2)
DIMM_MISSING = ("memory-missing", "0x100000000", 256 << 20, None)
DIMM_GONE = ("memory-described-but-gone", "0x100000000", 256 << 20, None)

FINDINGS: dict[str, list[list[object]]] = {
    "6.1-c": [[], [CPU_2, DIMM_MISSING], [CPU_2, DIMM_MISSING], [CPU_2]],
    "6.1-s": [[], [CPU_2, DIMM_MISSING], [CPU_2, DIMM_MISSING], [CPU_2]],
    "6.12-s": [[], [], [], [DIMM_GONE]],
    "6.12-ch": [[], [], [], [DIMM_GONE]],
}
CASES = [(name, state) for name in FINDINGS for state in range(4)]


def found(report: dict[str, list[dict[str, object]]]) -> list[object]:
    shown: list[object] = []
    for finding in report["findings"]:
        ranges = finding["ranges"]
        assert isinstance(ranges, list)
        shown.append((finding["kind"], ranges[0]["start"] if ranges else "", finding["bytes"], finding.get("cpu")))
    return shown


def backup_dropped(report: dict[str, list[dict[str, object]]]) -> bool:
    return any(
        note["kind"] == "backup-region-dropped" and "first 640 KiB are no longer described" in str(note["sentence"])
        for note in report["notes"]
    )


@pytest.mark.parametrize(("name", "state"), CASES)
def test_status_of_a_capture(capsys: pytest.CaptureFixture[str], name: str, state: int) -> None:
    expected = FINDINGS[name][state]
    ran = run(capsys, "status", "--sysroot", tree(name, state), "--json")
    assert found(ran.json) == expected
    assert (ran.code, ran.json["verdict"]) == ((4, "not accurate") if expected else (0, "accurate"))
    assert backup_dropped(ran.json) == (name == "6.12-ch" and state > 0)
    assert ran.json["unchecked"] == []


ARM64_DIMM = ("memory-missing", "0x80000000", 512 << 20, None)
# kexec-tools on 6.1 writes wrong addresses of text and RAM, on machines that never hot-plugged as well.
BROKEN = [
    ("malformed", "", 0, None),
    ("wrong-kernel-text", "", 0, None),
    ("wrong-direct-map-address", "0x40000000", 0x2FA8_0000, None),
]
ARM64_FINDINGS: dict[str, list[list[object]]] = {
    "arm64-6.1-c": [[*BROKEN], [ARM64_DIMM, *BROKEN], [ARM64_DIMM, *BROKEN], [*BROKEN], [*BROKEN]],
    "arm64-6.12-c": [[], [ARM64_DIMM], [ARM64_DIMM], [], []],
    "arm64-6.12f-s": [[], [ARM64_DIMM], [ARM64_DIMM], [], []],
}


@pytest.mark.parametrize(("name", "state"), [(name, state) for name in ARM64_FINDINGS for state in range(5)])
def test_status_of_an_arm64_capture(capsys: pytest.CaptureFixture[str], name: str, state: int) -> None:
    """The machine that reads the tree is of another architecture."""
    expected = ARM64_FINDINGS[name][state]
    if state == 2 and ARM64_DIMM in expected:  # its upper block is offline, so a dump would lack the others only
        expected = [("memory-missing", "0x80000000", 384 << 20, None), *expected[1:]]
    ran = run(capsys, "status", "--sysroot", arm64_tree(name, state), "--json")
    assert found(ran.json) == expected
    assert (ran.code, ran.json["verdict"]) == ((4, "not accurate") if expected else (0, "accurate"))
    assert ran.json["crash_image"]["loader"] == ("kernel" if name.endswith("-s") else "kexec-tools")
    assert ran.json["crash_image"]["room"] == (4096 if name.endswith("-s") else 1024)
    assert ran.json["unchecked"] == []


@pytest.mark.parametrize(("name", "state"), CASES)
def test_audit_compares_the_vmcore_with_each_state(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, state: int
) -> None:
    """The dump was made after state 3, so on 6.12 it has the DIMM that state 0 does not know yet."""
    expected = FINDINGS[name][state]
    if name.startswith("6.12") and state == 0:
        expected = [DIMM_GONE]
    head = run(capsys, "audit", vmcore_head(name), "--sysroot", tree(name, state), "--json")
    assert (head.code, head.json["verdict"]) == ((4, "not accurate") if expected else (5, "cannot tell"))
    assert "only the first 32 KiB" in head.json["unchecked"][0]
    whole = tmp_path / "vmcore"
    whole.write_bytes(vmcore_head(name).read_bytes())
    os.truncate(whole, head.json["announced_size"])  # sparse: takes no room
    ran = run(capsys, "audit", whole, "--sysroot", tree(name, state), "--json")
    assert (ran.code, ran.json["verdict"]) == ((4, "not accurate") if expected else (0, "accurate"))
    for report in (head.json, ran.json):
        assert found(report) == expected
        assert backup_dropped(report) == (name == "6.12-ch")


@pytest.mark.parametrize(("name", "dialect", "padded"), [("6.1-c", "kexec-tools", 1024), ("6.1-s", "kernel", 4096)])
def test_header_from_nothing_is_the_captured_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, dialect: str, padded: int
) -> None:
    output = tmp_path / "header"
    assert run(capsys, "header", "--sysroot", tree(name, 0), "--dialect", dialect, "-o", output).code == 0
    written, captured = output.read_bytes(), (tree(name, 0) / "crash-image" / "elfcorehdr").read_bytes()
    assert len(written) == padded
    assert written.ljust(4096, b"\0") == captured


def test_header_of_the_next_state_is_what_the_kernel_wrote(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before, now = (tree("6.12-s", state) / "crash-image" / "elfcorehdr" for state in (0, 1))
    output = tmp_path / "header"
    run(capsys, "header", "--sysroot", tree("6.12-s", 1), "--from", before, "-o", output)
    assert output.read_bytes() == now.read_bytes()
    assert output.read_bytes() != before.read_bytes()
