# SPDX-License-Identifier: MIT
"""Fuzz every reader with mutated captures: ``python3 -m tests.fuzz --inputs 200000``.

Each input is a real file with bits flipped, pieces cut, doubled or replaced by numbers that hurt.  What may come out is
an answer or a :class:`CrashHotplugError` with a sentence; a traceback, a second of work, or memory out of proportion is
a failure.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import io
import lzma
import random
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from crash_hotplug.core.arch.boot_params import ZeroPage
from crash_hotplug.core.doctor.settings_files import append_assignment, read_setting, sandbox_of
from crash_hotplug.core.doctor.udev_rules import RuleContext, UEvent, find_reloads, parse_rules, without_reload
from crash_hotplug.core.dump.formats import join_split_dumps, parse_vmcore
from crash_hotplug.core.dump.vmcore import audit_vmcore, compare_vmcore
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.finding import Comparison
from crash_hotplug.core.image import CrashImage, parse_kimage
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.verdict import assess, compare_header
from crash_hotplug.linux.archive import ArchiveSysroot
from crash_hotplug.linux.crash_image import find_crash_image, read_crash_image
from crash_hotplug.linux.kexec_state import read_cma_ranges, read_kexec_state
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.core.dump.saved_dumps import InMemory, flattened, registers, saved_dump
from tests.family_trees import FAMILIES
from tests.machines import machine
from tests.trees import NAMES, STATES, tree, vmcore_head

SECONDS_LIMIT = 5.0
BYTES_LIMIT = 128 << 20
NASTY = [
    *(value.to_bytes(8, "little") for value in (0, 1, 0xFFFF, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1, 4096)),
    b"\xff\xff",
    b"\0",
    b"\n",
    b"-",
    b",",
    b" : System RAM\n",
    b"ffffffffffffffff-",
    b"9" * 40,
    b"\x7fELF",
]


class MemoryTree(Sysroot):
    """A saved tree in memory with some of its files changed."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.changed: dict[str, bytes] = {}
        self._cache: dict[str, bytes | None] = {}

    def read(self, path: str, limit: int = 64 << 10) -> bytes | None:
        if path in self.changed:
            return self.changed[path]
        if path not in self._cache:
            self._cache[path] = super().read(path, limit)
        return self._cache[path]


def mutate(data: bytes, randomness: random.Random) -> bytes:
    """Return *data* changed in one to four places."""
    changed = bytearray(data)
    for _ in range(randomness.randint(1, 4)):
        at = randomness.randrange(len(changed) + 1)
        action = randomness.randrange(6)
        if action == 0 and changed:
            changed[at % len(changed)] ^= 1 << randomness.randrange(8)
        elif action == 1:
            del changed[at:]
        elif action == 2:
            nasty = randomness.choice(NASTY)
            changed[at : at + len(nasty)] = nasty
        elif action == 3:
            changed[at:at] = changed[at : at + randomness.randint(1, 200)] * randomness.randint(1, 5)
        elif action == 4:
            del changed[at : at + randomness.randint(1, 64)]
        else:
            changed[at:at] = randomness.randbytes(randomness.randint(1, 64))
    return bytes(changed)


TEXT_FILES = (
    "/proc/iomem",
    "/proc/kallsyms",
    "/proc/cmdline",
    "/proc/sys/kernel/osrelease",
    "/sys/kernel/vmcoreinfo",
    "/sys/kernel/kexec_crash_loaded",
    "/sys/kernel/kexec_crash_size",
    "/sys/kernel/crash_elfcorehdr_size",
    "/sys/devices/system/cpu/possible",
    "/sys/devices/system/cpu/present",
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/cpu0/crash_notes",
    "/sys/devices/system/cpu/cpu1/crash_notes_size",
    "/sys/devices/system/memory/block_size_bytes",
    "/sys/devices/system/memory/memory3/state",
    "/crash-image/elfcorehdr",
    "/crash-image/boot_params",
    "/crash-image/cmdline",
    "/crash-image/image.json",
)


