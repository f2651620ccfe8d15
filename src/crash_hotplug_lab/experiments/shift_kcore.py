# SPDX-License-Identifier: MIT
"""In the guest: updates and full verifications while the contents of /proc/kcore move by a page, again and again.

``shift_kcore.py room`` prints how many program headers fit before the contents move.  ``shift_kcore.py N`` makes N
updates in place, each with its kexec_load and followed by a full verification.

The kernel computes the place of the contents from the number of ranges at each read, and renews the list of ranges at
the first open after a memory block came or went (fs/proc/kcore.c).  So three things happen at the same time as the
updates:

the host      plugs and unplugs the DIMM whose range crosses the page
``blocks``    takes a block of another DIMM offline and online, after which the next open renews the list
``opener``    opens /proc/kcore all the time, as a debugger or ``status`` would, and counts the moves

The last line of the output begins with ``done``.  Exit code 1 if an update tore an image, a digest did not fit, or the
contents never moved.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable

from crash_hotplug.core import purgatory
from crash_hotplug.core.arch.architecture import PAGE, whole_pages
from crash_hotplug.core.decision import Outcome, Report, Wants
from crash_hotplug.core.elf import PT_NOTE
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.update import update
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.loading.live_machine import LiveMachine, Patience
from crash_hotplug.linux.sysroot import Sysroot

_HEADER, _PROGRAM_HEADER = 64, 56
_LOOKED_AGAIN = "update: image changed, looks again"
_VERIFICATIONS = 20
"""How often a verification that the moving kcore prevented is made."""
_MOVES = "/tmp/kcore-moves"
_STATE = "/sys/devices/system/memory/memory{}/state"


def headers_left(kcore: Kcore) -> int:
    """Return how many program headers more fit before the contents of /proc/kcore move by a page.

    get_kcore_size() of fs/proc/kcore.c: they begin at the page behind ELF header, program headers and notes.
    """
    notes = sum(p.p_filesz for p in kcore.program_headers if p.p_type == PT_NOTE)
    end = _HEADER + _PROGRAM_HEADER * len(kcore.program_headers) + notes
    return (whole_pages(end) - end) // _PROGRAM_HEADER


def contents_offset(kcore: Kcore) -> int:
    """Return the file offset of the kernel text: it changes only where all contents move."""
    return next(p.p_offset for p in kcore.program_headers if kcore.is_kernel_text(p))


def open_all_the_time() -> None:
    """Open /proc/kcore again and again; record each open at which the contents have moved since the one before."""
    last = None
    with open(_MOVES, "w", buffering=1) as file:
        while True:
            try:
                with Kcore(Sysroot()) as kcore:
                    now = contents_offset(kcore)
            except CrashHotplugError:  # the headers changed while they were read
                continue
            if last is not None and now != last:
                file.write(f"{(now - last) // PAGE}\n")
            last = now
            time.sleep(0.05)


def move_blocks(number: int) -> None:
    """Take a memory block offline and online again and again."""
    while True:
        for state in ("offline", "online_movable"):
            try:
                with open(_STATE.format(number), "w") as file:
                    file.write(state)
            except OSError:  # busy: the next attempt will do
                pass
            time.sleep(0.2)


class DigestsByContent:
    """Purgatory's digest, computed once for the same bytes: an emulated processor takes 4 s for it.

    Every byte is read each time and compared with the one that was hashed.
    """

    def __init__(self) -> None:
        """Take the place of the real one."""
        self._known: list[tuple[list[tuple[int, int]], list[bytes], bytes]] = []
        self._real, purgatory.digest_of = purgatory.digest_of, self.digest_of

    def digest_of(self, regions: Iterable[tuple[int, int]], read_phys: purgatory.ReadPhys) -> bytes:
        """Return what core/purgatory.py computes."""
        listed = [region for region in regions if region[1]]
        contents = [b"".join(purgatory.parts_of(start, length, read_phys)) for start, length in listed]
        for known, bytes_then, digest in self._known:
            if known == listed and bytes_then == contents:
                return digest
        places = {start: data for (start, _length), data in zip(listed, contents)}

        def read_again(phys: int, length: int) -> bytes:
            start = max(start for start in places if start <= phys)
            return places[start][phys - start : phys - start + length]

        digest = self._real(listed, read_again)
        self._known = [*self._known[-1:], (listed, contents, digest)]
        return digest


class Counted:
    """Updates that were made, by their results."""

    def __init__(self) -> None:
        """Nothing was made yet."""
        self.outcomes = Counter[str]()
        self.reasons = Counter[str]()
        self.looked_again = 0
        """How often an update found that its observation could not be relied on."""

    def make(self, wants: Wants) -> Report:
        """Make one update."""
        steps, patience = update(LiveMachine(), wants), Patience(60)
        try:
            while True:
                step = next(steps)
                self.looked_again += step.name == _LOOKED_AGAIN
                if step.waits and not patience():
                    sys.exit(f"waited 60 s: {step.name}")
        except StopIteration as stop:
            report: Report = stop.value
        self.outcomes[report.outcome.value] += 1
        if report.outcome not in (Outcome.UPDATED, Outcome.UNCHANGED):
            self.reasons[report.sentence] += 1
        return report

    def __str__(self) -> str:
        """Return the results and how often they occurred."""
        outcomes = ", ".join(f"{number} {outcome}" for outcome, number in sorted(self.outcomes.items()))
        reasons = "".join(f"; {number} times: {reason}" for reason, number in self.reasons.items())
        return f"{outcomes}; {self.looked_again} times looked again{reasons}"


def fork(function: object, *arguments: int) -> int:
    """Run a function in a child until it is killed; return the child's process id."""
    child = os.fork()
    if child:
        return child
    try:
        function(*arguments)  # type: ignore[operator]
    finally:
        os._exit(1)


