# SPDX-License-Identifier: MIT
"""kexec_load and kexec_file_load: the kernel's checks, error numbers, and the image that a refused load drops."""

from __future__ import annotations

import errno

import pytest

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.steps import run
from crash_hotplug_lab.model.arch.x86_64 import default_profile
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.kexec_syscalls import KEXEC_UPDATE_ELFCOREHDR, crash_flags, kexec_file_load, kexec_load
from crash_hotplug_lab.model.kimage import KexecSegment
from crash_hotplug_lab.model.loader import parse_hotplug_size, small_capture_kernel
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.profile import CRASH_HOTPLUG_ELFCOREHDR_SZ
from crash_hotplug_lab.model.user_space import Kexec, LoadCall


def machine_with_image(release: str = "5.10.0-model", **kexec: object) -> ModelMachine:
    machine = boot(default_profile(release))
    run(Kexec(small_capture_kernel(), **kexec).load(machine))  # type: ignore[arg-type]
    return machine


def at(machine: ModelMachine, pages: int, memsz: int = PAGE, buf: bytes = b"x") -> KexecSegment:
    return KexecSegment(buf, machine.profile.reserved.start + pages * PAGE, memsz)


@pytest.mark.parametrize(
    ("offsets", "number"),
    [
        ([(-1, PAGE)], errno.EADDRNOTAVAIL),
        ([(0, 192 << 20), (1, PAGE)], errno.EINVAL),
        ([(0, PAGE), (0, PAGE)], errno.EINVAL),
        ([(0, PAGE + 1)], errno.EADDRNOTAVAIL),
        ([(0, 193 << 20)], errno.EADDRNOTAVAIL),
        ([(0, 600 << 20)], errno.EINVAL),
        ([(0, 192 << 20)], errno.ENOMEM),
        ([(n, PAGE) for n in range(17)], errno.EINVAL),
    ],
    ids=["outside", "overlap", "twice", "unaligned", "too long", "half of memory", "no hole", "17 segments"],
)
def test_bad_segments_are_refused_with_the_kernels_number(offsets: list[tuple[int, int]], number: int) -> None:
    machine = machine_with_image()
    segments = [at(machine, pages, memsz) for pages, memsz in offsets]
    with pytest.raises(ModelError) as refused:
        run(kexec_load(machine, machine.profile.reserved.start, segments, crash_flags(machine.profile, False)))
    assert refused.value.number == number
    assert not machine.kexec_locked


def test_segment_with_more_contents_than_memory_is_refused() -> None:
    machine = machine_with_image()
    with pytest.raises(ModelError, match="more contents than memory"):
        run(kexec_load(machine, machine.profile.reserved.start, [at(machine, 0, PAGE, bytes(PAGE + 1))], 1))


def test_entry_point_outside_the_reservation_is_refused() -> None:
    with pytest.raises(ModelError, match="entry point"):
        run(kexec_load((m := machine_with_image()), 0x1000, [at(m, 0)], 1))


def test_refused_load_has_already_lost_the_old_image() -> None:
    machine = machine_with_image()
    with pytest.raises(ModelError):
        run(kexec_load(machine, machine.profile.reserved.start, [at(machine, -1)], 1))
    assert machine.crash_image is None


def test_load_of_too_many_segments_keeps_the_old_image() -> None:
    machine = machine_with_image()
    with pytest.raises(ModelError):
        run(kexec_load(machine, machine.profile.reserved.start, [at(machine, n) for n in range(17)], 1))
    assert machine.crash_image is not None


@pytest.mark.parametrize("call", ["kexec_load", "kexec_file_load"])
def test_load_with_the_kexec_lock_taken_is_busy(call: str) -> None:
    machine = machine_with_image()
    machine.kexec_locked = True
    steps = kexec_load(machine, 0, (), 1) if call == "kexec_load" else kexec_file_load(machine, None)
    with pytest.raises(ModelError) as refused:
        run(steps)
    assert refused.value.number == errno.EBUSY
    assert machine.crash_image is not None


@pytest.mark.parametrize(
    ("release", "flags", "known"),
    [
        ("6.1.0", 0x4, False),
        ("6.6.0", 0x4, True),
        ("6.6.0", 0x8, False),
        ("6.10.0", 0x8, True),
        ("6.12.0", 0x10, False),
    ],
)
def test_kexec_load_flags_depend_on_the_version(release: str, flags: int, known: bool) -> None:
    machine = boot(default_profile(release))
    steps = kexec_load(machine, 0, (), 1 | flags)
    if known:
        run(steps)
    else:
        with pytest.raises(ModelError) as refused:
            run(steps)
        assert refused.value.number == errno.EINVAL


def test_crash_flags_have_hotplug_where_the_kernel_knows_it() -> None:
    assert not crash_flags(default_profile("6.1.0"), True) & KEXEC_UPDATE_ELFCOREHDR
    assert crash_flags(default_profile("6.12.0"), True) == 0x3E0005


@pytest.mark.parametrize("loader", list(LoadCall))
def test_unload_leaves_no_image(loader: LoadCall) -> None:
    machine = machine_with_image(loader=loader)
    run(Kexec(small_capture_kernel(), loader).unload(machine))
    assert machine.crash_image is None


def room(machine: ModelMachine) -> int:
    assert machine.crash_image is not None
    segment = machine.crash_image.find_elfcorehdr(machine.memory)
    assert segment is not None
    return segment.memsz


def test_elfcorehdr_room_of_each_loader() -> None:
    assert room(machine_with_image()) == 16 << 10
    assert room(machine_with_image(hotplug_size=CRASH_HOTPLUG_ELFCOREHDR_SZ)) == 131072
    assert room(machine_with_image(loader=LoadCall.KEXEC_FILE_LOAD)) == 4096
    assert room(machine_with_image("6.12.0", loader=LoadCall.KEXEC_FILE_LOAD)) == 0xE1000
    assert room(machine_with_image("6.12.0", hotplug=True)) == 0xE1000


def test_max_memory_ranges_sizes_the_room() -> None:
    machine = boot(default_profile("6.12.0", max_memory_ranges=16))
    run(kexec_file_load(machine, small_capture_kernel()))
    assert room(machine) == -(-(56 * (2 + 8192 + 16) + 64) // PAGE) * PAGE


@pytest.mark.parametrize("value", ["", "many", "-1", "0", "128K", "1.5"])
def test_bad_hotplug_size_is_refused_with_kexecs_message(value: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_hotplug_size(value)
    assert str(refused.value) == f"Bad option value in --hotplug-size={value}"


def test_good_hotplug_size_is_taken() -> None:
    assert parse_hotplug_size("131072") == parse_hotplug_size("0x20000") == CRASH_HOTPLUG_ELFCOREHDR_SZ