class Targets:
    """The readers under test, over the captures."""

    def __init__(self) -> None:
        self.trees = [MemoryTree(str(tree(name, state))) for name in NAMES for state in range(len(STATES))]
        self.machines: list[Machine] = [read_machine(sysroot) for sysroot in self.trees]
        self.vmcores = [vmcore_head(name).read_bytes() for name in NAMES]
        self._directory = tempfile.TemporaryDirectory()
        self.archive_file = Path(self._directory.name) / "case"
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(tree(NAMES[0], 1), "case")
        compressors = (bytes, gzip.compress, bz2.compress, lzma.compress)
        self.archives = [compress(packed.getvalue()) for compress in compressors]
        small = saved_dump(machine(), 2, release=b"", notes=registers(2))
        parts = [replace(small, part=(0, 0x400)), replace(small, part=(0x400, small.max_mapnr))]
        dumps = [small, *parts, replace(small, version=5, erased=b"erase"), replace(small, lost=3, status=9)]
        self.compressed = [dump.to_bytes() for dump in dumps]
        self.compressed += [flattened(dump.pieces()) for dump in dumps]
        self.compressed.append(flattened([(0, self.vmcores[0][:64]), (64, self.vmcores[0][64:8192])]))

    def header(self, randomness: random.Random) -> None:
        """A mutated elfcorehdr: parse, compare, bring up to date, write."""
        at = randomness.randrange(len(self.trees))
        data = mutate((self.trees[at].read("/crash-image/elfcorehdr") or b"")[:1024], randomness)
        header = parse_elfcorehdr(data)
        if header.to_bytes() != data[: header.size]:
            raise AssertionError("written again, the header is another")
        dialect = randomness.choice(list(Loader))
        compare_header(self.machines[at], header, dialect, randomness.choice([None, 4096]))
        expected_elfcorehdr(self.machines[at], dialect, header)

    def vmcore(self, randomness: random.Random) -> None:
        """A mutated vmcore: parse, audit, compare."""
        at = randomness.randrange(len(self.vmcores))
        vmcore = parse_vmcore(InMemory(mutate(self.vmcores[at][:8192], randomness)))
        result: Comparison = audit_vmcore(vmcore)
        compare_vmcore(vmcore, randomness.choice(self.machines[4 * at : 4 * at + 4]), None, Loader.KERNEL, result)

    def compressed_dump(self, randomness: random.Random) -> None:
        """A mutated compressed dump, plain or flattened: parse, audit, compare; half of the changes hit its headers."""
        data = randomness.choice(self.compressed)
        head = randomness.choice([600, 4400, len(data)])
        source = InMemory(mutate(data[:head], randomness) + data[head:])
        vmcore, other = parse_vmcore(source), parse_vmcore(InMemory(randomness.choice(self.compressed)))
        for joined, _positions in join_split_dumps([vmcore, other]):
            compare_vmcore(joined, randomness.choice(self.machines), None, Loader.KERNEL, audit_vmcore(joined))

    def saved_tree(self, randomness: random.Random) -> None:
        """Run `status` on a saved tree with some mutated files."""
        sysroot = randomness.choice(self.trees)
        sysroot.changed.clear()
        for path in randomness.sample(TEXT_FILES, randomness.randint(1, 3)):
            sysroot.changed[path] = mutate(sysroot.read(path) or b"", randomness)
        try:
            read_kexec_state(sysroot)
            read_cma_ranges(sysroot)
            machine = read_machine(sysroot)
            assess(machine, read_crash_image(sysroot, machine.crashkernel))
        finally:
            sysroot.changed.clear()

    def archive(self, randomness: random.Random) -> None:
        """Read a mutated archive of a saved tree, plain or compressed; half of the changes hit its first headers."""
        data = randomness.choice(self.archives)
        head = randomness.choice([2048, len(data)])
        self.archive_file.write_bytes(mutate(data[:head], randomness) + data[head:])
        read_machine(ArchiveSysroot(str(self.archive_file)))

    def image(self, randomness: random.Random) -> None:
        """Mutated boot_params, command line and kimage."""
        at = randomness.randrange(len(self.trees))
        sysroot, machine = self.trees[at], self.machines[at]
        image = read_crash_image(sysroot, machine.crashkernel)
        boot = cast("ZeroPage", image.boot)
        page = mutate(boot.page or b"", randomness)
        cmdline = mutate((image.cmdline or "").encode(), randomness).decode("ascii", "replace")
        assess(machine, CrashImage(image.elfcorehdr, None, ZeroPage(page, None, cmdline)))
        parse_kimage(mutate(bytes(24) + page[:560], randomness), machine.crashkernel)

    def live(self, randomness: random.Random) -> None:
        """The live path over a kcore that has headers only, and over mutated symbols."""
        at = randomness.randrange(len(self.trees))
        sysroot = self.trees[at]
        sysroot.changed["/proc/kallsyms"] = mutate(b"ffffffff92000100 B kexec_crash_image\n", randomness)
        try:
            find_crash_image(sysroot, self.machines[at].crashkernel)
        finally:
            sysroot.changed.clear()

    def configuration(self, randomness: random.Random) -> None:
        """Run `doctor` on mutated rules, settings and units."""
        paths = sorted(path for path in FAMILIES.rglob("*") if path.is_file() and path.suffix != ".md")
        text = mutate(randomness.choice(paths).read_bytes(), randomness).decode("utf-8", "surrogateescape")
        context = RuleContext({"cpu": False, "memory": True}, lambda _path: "1\n")
        event = UEvent(randomness.choice(["cpu", "memory"]), randomness.choice(["add", "online", "offline", "remove"]))
        changed = without_reload(text, ["a heading"])
        if find_reloads(parse_rules(changed), event, RuleContext({}, lambda _path: "1\n")):
            raise AssertionError(f"a reload is left: {changed!r}")
        find_reloads(parse_rules(text), event, context)
        sandbox_of([text])
        for name in ("KDUMP_CMDLINE_APPEND", "KEXEC_ARGS", "KDUMP_COMMANDLINE_APPEND"):
            setting = read_setting(text, name)
            if setting is not None and setting.value is not None:
                append_assignment(text, name, setting.value, [])


