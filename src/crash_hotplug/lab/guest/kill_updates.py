"""In the guest: kill an update at each of its system calls, before and after the call, and look what is loaded then.

Three updates are killed: the take-over (a DIMM is new, and the digest table changes), one that moves the header to a
place with room, and one after that; each also at random moments inside kexec_load.  An update is a generator
(core/handler.py): this process takes it to one of its named steps, and forks children from there, each of which is
killed one stop later than the one before.  So every stop is reached without doing again what comes before the step.
Where a child got so far that it loaded something, what was loaded before is put back.

Prints how many kills there were and what was loaded after each: the image as before, or as after a whole update.
Exit code 1 unless it always was one of the two.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.handler import Outcome, Steps, handle_event
from crash_hotplug.core.handler_policies import InPlace
from crash_hotplug.core.move_header import MAX_MEMORY_RANGES, room_for
from crash_hotplug.core.update_plan import NewSegment, UpdatePlan
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_load import load_crash_image
from crash_hotplug.linux.live_machine import LiveMachine
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug.linux.update_once import LOOK, update_in_place

_TRACEME, _CONT, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 7, 24, 0x4200, 0x420E  # linux/ptrace.h
_OPTIONS = 0x100001  # PTRACE_O_EXITKILL, PTRACE_O_TRACESYSGOOD
_ENTRY, _KEXEC_LOAD = 1, 246
_LONGEST = 0.008
"""Seconds after kexec_load's begin until which children are killed inside it."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long] * 4

State = tuple[object, ...]
Start = Callable[[LiveMachine], Steps[object]]


def update(machine: LiveMachine) -> Steps[object]:
    """Begin an update that writes whatever is loaded."""
    return handle_event(machine, InPlace(waits_for_lock=False, always_writes=True), LOOK)


def move(machine: LiveMachine) -> Steps[object]:
    """Begin to move the header to a place with room."""
    image = machine.loaded_image()
    if image is None:
        sys.exit("no image is loaded")
    return machine.make_room(image, room_for(len(machine.read_machine().cpus), MAX_MEMORY_RANGES))


def what_is_loaded() -> State:
    """Return all of the loaded image that an update may change: header, purgatory, zero page, where segments lie."""
    image = LiveMachine().loaded_image()
    if image is None or image.kimage is None:
        return ("nothing",)
    kimage = image.kimage
    purgatory = kimage.segment_at(kimage.entry_phys)
    with Kcore(Sysroot()) as kcore:
        code = b"" if purgatory is None else kcore.read_phys(purgatory.phys, purgatory.memsz)
    places = tuple(sorted(segment.phys for segment in kimage.segments))
    return (image.elfcorehdr, kimage.entry_phys, places, code, image.boot_params, image.cmdline)


class Attempt:
    """An update taken to one of its steps, from which children go on."""

    def __init__(self, start: Start, steps: int) -> None:
        """Take so many steps of the update that *start* begins."""
        self.machine = LiveMachine()
        self._steps = start(self.machine)
        self.name = "begun"
        self.plan: UpdatePlan | None = None
        for _ in range(steps):
            step = next(self._steps)
            self.name = step.name
            self.plan = step.seen if isinstance(step.seen, UpdatePlan) else self.plan
        self._before = what_was_there(self.plan) if self.plan is not None else []

    def fork(self) -> int:
        """Fork a child that waits to be traced, takes one step more (after the plan: all) and ends."""
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            _libc.ptrace(_SETOPTIONS, child, 0, _OPTIONS)
            return child
        _libc.ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            next(self._steps)
            while self.plan is not None:
                next(self._steps)
        except StopIteration as stop:
            os._exit(0 if stop.value is None or stop.value.outcome is Outcome.UPDATED else 1)
        except CrashHotplugError as error:
            os.write(2, f"{error}\n".encode())
            os._exit(1)
        os._exit(0)

    def put_back(self) -> None:
        """Load again what was loaded before, and let the update take it for what it saw."""
        if self.plan is None:
            return
        load_crash_image(self.plan.entry_phys, self._before, self.machine._flags())
        self.machine._identity = self.machine._read_identity()

    def close(self) -> None:
        """Give the update up."""
        self._steps.close()


def what_was_there(plan: UpdatePlan) -> list[NewSegment]:
    """Return the segments that undo a plan: those that it lists, as they are now, and the elfcorehdr where it is."""
    image = LiveMachine().loaded_image()
    if image is None or image.kimage is None:
        sys.exit("no image is loaded")
    listed = {segment.phys for segment in plan.segments} | {image.elfcorehdr_phys}
    with Kcore(Sysroot()) as kcore:
        return [
            NewSegment(s.phys, kcore.read_phys(s.phys, s.memsz), s.memsz, "as it was")
            for s in image.kimage.segments
            if s.phys in listed
        ]


