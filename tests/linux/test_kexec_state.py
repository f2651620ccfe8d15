# SPDX-License-Identifier: MIT
"""The kernel's files about kexec, in the old and the new place."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.machine import NoteRegion
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_state import (
    CPU_HOTPLUG,
    LOCKDOWN,
    MEMORY_HOTPLUG,
    kernel_updates_image,
    memory_encryption,
    read_cma_ranges,
    read_kexec_state,
    read_vmcoreinfo,
    why_locked_down,
    why_no_load,
)
from crash_hotplug.linux.sysroot import Sysroot
from tests.linux.fake_kcore import write_kcore
from tests.trees import tree


def written(root: Path, files: dict[str, str]) -> Sysroot:
    (root / "sys").mkdir(parents=True)
    for path, text in files.items():
        located = root / path.lstrip("/")
        located.parent.mkdir(parents=True, exist_ok=True)
        located.write_text(text)
    return Sysroot(str(root))


def test_state_of_a_kernel_that_updates_headers_itself_and_of_one_that_does_not() -> None:
    new = read_kexec_state(Sysroot(str(tree("6.12-s", 0))))
    old = read_kexec_state(Sysroot(str(tree("6.1-s", 0))))
    assert (new.image_loaded, new.updates_cpus, new.updates_memory, new.elfcorehdr_size) == (True, True, True, 917616)
    assert (old.image_loaded, old.updates_cpus, old.updates_memory, old.elfcorehdr_size) == (True, None, None, None)
    assert (new.reserved_size, new.lockdown, new.load_disabled) == (192 << 20, None, None)


def test_paths_since_6_19_are_read_first(tmp_path: Path) -> None:
    sysroot = written(tmp_path, {"sys/kernel/kexec/crash_loaded": "1\n", "sys/kernel/kexec_crash_loaded": "0\n"})
    assert read_kexec_state(sysroot).image_loaded is True


def test_restrictions_of_loading_are_read(tmp_path: Path) -> None:
    files = {
        "proc/sys/kernel/kexec_load_disabled": "1\n",
        "proc/sys/kernel/kexec_load_limit_panic": "-1\n",
        "sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
    }
    state = read_kexec_state(written(tmp_path, files))
    assert (state.load_disabled, state.load_limit, state.lockdown, state.image_loaded) == (True, -1, "integrity", None)


def test_flag_that_is_0_while_the_kexec_lock_is_taken_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"sys/devices/system/cpu/crash_hotplug": "0\n", "sys/devices/system/memory/crash_hotplug": "0\n"}
    sysroot = written(tmp_path, files)
    assert not kernel_updates_image(sysroot)  # it stays 0
    assert not kernel_updates_image(written(tmp_path / "old", {"sys/kernel/kexec_crash_loaded": "1\n"}))

    def give_the_lock_back(_seconds: float) -> None:
        Path(sysroot.locate(MEMORY_HOTPLUG)).write_text("1\n")

    monkeypatch.setattr("time.sleep", give_the_lock_back)
    assert kernel_updates_image(sysroot)


def test_cma_ranges_are_left_out_of_dumps(tmp_path: Path) -> None:
    sysroot = written(tmp_path, {"sys/kernel/kexec/crash_cma_ranges": "100000000-10c7fffff\n"})
    assert read_cma_ranges(sysroot) == RangeList([(0x1_0000_0000, 0x1_0C80_0000)])


@pytest.mark.parametrize("text", ["yes", "9" * 30, "1.5"])
def test_number_in_another_form_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is not a number"):
        read_kexec_state(written(tmp_path, {"sys/kernel/kexec_crash_loaded": text}))


def test_cma_ranges_that_cannot_be_read_are_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them a header would describe the capture kernel's own memory."""
    sysroot = written(tmp_path, {"sys/kernel/kexec/crash_cma_ranges": "100000000-10c7fffff\n"})

    def refused(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refused)
    with pytest.raises(CannotTellError, match="crash_cma_ranges cannot be read"):
        read_cma_ranges(sysroot)


@pytest.mark.parametrize("text", ["nothing", "2000-1000", "1000-2000 3000"])
def test_cma_ranges_in_another_form_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="is not a list of START-END ranges"):
        read_cma_ranges(written(tmp_path, {"sys/kernel/kexec/crash_cma_ranges": f"{text}\n"}))