def fuzz(inputs: int, seed: int, say: Callable[[str], None]) -> dict[str, int]:
    """Run the inputs; return how many were answered and how many refused with a sentence.

    :raise AssertionError: an input took too long or too much memory, or was answered wrongly
    """
    randomness = random.Random(seed)
    targets = Targets()
    kinds = [targets.header, targets.header, targets.vmcore, targets.vmcore, targets.saved_tree, targets.image]
    kinds += [targets.live, targets.configuration, targets.compressed_dump, targets.compressed_dump, targets.archive]
    counts = {"answered": 0, "refused": 0}
    slowest = 0.0
    tracemalloc.start()
    for number in range(inputs):
        started = time.perf_counter()
        try:
            randomness.choice(kinds)(randomness)
            counts["answered"] += 1
        except CrashHotplugError as error:
            if not str(error) or "\n" in str(error):
                raise AssertionError(f"not a sentence: {error!r}") from error
            counts["refused"] += 1
        slowest = max(slowest, time.perf_counter() - started)
        if number % 20_000 == 19_999:
            say(f"{number + 1} inputs, {counts['refused']} refused, slowest {slowest * 1e3:.0f} ms")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if slowest > SECONDS_LIMIT or peak > BYTES_LIMIT:
        raise AssertionError(f"slowest input {slowest:.1f} s, peak memory {peak >> 20} MiB")
    say(f"seed {seed}: {inputs} inputs, {counts}, slowest {slowest * 1e3:.0f} ms, peak {peak / (1 << 20):.1f} MiB")
    return counts


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    fuzz(arguments.inputs, arguments.seed, lambda line: print(line, file=sys.stderr, flush=True))


if __name__ == "__main__":
    main()
