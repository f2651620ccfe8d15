# SPDX-License-Identifier: MIT
"""Measures updates in place and full reloads in turns: wall time, CPU time, and the time without a crash image.

Each update and each reload is a process of its own, timed in the same way (kexec_call_timer.py).
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from crash_hotplug.core.decision import Outcome, Wants
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.update import update
from crash_hotplug.linux.kexec_state import read_image_loaded
from crash_hotplug.linux.loading.live_machine import LiveMachine, run_patiently
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug_lab.bench.kexec_call_timer import Timing, time_kexec_calls

IN_PLACE = "update in place"
IN_PLACE_COMMAND = "update in place, a new process each time"
TAKE_OVER = "first update after a load (take-over)"
_SAID_LIMIT = 1 << 16


@dataclass
class Measured:
    """The update or reload that is measured, and every run of it."""

    name: str
    timings: list[Timing] = field(default_factory=list)


def rewrite_header(machine: LiveMachine) -> None:
    """Run a whole update, from lock to check, even if the header is accurate.

    :raise CrashHotplugError: the update failed
    """
    report = run_patiently(update(machine, Wants(always_writes=True)))
    if report.outcome is not Outcome.UPDATED:
        raise CrashHotplugError(f"the update in place was not made: {report.sentence}")


def bench(
    commands: Sequence[Sequence[str]], rounds: int, say: Callable[[str], None] = lambda _what: None
) -> list[Measured]:
    """Measure an update in place and each command once in every round.

    :param commands: each of them reloads the crash image
    :param say: called with the number of each round
    :raise CrashHotplugError: an update or a command failed; the sentence says whether an image is loaded
    """
    against = [(Measured(" ".join(command)), command) for command in commands]
    take_over, in_place, command_line = Measured(TAKE_OVER), Measured(IN_PLACE), Measured(IN_PLACE_COMMAND)
    for number in range(1, rounds + 1):
        say(f"round {number} of {rounds}")
        for measured, command in against:
            measured.timings.append(_command(measured.name, command))
        if against or number == 1:  # the digest of an image just loaded covers the elfcorehdr
            _in_place(take_over, _take_over)
        _in_place(in_place, rewrite_header)
        own = [sys.executable, "-m", "crash_hotplug_lab.bench.rewrite_header"]
        command_line.timings.append(_command(IN_PLACE_COMMAND, own))
    return [in_place, command_line, take_over, *(measured for measured, _command in against)]


def _take_over(machine: LiveMachine) -> None:
    report = run_patiently(update(machine))
    if report.outcome is Outcome.UNCHANGED:
        rewrite_header(machine)
    elif report.outcome is not Outcome.UPDATED:
        raise CrashHotplugError(report.sentence)


def _in_place(measured: Measured, change: Callable[[LiveMachine], None]) -> None:
    """Run an update in a child process, which sends the reason of a failure through a pipe."""
    told, tell = os.pipe()

    def work() -> int:
        try:
            change(LiveMachine())
        except CrashHotplugError as error:
            os.write(tell, str(error).encode())
            return 1
        return 0

    try:
        timing = time_kexec_calls(work)
    finally:
        os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        why = pipe.read().decode()
    if timing.exit_code:
        raise _failure(measured.name, why or f"exit code {timing.exit_code}")
    measured.timings.append(timing)


def _command(name: str, command: Sequence[str]) -> Timing:
    """Time a program that loads a crash image."""
    with tempfile.TemporaryFile() as said:

        def work() -> int:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            try:
                os.execvp(command[0], list(command))
            except OSError as error:
                os.write(2, f"{command[0]}: {error.strerror}\n".encode())
                return 127

        timing = time_kexec_calls(work)
        if timing.exit_code:
            said.seek(0)
            lines = said.read(_SAID_LIMIT).decode(errors="replace").strip().splitlines()
            raise _failure(name, lines[-1] if lines else f"exit code {timing.exit_code}")
    if timing.calls == 0:
        raise _failure(name, "it made no system call that loads a crash image, nor did its children")
    return timing


def _failure(name: str, why: str) -> CrashHotplugError:
    loaded = read_image_loaded(Sysroot())
    state = "a crash image is loaded" if loaded else "NO CRASH IMAGE IS LOADED NOW: load one"
    return CrashHotplugError(f"{name}: {why}; {state}")
