"""In the guest: kill an update at each of its system calls, before and after the call, and look what is loaded then.

Prints how many there were and after how many the image was whole; exit code 1 unless it always was.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from crash_hotplug.core.handler import run
from crash_hotplug.core.handler_policies import InPlace
from crash_hotplug.core.image import CrashImage
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.live_machine import LiveMachine
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug.linux.update_once import LOOK, update_in_place

_TRACEME, _SYSCALL = 0, 24  # linux/ptrace.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long] * 4


def update() -> None:
    """Write the header although it is right."""
    machine = LiveMachine()
    if machine.try_lock():
        image = machine.loaded_image()
        if image is not None:
            run(machine.replace_header(image, InPlace().header(machine.read_machine(), image, LOOK).to_bytes()))
        machine.unlock()


def killed_at(stop: int) -> bool:
    """Start an update and kill it at its system-call stop of this number; False where it ended before."""
    child = os.fork()
    if child == 0:
        _libc.ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        update()
        os._exit(0)
    os.waitpid(child, 0)
    for _ in range(stop):
        _libc.ptrace(_SYSCALL, child, 0, 0)
        if os.WIFEXITED(os.waitpid(child, 0)[1]):
            return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def what_is_loaded() -> tuple[bytes, object, list[int], bytes]:
    """Return header, entry point, segments and purgatory of the loaded image."""
    image = LiveMachine().loaded_image()
    if image is None or image.kimage is None:
        return b"", None, [], b""
    return image.elfcorehdr, image.kimage.entry_phys, [s.phys for s in image.kimage.segments], purgatory(image)


def purgatory(image: CrashImage) -> bytes:
    """Return the bytes of purgatory's segment."""
    segment = image.kimage.segment_at(image.kimage.entry_phys) if image.kimage is not None else None
    with Kcore(Sysroot()) as kcore:
        return b"" if segment is None else kcore.read_phys(segment.phys, segment.memsz)


def main(step: int) -> None:
    """Kill at every *step*-th stop until an update gets to its end."""
    update_in_place(LiveMachine())
    update()
    before, stop, whole, killed = what_is_loaded(), 1, 0, 0
    while killed_at(stop):
        killed += 1
        whole += what_is_loaded() == before
        stop += step
    report = update_in_place(LiveMachine(verify_full=True))
    print(f"killed at {killed} of {stop - 1} stops at system calls: the image was whole after {whole}")
    print(f"the whole image verified: {report.outcome.value}, {report.sentence}")
    if whole != killed or report.outcome.value != "unchanged":
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
