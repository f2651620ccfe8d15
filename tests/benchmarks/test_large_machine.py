# SPDX-License-Identifier: MIT
"""Commands on a machine of very many memory ranges, memory blocks and CPUs: their reports and their calls.

Calls are counted, since a time depends on the host.  ``python -m tests.benchmarks.process_cost`` has the times, of a
machine eight times as large.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.elf import ProgramHeader, parse_program_headers
from crash_hotplug.linux import kcore as kcore_module
from crash_hotplug.linux.cpus import read_cpus, read_possible_notes
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import Sysroot
from tests.benchmarks.large_machine import DESCRIBED_CPUS, large_live_tree, large_saved_tree
from tests.benchmarks.test_growth import Calls
from tests.cli.running import run
from tests.trees import vmcore_head

RANGES, CPUS = 1024, 512
BLOCKS = 1 + 3 * RANGES
FEW = 300
"""Files that are neither a memory block's nor a CPU's, at most."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large_saved_tree(tmp_path_factory.mktemp("machine"), RANGES, CPUS)


@pytest.mark.parametrize(
    ("command", "verb", "loss"), [("status", "are", "a dump would lack"), ("audit", "were", "the dump lacks")]
)
def test_report_about_a_large_machine_fits_on_a_screen(
    capsys: pytest.CaptureFixture[str], saved: Path, command: str, verb: str, loss: str
) -> None:
    ran = run(capsys, command, *([vmcore_head("6.1-c")] if command == "audit" else []), "--sysroot", saved)
    assert ran.code == 4
    assert len(ran.out.splitlines()) < 40
    assert max(map(len, ran.out.splitlines())) < 200
    assert ran.out.split("\nFindings")[1].split("\n\n")[0] == (
        " (1,522; --json lists each)\n"
        f"  CPUs 14-511 {verb} not described: {loss} their registers and so their stacks\n"
        f"  1,024 ranges, 6 TiB in all, are not described: {loss} that memory "
        "(6 GiB at 0x100000000, 6 GiB at 0x300000000, 6 GiB at 0x500000000 and 1,021 more)"
    )


def test_json_about_a_large_machine_has_every_finding(capsys: pytest.CaptureFixture[str], saved: Path) -> None:
    findings = run(capsys, "status", "--json", "--sysroot", saved).json["findings"]
    assert [f["cpu"] for f in findings if f["kind"] == "cpu-missing"] == list(range(DESCRIBED_CPUS, CPUS))
    ranges = [f for f in findings if f["kind"] == "memory-missing"]
    assert len(ranges) == RANGES
    assert sum(f["bytes"] for f in ranges) == 6 << 40
    assert all(len(f["ranges"]) == 1 for f in ranges)


def test_status_opens_each_file_of_a_block_or_cpu_once(
    capsys: pytest.CaptureFixture[str], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = BLOCKS + 2 * CPUS
    opened, read, checked = (Calls(monkeypatch, name) for name in ("open", "read", "fstat"))
    linked, found = Calls(monkeypatch, "lstat"), Calls(monkeypatch, "stat")
    assert run(capsys, "status", "--sysroot", saved).code == 4
    per_file = [path for path in opened.paths if "/memory/memory" in str(path) or "/cpu/cpu" in str(path)]
    assert len(per_file) == len(set(per_file)) == files
    assert len(opened.paths) < files + FEW
    assert len(read.paths) == files
    assert len(checked.paths) < files + FEW
    assert len(linked.paths) + len(found.paths) < FEW


class CountedHeader(ProgramHeader):
    """A program header that counts how often its virtual address is read."""

    reads = 0

    @property
    def p_vaddr(self) -> int:
        CountedHeader.reads += 1
        return int(self[3])


def test_notes_of_every_cpu_are_found_without_a_comparison_with_every_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysroot = Sysroot(str(large_live_tree(tmp_path, RANGES, CPUS)))

    def counted(*arguments: object) -> list[CountedHeader]:
        return [CountedHeader(*header) for header in parse_program_headers(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(kcore_module, "parse_program_headers", counted)
    cpus = read_cpus(sysroot)
    with Kcore(sysroot) as kcore:
        CountedHeader.reads = 0
        found = read_possible_notes(sysroot, kcore, cpus)
    assert found == {cpu.number: cpu.crash_notes for cpu in cpus}
    assert len(found) == CPUS
    assert CountedHeader.reads < 10 * (RANGES + CPUS)
