# SPDX-License-Identifier: MIT
"""The audit reads a model machine's vmcore in each format that the real makedumpfile saves it in.

Oracles: the audit of the vmcore itself, and libkdumpfile's page maps.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from crash_hotplug.core.dump.formats import join_split_dumps, parse_vmcore
from crash_hotplug.core.dump.vmcore import Vmcore, audit_vmcore, compare_vmcore
from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.finding import Comparison, Kind, Verdict
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux.vmcore_file import VmcoreFile, VmcorePipe
from crash_hotplug_lab.model.simulation import STORY, run_scenario
from tests.lab.model.test_external_tools import needs, output

pytestmark = needs("makedumpfile")

COMPRESSED = [
    *(("-l", "-d", str(level)) for level in (0, 1, 2, 4, 8, 16, 31)),
    *((method, "-d", "31") for method in ("-c", "-p", "-z")),
    ("-d", "0"),
]
SYSTEM_PYTHON = "/usr/bin/python3"
PAGE_MAPS = """
import json, sys
from kdumpfile import kdumpfile
attributes = kdumpfile(sys.argv[1]).attr
def ranges(bitmap):
    found, at = [], 0
    while True:
        try:
            start = bitmap.find_set(at)
        except Exception:
            return found
        if start >= attributes["max_pfn"]:
            return found
        at = bitmap.find_clear(start)
        found.append((start, at))
