# SPDX-License-Identifier: MIT
"""In the guest: kill an update at each of its system calls, before and after the call, and look what is loaded then.

Three updates are killed: the take-over (a DIMM is new, and the digest table changes), one that moves the header to a
place with room, and one after that; each also at random moments inside kexec_load.

This process makes each update once.  Whenever it is about to open a file, or to go to a place in one, it forks
children: the first goes on to its first stop at a system call and is killed there, the next to its second, until one
gets to the next such place.  So every stop between two places is met, and none is reached by way of all that come
before.  Where a child got so far that it loaded something, what was loaded before is put back.

Prints how many kills there were and what was loaded after each: the image as before, or as after a whole update.
Exit code 1 unless it always was one of the two.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from types import FrameType

from crash_hotplug.core import purgatory
from crash_hotplug.core.decision import Outcome, Report, Wants
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.image import CrashImage, Kimage
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.plan import NewSegment, UpdatePlan
from crash_hotplug.core.steps import Steps
from crash_hotplug.core.update import update as update_steps
from crash_hotplug.linux.crash_image import identified_kimage, read_identity
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.loading.live_machine import LiveMachine, LiveObservation, run_patiently
from crash_hotplug.linux.loading.system_calls import KEXEC_UPDATE_ELFCOREHDR, kexec_load
from crash_hotplug.linux.running_architecture import running_architecture
from crash_hotplug.linux.sysroot import Sysroot

_TRACEME, _CONT, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 7, 24, 0x4200, 0x420E  # linux/ptrace.h
_OPTIONS = 0x100001  # PTRACE_O_EXITKILL, PTRACE_O_TRACESYSGOOD
_ENTRY = 1  # PTRACE_SYSCALL_INFO_ENTRY
_ARCHITECTURE = running_architecture()
_KEXEC_LOAD = _ARCHITECTURE.kexec_load_number
_EXIT_GROUP = {"x86_64": 231, "aarch64": 94}[_ARCHITECTURE.name]
_LONGEST = 0.008
"""Seconds after kexec_load's begin until which children are killed inside it."""
_TOLD_EVERY = 100
_PAGE = 4096
_HEADER = 64 << 10
"""Bytes at the elfcorehdr's place that are compared."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long] * 4

State = tuple[object, ...]
Start = Callable[[LiveMachine], Steps[object]]
NOTHING: State = ("nothing",)


class KillableMachine(LiveMachine):
    """The live machine, which takes what was put back after a kill for the image that it saw before."""

    def __init__(self) -> None:
        """Take the running machine."""
        super().__init__()
        self.seen = b""
        """The identity that the update saw; every image has it as long as this is set."""

    def observe(self) -> LiveObservation:
        """Begin an observation."""
        return _Pinned(self)


class _Pinned(LiveObservation):
    def __init__(self, machine: KillableMachine) -> None:
        super().__init__(machine.sysroot)
        self._machine = machine

    def identity(self) -> bytes:
        found = super().identity()
        return self._machine.seen or found


def update(machine: LiveMachine) -> Steps[object]:
    """Begin an update that writes whatever is loaded."""
    return update_steps(machine, Wants(always_writes=True))


def move(machine: LiveMachine) -> Steps[object]:
    """Begin to move the header to a place with room."""
    return update_steps(machine, Wants(gives_room=True))


class DigestsOnce:
    """Purgatory's digest, computed once for the same regions: thousands of children would take seconds each.

    Everything is read all the same.  What has more than a megabyte is kernel or initrd, and taken to stay as it is.
    """

    def __init__(self) -> None:
        """Take the place of the real one."""
        self._known: dict[object, bytes] = {}
        self._real, purgatory.digest_of = purgatory.digest_of, self.digest_of

    def digest_of(self, regions: Iterable[tuple[int, int]], read_phys: purgatory.ReadPhys) -> bytes:
        """Return what core/purgatory.py computes."""
        listed = [region for region in regions if region[1]]
        contents = {start: b"".join(purgatory.parts_of(start, length, read_phys)) for start, length in listed}
        key = (tuple(listed), tuple(data for data in contents.values() if len(data) <= 1 << 20))
        if key not in self._known:

            def read_again(phys: int, length: int) -> bytes:
                start = max(start for start in contents if start <= phys)
                return contents[start][phys - start : phys - start + length]

            self._known[key] = self._real(listed, read_again)
        return self._known[key]


def plan_once(start: Start) -> None:
    """Begin an update and give it up at its plan, so that its digests are known."""
    steps = start(LiveMachine())
    for step in steps:
        if isinstance(step.seen, UpdatePlan):
            steps.close()
            return


class Look:
    """Looks at the loaded image, cheaply: only what differs from one update to another is read."""

    def __init__(self) -> None:
        """Find the whole image once; its segments stay where they are."""
        image, machine = loaded_image()
        if image is None or image.kimage is None or image.boot is None or image.boot.phys is None:
            sys.exit("the loaded image is not known well enough")
        self._kcore, self._sysroot = Kcore(Sysroot()), Sysroot()
        self._crashkernel = machine.crashkernel
        self._image = image.kimage
        self._boot = image.kimage.segment_at(image.boot.phys)
        self._unlisted = image.kimage.segments

    def expect(self, plan: UpdatePlan) -> None:
        """Look from now on at what the plan keeps, and at what the loaded image lists: the capture kernel may move."""
        kept = {range_.start for range_ in plan.kept}
        self._unlisted = tuple(s for s in self._unlisted if s.phys in kept)

    def kimage(self) -> Kimage | None:
        """Return ``struct kimage`` of what is loaded."""
        identity = read_identity(self._sysroot, self._kcore)
        return identified_kimage(self._sysroot, identity, self._crashkernel) if identity else None

    def state(self) -> State:
        """Return entry point, boot description, header where that says, purgatory, and each segment's ends.

        What lies between the ends of kernel and initrd is hashed once, after the last kill.
        """
        kimage, read = self.kimage(), self._kcore.read_phys
        if kimage is None or self._boot is None:
            return NOTHING
        boot = _ARCHITECTURE.find_boot_description(self._image, read)
        at = None if boot is None else boot.elfcorehdr_phys
        header = b"" if at is None else read(at, _PAGE)
        if at is not None and header[:4] == b"\x7fELF":
            size = 64 + 56 * int.from_bytes(header[56:58], "little")
            header = read(at, min(size, _HEADER))
        purgatory = kimage.segment_at(kimage.entry_phys)
        code = b"" if purgatory is None else read(purgatory.phys, purgatory.memsz)
        # By place only: the same segment is passed with another bufsz when it is put back
        places = {(s.phys, s.memsz) for s in (*self._unlisted, *kimage.segments)}
        ends = tuple(
            read(place, _PAGE)
            for phys, memsz in sorted(places)
            for place in (phys, phys + memsz - _PAGE)
            if at is None or memsz > _HEADER
        )
        return (kimage.entry_phys, read(self._boot.phys, self._boot.memsz), header, code, ends)


class Killing:
    """One update, and the children of it that are killed."""

    def __init__(self, name: str, start: Start, look: Look) -> None:
        """Take the update; nothing happens yet."""
        self.name, self.look, self.machine = name, look, KillableMachine()
        self._start = start
        self.old: State = look.state()
        self.new: State | None = None
        """What is loaded after the update; the first child that got so far tells."""
        self.at_stops, self.inside = Counter[str](), Counter[str]()
        self._found_inside: list[State] = []
        """What was loaded after each kill inside kexec_load; judged when it is known what a whole update loads."""
        self._plan: UpdatePlan | None = None
        self._entry_phys = 0
        self._before: list[NewSegment] = []
        self._flags = 0
        self._is_child = False

    @property
    def _loaded(self) -> bool:
        """Whether this process itself, not a child, has made its kexec_load."""
        return self.machine.kexec_seconds > 0

    def make(self, inside: int) -> None:
        """Make the update, killing children on the way.

        :param inside: how many are killed inside kexec_load
        """
        try:
            sys.setprofile(self._before_each_place)
            steps = self._start(self.machine)
            while True:
                step = next(steps)
                if isinstance(step.seen, UpdatePlan):
                    self._at_plan(steps, step.seen, inside)
        except StopIteration as stop:
            sys.setprofile(None)
            failed = isinstance(stop.value, Report) and stop.value.outcome is not Outcome.UPDATED
            if self._is_child:
                if failed:
                    say(f"{self.name}: {stop.value.outcome.value}: {stop.value.sentence}")
                os._exit(int(failed))
            if failed:
                sys.exit(f"{self.name}: {stop.value.sentence}")
        except CrashHotplugError as error:
            os.write(2, f"{self.name}: {error}\n".encode())
            os._exit(1)
        if self.look.state() != self.new:
            sys.exit(f"{self.name}: what a killed update loaded is not what a whole one loads")
        self.inside.update(verdict(self.old, self.new, now, None) for now in self._found_inside)

    def _at_plan(self, steps: Steps[object], plan: UpdatePlan, inside: int) -> None:
        """Remember how to undo the plan; kill what carries it out."""
        sys.setprofile(None)
        if self._is_child:
            os._exit(0)
        self._plan = plan
        self.look.expect(plan)
        self.old = self.look.state()
        self._entry_phys, self._before, self._flags = what_was_there(plan)
        with closing(LiveMachine().observe()) as observation:
            self.machine.seen = observation.identity()
        self._kill_inside(steps, inside)
        self._kill_children()
        sys.setprofile(self._before_each_place)

    def _before_each_place(self, _frame: FrameType, event: str, function: object) -> None:
        # Not before each read: a child shares the position in its parent's open file, which only seek makes good again.
        # Nor between two reads of what a child may have loaded and this process put back elsewhere: after the plan.
        may_seek = self._plan is None or self._loaded
        if event == "c_call" and (function is os.open or (may_seek and getattr(function, "__name__", "") == "seek")):
            if self._is_child:
                os._exit(0)
            self._kill_children()

    def _kill_children(self) -> None:
        """Kill children, each one stop later than the one before, until one gets to the next place."""
        stop = 1
        while True:
            calls = self._killed_at(stop)
            if calls is None or self._is_child:
                return
            self.at_stops[self._verdict(calls)] += 1
            if sum(self.at_stops.values()) % _TOLD_EVERY == 0:
                say(f"{self.name}: {shown(self.at_stops)} so far")
            self._put_back(calls)
            stop += 1

    def _killed_at(self, stop: int) -> int | None:
        """Fork a child and kill it at its stop of this number.

        :return: how many kexec_load calls it had come back from; None where it ended before; in the child 0
        """
        child = self._fork()
        if child == 0:
            return 0
        calls, inside = 0, False
        for _ in range(stop):
            _libc.ptrace(_SYSCALL, child, 0, 0)
            if os.WIFEXITED(os.waitpid(child, 0)[1]):
                self._put_back(calls)  # it got past its kexec_load before the next place
                return None
            entered = syscall_entered(child)
            if entered == _EXIT_GROUP:
                _libc.ptrace(_CONT, child, 0, 0)
                if os.WEXITSTATUS(os.waitpid(child, 0)[1]):
                    sys.exit(f"{self.name}: an update that was not killed failed")
                self._put_back(calls)  # it got past its kexec_load before the next place
                return None
            calls += inside and entered is None
            inside = entered == _KEXEC_LOAD
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return calls

    def _fork(self) -> int:
        """Fork a child that waits to be traced and then goes on here; return 0 in it."""
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            _libc.ptrace(_SETOPTIONS, child, 0, _OPTIONS)
            return child
        self._is_child = True
        _libc.ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        return 0

    def _kill_inside(self, steps: Steps[object], number: int) -> None:
        """Kill children at random moments after they began kexec_load."""
        for _ in range(number):
            child = self._fork()
            if child == 0:
                for _step in steps:
                    pass
                os._exit(0)
            while syscall_entered(child) != _KEXEC_LOAD:
                _libc.ptrace(_SYSCALL, child, 0, 0)
                os.waitpid(child, 0)
            _libc.ptrace(_CONT, child, 0, 0)
            end = time.perf_counter() + random.uniform(0, _LONGEST)
            while time.perf_counter() < end:
                pass
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            self._found_inside.append(self.look.state())
            self._put_back(1)

    def _verdict(self, calls: int) -> str:
        """Say what is loaded after a kill at a stop."""
        if self._loaded:
            calls = 1
        now = self.look.state()
        if calls and self.new is None and now != NOTHING:
            self.new = now
        return verdict(self.old, self.new, now, calls)

    def _put_back(self, calls: int) -> None:
        """Load again what was loaded before, and let the update take it for what it saw."""
        if calls and self._plan is not None and not self._loaded:
            kexec_load(self._entry_phys, self._before, self._flags)


def verdict(old: State, new: State | None, now: State, calls: int | None) -> str:
    """Say what is loaded: ``as before`` or ``as after``, or what is wrong.

    :param calls: how many kexec_load calls there were; None where a child was killed inside one
    """
    if now == NOTHING:
        return "NOTHING"
    if calls != 0 and now == new:
        return "as after"
    return "as before" if not calls and now == old else "WRONG"


def what_was_there(plan: UpdatePlan) -> tuple[int, list[NewSegment], int]:
    """Return what undoes a plan: entry point, segments that it does not keep, as they are now, and flags.

    Where the plan moves the kernel it is every segment: beside the kernel in its old place the control pages of that
    load would overwrite what is not listed.
    """
    image, _machine = loaded_image()
    if image is None or image.kimage is None:
        sys.exit("no image is loaded")
    kept = {segment.start for segment in plan.kept}
    if {s.phys for s in image.kimage.segments} - kept - {s.phys for s in plan.segments} - {image.elfcorehdr_phys}:
        kept = set()
    with Kcore(Sysroot()) as kcore:
        segments = [
            NewSegment(s.phys, kcore.read_phys(s.phys, s.memsz), s.memsz, "as it was")
            for s in image.kimage.segments
            if s.phys not in kept
        ]
    return image.kimage.entry_phys, segments, KEXEC_UPDATE_ELFCOREHDR if image.updated_by_kernel else 0


def loaded_image() -> tuple[CrashImage | None, Machine]:
    """Return the loaded image, or None, and the machine."""
    with closing(LiveMachine().observe()) as observation:
        image = observation.image() if observation.identity() else None
        return image, observation.machine()


def syscall_entered(child: int) -> int | None:
    """Return the number of the system call that a stopped child is about to make; None where it comes from one."""
    info = ctypes.create_string_buffer(88)  # struct ptrace_syscall_info
    _libc.ptrace(_GET_SYSCALL_INFO, child, len(info), ctypes.addressof(info))
    return int.from_bytes(info.raw[24:32], "little") if info.raw[0] == _ENTRY else None


def say(what: str) -> None:
    """Print a line, on the console too: this takes minutes."""
    print(what, flush=True)
    with open("/dev/console", "w") as console:
        console.write(f"crash-hotplug-lab: {what}\n")


def shown(found: Counter[str]) -> str:
    """Return the counts for people."""
    return ", ".join(f"{count} {what}" for what, count in sorted(found.items())) or "none"


UPDATES: dict[str, Start] = {"take-over": update, "move": move, "update": update}
"""What can be killed, in the order in which they have to be made."""


def main(inside: int, chosen: list[str]) -> None:
    """Kill them.

    :param inside: kills at random moments inside each kexec_load
    :param chosen: names of those that are killed; the others are made, as far as they come before
    """
    outcomes: Counter[str] = Counter()
    DigestsOnce()
    gc.freeze()
    for name, start in UPDATES.items():
        if name not in chosen:
            for _step in start(LiveMachine()):
                pass
            continue
        began = time.monotonic()
        plan_once(start)
        killing = Killing(name, start, Look())
        killing.make(inside)
        say(
            f"{name}: killed at {sum(killing.at_stops.values())} stops: {shown(killing.at_stops)}; inside kexec_load "
            f"{sum(killing.inside.values())} times: {shown(killing.inside)} ({time.monotonic() - began:.0f} s)"
        )
        outcomes.update(killing.at_stops + killing.inside)
    report = run_patiently(update_steps(LiveMachine(), Wants(verify_full=True)))
    say(f"the whole image verified: {report.outcome.value}, {report.sentence}")
    say(f"{sum(outcomes.values())} kills: {shown(outcomes)}")
    if set(outcomes) - {"as before", "as after"} or report.outcome is not Outcome.UNCHANGED:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:] or list(UPDATES))