def with_vmcoreinfo(path: Path, text: str, cpuinfo: str = "flags\t\t: fpu vme\n") -> tuple[Sysroot, NoteRegion]:
    """Write a machine with so much vmcoreinfo behind the note's header of 24 bytes."""
    sysroot = written(path, {"proc/cpuinfo": cpuinfo})
    note = struct.pack("<III", 11, 4096, 0) + b"VMCOREINFO\0\0" + text.encode() + b"\0behind"
    write_kcore(path / "proc" / "kcore", {0x5000: note}, {})
    return sysroot, NoteRegion(0x5000, 0x1000)


def test_vmcoreinfo_is_the_text_behind_the_header_of_the_note(tmp_path: Path) -> None:
    sysroot, place = with_vmcoreinfo(tmp_path, "OSRELEASE=6.1.0\nPAGESIZE=4096\n")
    with Kcore(sysroot) as kcore:
        assert read_vmcoreinfo(kcore, place) == b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"


@pytest.mark.parametrize(
    ("text", "cpuinfo", "name"),
    [
        ("OSRELEASE=6.1.0\n", "flags\t\t: fpu sme sev\n", None),  # the processor supports it: no guest flag, no mask
        ("NUMBER(sme_mask)=140737488355328\n", "", "AMD SME or SEV"),
        ("NUMBER(sme_mask)=0\n", "flags\t\t: fpu\n", None),
        ("", "processor\t: 0\nflags\t\t: fpu tdx_guest\n", "Intel TDX"),
        ("", "flags\t\t: sev_guest fpu\n", "AMD SEV"),
    ],
)
def test_memory_encryption_is_named(tmp_path: Path, text: str, cpuinfo: str, name: str | None) -> None:
    sysroot, place = with_vmcoreinfo(tmp_path, text, cpuinfo)
    with Kcore(sysroot) as kcore:
        assert memory_encryption(sysroot, kcore, place) == name


def test_memory_encryption_without_vmcoreinfo_is_cannot_tell(tmp_path: Path) -> None:
    sysroot, _place = with_vmcoreinfo(tmp_path, "")
    with Kcore(sysroot) as kcore, pytest.raises(CannotTellError, match="not known whether memory is encrypted"):
        memory_encryption(sysroot, kcore, None)


@pytest.mark.parametrize(
    ("files", "lockdown", "no_load"),
    [
        ({}, None, None),
        ({LOCKDOWN: "[none] integrity confidentiality\n"}, None, None),
        ({LOCKDOWN: "none [integrity] confidentiality\n"}, "lockdown (integrity) forbids kexec_load", None),
        ({LOCKDOWN: "none integrity [confidentiality]\n"}, "lockdown (confidentiality) forbids kexec_load", None),
        ({"proc/sys/kernel/kexec_load_disabled": "0\n"}, None, None),
        ({"proc/sys/kernel/kexec_load_disabled": "1\n"}, None, "kernel.kexec_load_disabled"),
        ({"proc/sys/kernel/kexec_load_limit_panic": "-1\n"}, None, None),
        ({"proc/sys/kernel/kexec_load_limit_panic": "1\n"}, None, None),
        ({"proc/sys/kernel/kexec_load_limit_panic": "0\n"}, None, "kernel.kexec_load_limit_panic"),
    ],
)
def test_restriction_is_a_sentence(
    tmp_path: Path, files: dict[str, str], lockdown: str | None, no_load: str | None
) -> None:
    state = read_kexec_state(written(tmp_path, {"proc/empty": "", **files}))
    assert why_locked_down(state) == lockdown
    assert (why_no_load(state) or "").split(" ")[0] == (no_load or "")


def test_flag_of_one_subsystem_is_enough(tmp_path: Path) -> None:
    assert kernel_updates_image(written(tmp_path, {CPU_HOTPLUG: "1\n", MEMORY_HOTPLUG: "0\n"}))


def test_flag_that_stays_0_is_read_four_times_with_pauses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    assert not kernel_updates_image(written(tmp_path, {CPU_HOTPLUG: "0\n"}))
    assert pauses == [0.003] * 3
    pauses.clear()
    assert not kernel_updates_image(written(tmp_path / "old", {"proc/empty": ""}))
    assert pauses == []
