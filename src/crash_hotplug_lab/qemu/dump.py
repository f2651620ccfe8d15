# SPDX-License-Identifier: MIT
"""Readers of the vmcore: this project's ``audit``, and makedumpfile and pyelftools, which are independent of it."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from crash_hotplug_lab.qemu import host_tools
from crash_hotplug_lab.qemu.compressed_dump import CompressedDump, is_compressed
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.guest_architecture import X86_64, GuestArchitecture

NT_PRSTATUS = 1
_PID_OFFSET = 32  # struct elf_prstatus: pr_pid
_REGISTERS_OFFSET = 112  # struct elf_prstatus of every 64-bit architecture: pr_reg


@dataclass(frozen=True)
class SavedCpu:
    """The contents of one NT_PRSTATUS note."""

    pid: int
    registers: tuple[int, ...]
    """Registers 8 to 15."""
    in_kernel: bool
    """Whether the CPU was stopped in the kernel (in a timer's interrupt): the registers are the kernel's then."""


def audit(vmcore: Path, sysroot: Path) -> dict[str, Any]:
    """Compare a vmcore with a snapshot by this project's own command, run as a user runs it.

    :raise LabError: it ends without a report
    """
    report = own_command("audit", str(vmcore), "--sysroot", str(sysroot), "--json")
    if "findings" not in report:
        raise LabError(f"the audit failed: {report.get('reason', 'it printed no reason')}")
    return report


def own_command(*arguments: str) -> dict[str, Any]:
    """Run a command of this project on the host and return its JSON report."""
    source = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "crash_hotplug", *arguments]
    env = {**os.environ, "PYTHONPATH": source}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"crash-hotplug {arguments[0]} cannot be run on the host: {error}") from None
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(f"crash-hotplug {arguments[0]} failed: {said[-1] if said else 'it printed nothing'}") from None
    return report


def accepted_by_makedumpfile(vmcore: Path, architecture: GuestArchitecture = X86_64) -> tuple[bool | None, str]:
    """Let makedumpfile filter and compress the vmcore as kdump does (``-l -d 31``).

    :return: whether it did, else why; None where it reads no dump of such a kernel (1.7.8 and older: arm64 with 4 KiB
        pages and CONFIG_ARM64_VA_BITS=52, as Debian builds 6.12 and newer)
    """
    target = vmcore.with_name("vmcore.filtered")
    options = ("-l", "-d", "31", "--message-level", "4")
    command = [*host_tools.makedumpfile(architecture), *options, str(vmcore), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    target.unlink(missing_ok=True)
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    unknown = next((line for line in said if re.search(r"VA Bits \d+ not supported", line)), None)
    if unknown is not None:
        return None, unknown
    return done.returncode == 0, said[-1] if said and done.returncode else ""


def cpus(vmcore: Path, architecture: GuestArchitecture = X86_64) -> list[SavedCpu]:
    """Return the registers of each CPU, read by pyelftools in the order of the notes."""
    found = []
    with vmcore.open("rb") as file:
        segments: Iterator[Any] = ELFFile(file).iter_segments("PT_NOTE")
        for segment in segments:
            for note in segment.iter_notes():
                if note["n_name"] != "CORE" or note["n_type"] not in ("NT_PRSTATUS", NT_PRSTATUS):
                    continue
                raw = note["n_descdata"]
                registers = struct.unpack_from(f"<{architecture.register_count}Q", raw, _REGISTERS_OFFSET)
                (pid,) = struct.unpack_from("<I", raw, _PID_OFFSET)
                busy = tuple(registers[n] for n in architecture.busy_registers)
                found.append(SavedCpu(pid, busy, architecture.in_kernel(registers)))
    return found


def ranges(vmcore: Path, architecture: GuestArchitecture = X86_64) -> list[tuple[int, int]]:
    """Return the physical ranges of the vmcore without the header of the kernel text, read by pyelftools.

    Those of a compressed vmcore are read by :class:`CompressedDump`.
    """
    if is_compressed(vmcore):
        return CompressedDump(vmcore).ranges()
    with vmcore.open("rb") as file:
        loads = [s.header for s in ELFFile(file).iter_segments("PT_LOAD")]
    direct = [h for h in loads if h["p_vaddr"] < architecture.text_start]
    return sorted((h["p_paddr"], h["p_paddr"] + h["p_memsz"]) for h in direct)


def word_at(vmcore: Path, phys: int) -> int | None:
    """Return the 64-bit word at a physical address, read by pyelftools; None where the vmcore does not hold it.

    :class:`CompressedDump` reads that of a compressed vmcore.
    """
    if is_compressed(vmcore):
        return CompressedDump(vmcore).word_at(phys)
    with vmcore.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            header = segment.header
            if header["p_paddr"] <= phys < header["p_paddr"] + header["p_filesz"]:
                file.seek(header["p_offset"] + phys - header["p_paddr"])
                return int.from_bytes(file.read(8), "little")
    return None


ZEROS, NOT_DESCRIBED = "zeros", "not described"


def contents(vmcore: Path, start: int, end: int) -> str:
    """Say what the vmcore holds in a physical range: ``zeros``, ``not described``, or the number of other bytes."""
    other = 0
    with vmcore.open("rb") as file:
        headers = [segment.header for segment in ELFFile(file).iter_segments("PT_LOAD")]
        found = [h for h in headers if h["p_paddr"] <= start and end <= h["p_paddr"] + h["p_filesz"]]
        if not found:
            return NOT_DESCRIBED
        file.seek(found[0]["p_offset"] + start - found[0]["p_paddr"])
        while start < end:
            piece = file.read(min(1 << 20, end - start))
            other += len(piece) - piece.count(0)
            start += len(piece)
    return f"{other} bytes are not 0" if other else ZEROS


@dataclass(frozen=True)
class ImageAddresses:
    """Physical addresses of the parts of a loaded crash image, from a snapshot."""

    boot_description: int
    """x86_64's boot_params, arm64's device tree."""
    elfcorehdr: int
    entry: int
    """Entry point, in purgatory."""
    purgatory: tuple[int, int]
    """The segment that holds the entry."""


def crash_image(snapshot: Path) -> ImageAddresses:
    """Read where the crash image of a snapshot lies.

    :raise LabError: the snapshot does not say it
    """
    try:
        content = json.loads((snapshot / "crash-image/image.json").read_text())
        entry = int(content["entry"], 0)
        segments = [(int(s["phys"], 0), int(s["phys"], 0) + int(s["memsz"], 0)) for s in content["segments"]]
        purgatory = next(s for s in segments if s[0] <= entry < s[1])
        described = content.get("boot_params") or content["dtb"]
        return ImageAddresses(int(described, 0), int(content["elfcorehdr"], 0), entry, purgatory)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        raise LabError("the snapshot does not say where the crash image lies") from None
