# SPDX-License-Identifier: MIT
"""Timing of crash-kexec system calls.  The kernel refuses every call made here before it changes anything."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

import pytest

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug_lab.bench.kexec_call_timer import Timing, time_kexec_calls

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of x86_64's system calls")

_libc = ctypes.CDLL(None)
LOAD, FILE_LOAD, GETPPID = 246, 320, 110
_REFUSED = 0x7FFF0000
"""An unknown architecture for kexec_load, unknown flags for kexec_file_load: EINVAL."""


def call(number: int, *arguments: int) -> None:
    _libc.syscall(ctypes.c_long(number), *(ctypes.c_ulong(argument) for argument in arguments))


def load(flags: int) -> None:
    call(LOAD, 0, 1000, 0, flags | _REFUSED)


def timed(*calls: tuple[int, ...], code: int = 0) -> Timing:
    def work() -> int:
        for number, *arguments in calls:
            call(number, *arguments)
        return code

    try:
        return time_kexec_calls(work)
    except CrashHotplugError as error:
        pytest.skip(str(error))


def test_timer_measures_kexec_load_of_a_crash_image() -> None:
    timing = timed((LOAD, 0, 1000, 0, 1 | _REFUSED))
    assert (timing.calls, timing.exit_code) == (1, 0)
    assert 0 < timing.without_image < timing.wall


def test_timer_measures_kexec_file_load_of_a_crash_image() -> None:
    assert timed((FILE_LOAD, 0, 0, 0, 0, 2 | _REFUSED)).calls == 1


@pytest.mark.parametrize("number", [(LOAD, 0, 1000, 0, _REFUSED), (FILE_LOAD, 0, 0, 0, 2, _REFUSED), (GETPPID,)])
def test_timer_ignores_calls_that_load_no_crash_image(number: tuple[int, ...]) -> None:
    timing = timed(number)
    assert (timing.calls, timing.without_image) == (0, 0)


def test_timer_counts_calls_and_cpu_time_of_children() -> None:
    def work() -> int:
        child = os.fork()
        if child == 0:
            load(1)
            sum(range(2_000_000))
            os._exit(0)
        os.waitpid(child, 0)
        return 3

    timed()
    timing = time_kexec_calls(work)
    assert (timing.calls, timing.exit_code) == (1, 3)
    assert timing.cpu > time_kexec_calls(lambda: 0).cpu


def test_timer_follows_execve() -> None:
    timed()
    timing = time_kexec_calls(lambda: os.execv(sys.executable, [sys.executable, "-c", "raise SystemExit(5)"]))
    assert (timing.without_image, timing.calls, timing.exit_code) == (0, 0, 5)


def test_timer_reports_the_signal_of_a_killed_process() -> None:
    timed()

    def work() -> int:
        os.kill(os.getpid(), 9)
        return 0

    assert time_kexec_calls(work).exit_code == -9
