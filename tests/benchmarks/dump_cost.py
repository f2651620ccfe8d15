# SPDX-License-Identifier: MIT
"""CPU time and memory of `audit` for a compressed dump of 1 TiB: ``python -m tests.benchmarks.dump_cost``.

The dump is a sparse file with two bitmaps of 32 MiB.  A multiple of the CPU time of an empty Python process stands for
the time, because hosts differ.
"""

from __future__ import annotations

import random
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from crash_hotplug.core.elf import Note, pack_notes
from tests.benchmarks.process_cost import EMPTY, ROOT, cpu_seconds
from tests.core.dump.saved_dumps import SavedDump, registers

PAGES = 1 << 28
_HOLE = range(3 << 18, 1 << 20)
"""Page frames below 4 GiB that are no RAM."""
_MIB = 1 << 20


def write_dump(path: Path, is_mixed: bool) -> None:
    """Write the dump of a machine with 1 TiB.

    :param is_mixed: whether about half of the pages are left out, here and there, as at dump level 31; else few are
    """
    notes = [*registers(64), Note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0-test\nCRASHTIME=1795368112\n")]
    dump = SavedDump([], [], notes, pages=PAGES)
    described = bytearray(b"\xff" * (PAGES // 8))
    described[_HOLE.start // 8 : _HOLE.stop // 8] = bytes(len(_HOLE) // 8)
    described[0] = 0xFE
    saved = bytearray(described)
    if is_mixed:
        kept = int.from_bytes(random.Random(1).randbytes(_MIB), "little")
        for at in range(0, len(saved), _MIB):
            part = int.from_bytes(saved[at : at + _MIB], "little") & kept
            saved[at : at + _MIB] = part.to_bytes(_MIB, "little")
    else:
        saved[_MIB : 2 * _MIB] = bytes(_MIB)
    number = sum(
        bin(int.from_bytes(saved[at : at + (1 << 20)], "little")).count("1") for at in range(0, len(saved), 1 << 20)
    )
    data_offset = dump.descriptors_offset + 24 * number
    with path.open("wb") as file:
        file.write(dump.main_header())
        for offset, piece in (
            (dump.page_size, dump.sub_header()),
            (dump.notes_offset, pack_notes(notes)),
            (dump.bitmaps_offset, described),
            (dump.bitmaps_offset + PAGES // 8, saved),
            (data_offset - 24, struct.pack("<QIIQ", data_offset + 4096, 4096, 0, 0)),
        ):
            file.seek(offset)
            file.write(piece)
        file.truncate(data_offset + 8192)


def cost(path: Path) -> tuple[float, float, int]:
    """Return the CPU seconds of an audit, the multiple of those of an empty process, and its peak memory in bytes."""
    command = ("-m", "crash_hotplug", "audit", str(path), "--json")
    cpu_seconds(command)  # the first run compiles
    times = [(cpu_seconds(command), cpu_seconds(EMPTY)) for _ in range(5)]
    large, empty = (statistics.median(column) for column in zip(*times))
    return large, large / empty, peak_memory(path)


def peak_memory(path: Path) -> int:
    """Return the peak resident size of an audit in bytes, from ``VmHWM``: ru_maxrss would count this process's."""
    code = f"""
import contextlib, io
from crash_hotplug.cli.main import main
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["audit", {str(path)!r}, "--json"]) == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    environment = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout) << 10


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for is_mixed in (False, True):
            dump_path = Path(directory) / "vmcore"
            write_dump(dump_path, is_mixed)
            seconds, ratio, memory = cost(dump_path)
            name = "half of the pages left out" if is_mixed else "few pages left out"
            print(f"audit of 1 TiB, {name}: {seconds:.2f} s, {ratio:.0f} times python3 -c pass, {memory >> 20} MiB")  # noqa: T201