def main(number: int, block: int) -> bool:
    """Make the updates; return whether every image was whole.

    :param block: number of the memory block that comes and goes
    """
    DigestsByContent()
    updates, verifications = Counted(), Counted()
    # While nothing moves: an update that hashes for seconds would look again until it gives up.
    if Counted().make(Wants(verify_full=True)).outcome not in (Outcome.UPDATED, Outcome.UNCHANGED):
        sys.exit("done: the take-over failed")
    Counted().make(Wants(verify_full=True))
    print("ready", flush=True)
    children = [fork(open_all_the_time), fork(move_blocks, block)]
    broken = 0
    began = time.monotonic()
    for made in range(number):
        torn = updates.make(Wants(always_writes=True)).outcome is Outcome.TORN
        # A digest that does not fit in one look may have been read at a wrong place; a broken image never fits.
        for _attempt in range(_VERIFICATIONS):
            report = verifications.make(Wants(verify_full=True))
            if report.outcome in (Outcome.UPDATED, Outcome.UNCHANGED):
                break
        else:
            print(f"update {made + 1}: {report.outcome.value}: {report.sentence}", flush=True)
            broken += 1
            break
        broken += torn
        print(
            f"{made + 1} updates after {time.monotonic() - began:.0f} s: {updates}; verified: {verifications}",
            flush=True,
        )
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    try:
        with open(_STATE.format(block), "w") as file:
            file.write("online_movable")
    except OSError:  # it is online
        pass
    with open(_MOVES) as file:
        moves = [int(line) for line in file]
    print(f"updates: {updates}")
    print(f"full verifications: {verifications}")
    print(f"done: the contents of /proc/kcore moved {len(moves)} times by {sorted(set(moves))} pages; {broken} broken")
    return not broken and bool(moves)


if __name__ == "__main__":
    if sys.argv[1] == "room":
        with Kcore(Sysroot()) as opened:
            print(headers_left(opened))
    else:
        sys.exit(not main(int(sys.argv[1]), int(sys.argv[2])))
