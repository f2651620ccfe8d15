# SPDX-License-Identifier: MIT
"""The record of a guest's kexec calls, and the times that come from it."""

from __future__ import annotations

import pytest

from crash_hotplug_lab.distro import kexec_calls
from crash_hotplug_lab.distro.kexec_calls import KexecCall, parse_calls, seconds_stale, seconds_without_image

TRACE = """\
# tracer: nop
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
           kexec-1203    [001] .....   100.500000: sys_kexec_load(entry: 0, nr_segments: 0, segments: 0, flags: 3e0001)
           kexec-1203    [001] .....   100.600000: sys_kexec_load -> 0x0
           kexec-1204    [000] .....   102.000000: sys_kexec_file_load(kernel_fd: 3, initrd_fd: 4, cmdline_len: 1f, cmdline_ptr: 55d0, flags: 2)
 crash-hotplug-300     [001] .....   102.100000: sys_kexec_load(entry: 2b0, nr_segments: 3, segments: 7ffc, flags: 3e0001)
 crash-hotplug-300     [001] .....   102.200000: sys_kexec_load -> 0xfffffffffffffff0
           kexec-1204    [000] .....   103.500000: sys_kexec_file_load -> 0x0
           kexec-1300    [000] .....   104.000000: sys_kexec_file_load(kernel_fd: ffffffff, initrd_fd: ffffffff, cmdline_len: 0, cmdline_ptr: 0, flags: 3)
           kexec-1300    [000] .....   104.100000: sys_kexec_file_load -> 0x0
           kexec-1400    [000] .....   105.000000: sys_kexec_load(entry: 0, nr_segments: 0, segments: 0, flags: 1)
"""  # noqa: E501


def test_calls_are_parsed_from_the_trace() -> None:
    assert parse_calls(TRACE) == [
        KexecCall("kexec", 100.5, 100.6, False, True),
        KexecCall("crash-hotplug", 102.1, 102.2, True, False),
        KexecCall("kexec", 102.0, 103.5, True, True),
        KexecCall("kexec", 104.0, 104.1, False, True),
    ]


def test_reloads_are_those_of_kexec() -> None:
    assert kexec_calls.reloads(parse_calls(TRACE)) == (2, 1)


def call(start: float, end: float, loads: bool = True, succeeded: bool = True) -> KexecCall:
    return KexecCall("kexec", start, end, loads, succeeded)


@pytest.mark.parametrize(
    ("calls", "seconds"),
    [
        ([], 0.0),
        ([call(1.0, 1.5)], 0.5),
        ([call(1.0, 1.25, loads=False), call(3.0, 4.0)], 3.0),
        ([call(1.0, 1.25, loads=False, succeeded=False), call(3.0, 4.0)], 1.0),
        ([call(1.0, 1.25, succeeded=False), call(3.0, 4.0)], 3.0),
        ([call(1.0, 2.0), call(3.0, 3.25, loads=False)], None),
    ],
    ids=["none", "replaced", "unloaded", "unload failed", "load failed", "unloaded at the end"],
)
def test_seconds_without_image(calls: list[KexecCall], seconds: float | None) -> None:
    assert seconds_without_image(calls) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("events", "answers", "seconds"),
    [
        ([], [], 0.0),
        ([1.0], [], None),
        ([1.0], [(0.5, 2.0)], None),
        ([1.0], [(1.5, 2.0)], 1.0),
        ([1.0, 1.2], [(1.5, 2.0)], 1.0),
        ([1.0, 1.6], [(1.5, 2.0), (2.5, 3.0)], 2.0),
        ([1.0, 5.0], [(1.5, 2.0), (5.5, 6.0)], 2.0),
    ],
    ids=["no event", "never", "begun before", "one", "two at once", "one while loading", "twice"],
)
def test_seconds_stale(events: list[float], answers: list[tuple[float, float]], seconds: float | None) -> None:
    assert seconds_stale(events, answers) == (None if seconds is None else pytest.approx(seconds))