print(json.dumps({name: ranges(attributes[name + ".pagemap"]) for name in ("memory", "file")}))
"""


class Crashed(NamedTuple):
    """The vmcore of a model machine, and the machine at its panic."""

    path: Path
    truth: Machine
    loaded: ElfCoreHeader
    loader: Loader


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Crashed:
    result = run_scenario(STORY, "in-place")
    vmcore = result.panic.vmcore
    assert vmcore is not None
    path = tmp_path_factory.mktemp("crashed") / "vmcore"
    vmcore.write(str(path))
    loader = Loader.KEXEC_TOOLS if vmcore.elfcorehdr.backup_region is not None else Loader.KERNEL
    return Crashed(path, result.machine.kernel_view(), vmcore.elfcorehdr, loader)


def read(path: Path) -> Vmcore:
    with VmcoreFile(str(path)) as source:
        return parse_vmcore(source)


def compared(vmcore: Vmcore, crashed: Crashed, truth: Machine | None = None) -> Comparison:
    result = audit_vmcore(vmcore)
    compare_vmcore(vmcore, truth or crashed.truth, crashed.loaded, crashed.loader, result)
    return result


def assert_as_the_vmcore(saved: Vmcore, crashed: Crashed) -> None:
    """Compare with the audit of the vmcore: of this machine, of one with a DIMM more, of one with a DIMM less."""
    original = read(crashed.path)
    assert (saved.notes, saved.saved_cpus, saved.vmcoreinfo) == (
        original.notes,
        original.saved_cpus,
        original.vmcoreinfo,
    )
    ram = crashed.truth.ram
    for truth in (
        crashed.truth,
        crashed.truth._replace(ram=ram.union([(8 << 30, 9 << 30)])),
        crashed.truth._replace(ram=ram.exclude(RangeList([(4 << 30, 5 << 30)]))),
    ):
        meant, found = compared(original, crashed, truth), compared(saved, crashed, truth)
        assert (found.findings, found.notes) == (meant.findings, meant.notes)
    assert compared(original, crashed).verdict is Verdict.ACCURATE  # the first comparison was not between two faults
    assert compared(saved, crashed).verdict is Verdict.ACCURATE


def page_maps(path: Path) -> dict[str, Any]:
    done = subprocess.run([SYSTEM_PYTHON, "-c", PAGE_MAPS, str(path)], capture_output=True, text=True, check=False)
    if "No module named" in done.stderr or not Path(SYSTEM_PYTHON).exists():
        pytest.skip("python3-libkdumpfile is not installed (Debian has it)")
    assert done.returncode == 0, done.stderr
    maps = json.loads(done.stdout)
    assert isinstance(maps, dict)
    return maps


def save(crashed: Crashed, options: Sequence[str], *paths: Path) -> None:
    assert "makedumpfile Completed" in output("makedumpfile", *options, str(crashed.path), *map(str, paths))


@pytest.mark.parametrize("options", COMPRESSED, ids=" ".join)
def test_compressed_dump_is_audited_as_the_vmcore(crashed: Crashed, tmp_path: Path, options: tuple[str, ...]) -> None:
    save(crashed, options, tmp_path / "dump")
    saved = read(tmp_path / "dump")
    assert_as_the_vmcore(saved, crashed)
    assert saved.dump_level == int(options[-1])
    assert saved.compression in ({"-l": ("lzo",), "-c": ("zlib",)}.get(options[0], (None, "snappy", "zstd")))
    assert saved.announced_size == saved.file_size == (tmp_path / "dump").stat().st_size


@pytest.mark.parametrize("options", [("-l", "-d", "31"), ("-c", "-d", "1")], ids=" ".join)
def test_described_and_saved_pages_are_those_of_libkdumpfile(
    crashed: Crashed, tmp_path: Path, options: tuple[str, ...]
) -> None:
    save(crashed, options, tmp_path / "dump")
    maps = page_maps(tmp_path / "dump")
    saved = read(tmp_path / "dump")
    assert [(r.start // 4096, r.end // 4096) for r in saved.ram] == [tuple(r) for r in maps["memory"]]
    assert saved.saved_size == 4096 * sum(end - start for start, end in maps["file"])


@pytest.mark.parametrize(
    "options", [("-l", "-d", "31"), ("-c", "-d", "0"), ("-E", "-d", "31"), ("-E", "-d", "0")], ids=" ".join
)
def test_flattened_dump_is_audited_as_the_vmcore_from_a_file_and_from_a_pipe(
    crashed: Crashed, tmp_path: Path, options: tuple[str, ...]
) -> None:
    flat = tmp_path / "flat"
    with flat.open("wb") as made:
        command = ["makedumpfile", "-F", *options, str(crashed.path)]
        subprocess.run(command, stdout=made, stderr=subprocess.DEVNULL, check=True)
    assert_as_the_vmcore(read(flat), crashed)
    with subprocess.Popen(["cat", str(flat)], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        assert_as_the_vmcore(parse_vmcore(VmcorePipe(cat.stdout.fileno(), "a pipe")), crashed)
    os.truncate(flat, flat.stat().st_size - 1)
    assert audit_vmcore(read(flat)).verdict is not Verdict.ACCURATE


@pytest.mark.parametrize("options", [("-E", "-d", "31"), ("-E", "-d", "1")], ids=" ".join)
def test_elf_dump_is_audited_as_the_vmcore(crashed: Crashed, tmp_path: Path, options: tuple[str, ...]) -> None:
    save(crashed, options, tmp_path / "dump")
    saved = read(tmp_path / "dump")
    assert_as_the_vmcore(saved, crashed)
    assert saved.left_out_size


def test_split_dump_is_audited_as_the_vmcore(crashed: Crashed, tmp_path: Path) -> None:
    paths = [tmp_path / f"part{number}" for number in range(3)]
    save(crashed, ("--split", "-l", "-d", "31"), *paths)
    parts = [read(path) for path in paths]
    ((whole, _positions),) = join_split_dumps(parts)
    assert_as_the_vmcore(whole, crashed)
    sizes = [(file.announced_size, file.size) for file in whole.files]
    assert sizes[:2] == [(size, size) for _announced, size in sizes[:2]]
    assert sizes[2][1] - sizes[2][0] == 4096  # it has no page but the one of zeros, which no descriptor names
    one_missing = audit_vmcore(join_split_dumps(parts[1:])[0][0])
    assert [finding.kind for finding in one_missing.findings] == [Kind.PART_MISSING]
    output("makedumpfile", "--reassemble", *map(str, paths), str(tmp_path / "whole"))
    assert_as_the_vmcore(read(tmp_path / "whole"), crashed)


def test_dump_of_a_full_disk_is_incomplete(crashed: Crashed, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk."""
    prlimit = shutil.which("prlimit")
    if prlimit is None:
        pytest.skip("prlimit is not installed")
    path = tmp_path / "dump"
    limited = [prlimit, f"--fsize={8 << 20}", "makedumpfile", "-l", "-d", "0", str(crashed.path), str(path)]
    done = subprocess.run(limited, capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
    result = compared(read(path), crashed)
    assert result.verdict is Verdict.NOT_ACCURATE
    assert {finding.kind for finding in result.findings} == {Kind.TRUNCATED}