def syscall_entered(child: int) -> int | None:
    """Return the number of the system call that a stopped child is about to make; None where it comes from one."""
    info = ctypes.create_string_buffer(88)  # struct ptrace_syscall_info
    _libc.ptrace(_GET_SYSCALL_INFO, child, len(info), ctypes.addressof(info))
    return int.from_bytes(info.raw[24:32], "little") if info.raw[0] == _ENTRY else None


def kill(child: int) -> None:
    """Kill a child and wait until it is gone."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def killed_at(attempt: Attempt, stop: int) -> int | None:
    """Let a child go on and kill it at its stop of this number.

    :return: how many kexec_load calls it had come back from; None where it ended before
    """
    child, calls, inside = attempt.fork(), 0, False
    for _ in range(stop):
        _libc.ptrace(_SYSCALL, child, 0, 0)
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                sys.exit(f"an update that was not killed failed ({attempt.name})")
            return None
        entered = syscall_entered(child)
        calls += inside and entered is None
        inside = entered == _KEXEC_LOAD or (inside and entered is not None)
    kill(child)
    return calls


def killed_inside(attempt: Attempt, seconds: float) -> bool:
    """Let a child go on to its kexec_load and kill it so many seconds after; False where it made none."""
    child = attempt.fork()
    while True:
        _libc.ptrace(_SYSCALL, child, 0, 0)
        if os.WIFEXITED(os.waitpid(child, 0)[1]):
            return False
        if syscall_entered(child) == _KEXEC_LOAD:
            break
    _libc.ptrace(_CONT, child, 0, 0)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    kill(child)
    return True


def kill_at_every_stop(name: str, start: Start, inside: int, outcomes: Counter[str]) -> None:
    """Kill an update at every stop between its steps, and note what is loaded after each."""
    old = what_is_loaded()
    steps = 0
    while True:
        attempt = Attempt(start, steps)
        stop, found = 1, Counter[str]()
        while True:
            calls = killed_at(attempt, stop)
            if calls is None:
                break
            found[verdict(old, what_is_loaded(), calls)] += 1
            if calls and attempt.plan is not None:
                attempt.put_back()
            stop += 1
        say(f"{name}, from '{attempt.name}': killed at {stop - 1} stops: {shown(found)}")
        outcomes.update(found)
        steps += 1
        if attempt.plan is not None:
            attempt.put_back()
            kill_inside(name, attempt, old, inside, outcomes)
            attempt.close()
            return
        attempt.close()


def kill_inside(name: str, attempt: Attempt, old: State, inside: int, outcomes: Counter[str]) -> None:
    """Kill at random moments inside kexec_load; the call is not interrupted, or nothing was loaded by it."""
    found: Counter[str] = Counter()
    for _ in range(inside):
        if killed_inside(attempt, random.uniform(0, _LONGEST)):
            found[verdict(old, what_is_loaded(), None)] += 1
            attempt.put_back()
    say(f"{name}, inside kexec_load: killed {sum(found.values())} times: {shown(found)}")
    outcomes.update(found)


def complete(name: str, start: Start) -> None:
    """Make an update that nobody kills; it has to come to what was loaded after those that were killed late."""
    old = what_is_loaded()
    for _ in start(LiveMachine()):
        pass
    if old in _new and what_is_loaded() != _new[old]:
        sys.exit(f"{name}: what a killed update loaded is not what a whole one loads")
    say(f"{name}, not killed: loads the same")


_new: dict[State, State] = {}
"""By the state before an update: the first that was seen after its kexec_load."""


def verdict(old: State, now: State, calls: int | None) -> str:
    """Say what is loaded: ``as before``, ``as after``, or neither, which is wrong.

    :param calls: how many kexec_load calls there were; None where that is not known
    """
    if now == old and not calls:
        return "as before"
    if calls is None and now != old and old in _new:
        return "as after" if now == _new[old] else "WRONG"
    if calls and now[0] != b"" and now != ("nothing",):
        return "as after" if now == _new.setdefault(old, now) else "WRONG"
    return "NOTHING" if now == ("nothing",) else "WRONG"


def say(what: str) -> None:
    """Print a line, on the console too: this takes minutes."""
    print(what, flush=True)
    with open("/dev/console", "w") as console:
        console.write(f"crash-hotplug-lab: {what}\n")


def shown(found: Counter[str]) -> str:
    """Return the counts for people."""
    return ", ".join(f"{count} {what}" for what, count in sorted(found.items())) or "none"


def main(inside: int) -> None:
    """Kill them all, then complete the last.

    :param inside: kills at random moments inside each kexec_load
    """
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    kill_at_every_stop("take-over", update, inside, outcomes)
    complete("take-over", update)
    kill_at_every_stop("move", move, inside, outcomes)
    complete("move", move)
    kill_at_every_stop("update", update, inside, outcomes)
    report = update_in_place(LiveMachine(verify_full=True))
    say(f"the whole image verified: {report.outcome.value}, {report.sentence}")
    say(f"{sum(outcomes.values())} kills in {time.monotonic() - began:.0f} s: {shown(outcomes)}")
    if set(outcomes) - {"as before", "as after"} or report.outcome.value not in ("unchanged", "updated"):
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
