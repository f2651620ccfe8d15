"""Bring the loaded image up to date once: in place, with more room where it is needed, or by a full reload."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.handler import (
    Event,
    EventKind,
    ImageChangedError,
    MixedImageError,
    Outcome,
    Report,
    handle_event,
    run,
)
from crash_hotplug.core.handler_policies import InPlace, in_place_header
from crash_hotplug.core.image import CrashImage, elfcorehdr_room
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.move_header import MAX_MEMORY_RANGES, room_for, whole_pages
from crash_hotplug.linux.kexec_state import read_kexec_state
from crash_hotplug.linux.loading.capture_kernel import load_capture_kernel
from crash_hotplug.linux.loading.former_image import FormerImage, keep_whole_image, put_back
from crash_hotplug.linux.loading.kdump_lock import kdump_locks
from crash_hotplug.linux.loading.live_machine import LOCK_SECONDS, LiveMachine
from crash_hotplug.linux.loading.load_record import read_record
from crash_hotplug.linux.loading.reload import NoReloadToolError, find_reload_tool, reload_crash_image
from crash_hotplug.linux.sysroot import Sysroot

LOOK = Event(EventKind.LOOK)
ANSWERED = (Outcome.UPDATED, Outcome.UNCHANGED, Outcome.NOT_LOADED, Outcome.LOCK_BUSY)
"""Outcomes of an update in place after which a reload is no answer."""
_ALL_CPUS = InPlace(waits_for_lock=False, may_leave_cpus_out=False)
"""LiveMachine.try_lock() has its own patience: a lock that stays taken is reported, not waited for without end."""
_CPUS_THAT_FIT = InPlace(waits_for_lock=False)
_MOVES = 3
"""How often a move is begun anew where somebody, without the lock, loaded an image meanwhile."""
_LOCK_BUSY = "somebody else is loading a crash image"


def update_in_place(machine: LiveMachine, memory_ranges: int = MAX_MEMORY_RANGES) -> Report:
    """Update the header in place; one that outgrew its segment is moved first.

    :param memory_ranges: how many a moved header has room for
    """
    reason = machine.why_refused()
    if reason is not None:
        return Report(LOOK, Outcome.REFUSED, reason)
    report = run(handle_event(machine, _ALL_CPUS, LOOK))
    return _with_room(machine, report, memory_ranges) if report.outcome is Outcome.NO_ROOM else report


def _with_room(machine: LiveMachine, refused: Report, memory_ranges: int) -> Report:
    """Move the header to a place with room and update it there; where it cannot move, update it where it is."""
    try:
        if not _move(machine, memory_ranges):
            return Report(LOOK, Outcome.LOCK_BUSY, _LOCK_BUSY)
    except CannotTellError as error:  # nothing was done
        return _where_it_is(machine, f"it cannot move: {error}")
    except CrashHotplugError as error:
        outcome = Outcome.MIXED if isinstance(error, MixedImageError) else Outcome.FAILED
        return Report(LOOK, outcome, f"{refused.sentence}, and it did not move: {error}")
    report = run(handle_event(machine, _ALL_CPUS, LOOK))
    if report.outcome in (Outcome.UPDATED, Outcome.UNCHANGED):
        return Report(LOOK, Outcome.UPDATED, f"written at a new place, with room for {memory_ranges} memory ranges")
    return report


def _where_it_is(machine: LiveMachine, why_there: str) -> Report:
    """Update a header that has no room for all possible CPUs and cannot get it: those that are present may fit."""
    report = run(handle_event(machine, _CPUS_THAT_FIT, LOOK))
    if report.outcome is Outcome.NO_ROOM:
        return replace(report, sentence=f"{report.sentence}, and {why_there}")
    if report.outcome in (Outcome.UPDATED, Outcome.UNCHANGED):
        return replace(report, sentence=f"{report.sentence}; present CPUs only, for {why_there}")
    return report


def update_by_reload(reason: str, say: Callable[[str], None] = lambda _what: None) -> Report:
    """Reload the image with the machine's own tool, else as our own ``load`` did it, and say why.

    The tools unload first: where they fail then, the former image is put back, if it was whole.

    :param reason: why a reload is wanted, for people
    :param say: told what takes more than a moment
    """
    because = f": {reason}" if reason else ""
    if not is_root():
        return Report(LOOK, Outcome.CANNOT_TELL, reason or "only root can reload the crash image")
    was_loaded, former = is_loaded(), None
    if can_reload():
        say("the loaded image is read and hashed, to be put back if the reload fails")
        former = keep_whole_image(Sysroot())
        say("the crash image is reloaded")
    try:
        how = _reload()
        if is_loaded():
            return Report(LOOK, Outcome.RELOADED, f"{how}{because}")
        if not was_loaded:
            return Report(LOOK, Outcome.NOT_LOADED, f"no crash image is loaded ({how} loads none then)")
        raise CrashHotplugError(f"{how} left no crash image")
    except CrashHotplugError as error:
        sentence = f"{error}; {_put_back(former)}"
        return Report(LOOK, Outcome.FAILED, f"{reason}; {sentence}" if reason else sentence)


def _reload() -> str:
    """Load the image anew and return what did it, for people; errors as :func:`reload_crash_image`."""
    try:
        return reload_crash_image()
    except NoReloadToolError as error:
        record = read_record()
        if record is None:
            raise CrashHotplugError(f"{error}, and crash-hotplug load loaded none since the boot") from None
    with kdump_locks(LOCK_SECONDS):
        how = load_capture_kernel(record.files, record.strategy, record.hotplug_size)
    not_ready = make_ready(LiveMachine(), record.memory_ranges, record.hotplug_size)
    outgrown = "" if not_ready is None else f" (not made ready for hot-plug: {not_ready})"
    return f"loaded {record.files.kernel} again by {how}{outgrown}"


def _put_back(former: FormerImage | None) -> str:
    """Load the former image again, if a reload that failed left none; say what is loaded now."""
    try:
        with kdump_locks(LOCK_SECONDS):
            return put_back(former, Sysroot())
    except CrashHotplugError as error:
        return f"{error}; is a crash image loaded now? (crash-hotplug status)"


def is_loaded() -> bool:
    """Whether the kernel has a crash image, as far as it says."""
    return read_kexec_state(Sysroot(None)).image_loaded is not False


def can_reload() -> bool:
    """Whether there is a tool that reloads the image, or an image that our own ``load`` loaded since the boot."""
    return find_reload_tool() is not None or read_record() is not None


def is_root() -> bool:
    """Whether this process may load images."""
    return os.geteuid() == 0


def make_ready(
    machine: LiveMachine, memory_ranges: int = MAX_MEMORY_RANGES, hotplug_size: int | None = None
) -> str | None:
    """Make an image that was just loaded ready for hot-plug: room to grow, taken over, every possible CPU.

    :return: why that was not done, for people; None where the image is ready
    """
    reason = give_room(machine, memory_ranges, hotplug_size)
    if reason is not None:
        return reason
    report = update_in_place(machine, memory_ranges)
    return None if report.outcome in (Outcome.UPDATED, Outcome.UNCHANGED) else report.sentence


def give_room(machine: LiveMachine, memory_ranges: int, hotplug_size: int | None = None) -> str | None:
    """Move the header to a place with room for all possible CPUs and so many memory ranges, unless it has it.

    :param hotplug_size: bytes of room instead
    :return: why that was not done; None where the room is there now
    """
    try:
        return None if _move(machine, memory_ranges, hotplug_size) else _LOCK_BUSY
    except CrashHotplugError as error:
        return str(error)


def _move(machine: LiveMachine, memory_ranges: int, hotplug_size: int | None = None) -> bool:
    """Do what :func:`give_room` does; False where the lock stays taken.

    :raise CannotTellError: it cannot be done safely, or there is no image; nothing was done
    :raise CrashHotplugError: as :meth:`LiveMachine.make_room`
    """
    if not machine.try_lock():
        return False
    try:
        for _attempt in range(_MOVES):
            try:
                _move_now(machine, memory_ranges, hotplug_size)
                return True
            except ImageChangedError as error:
                changed = error
        raise changed
    finally:
        machine.unlock()


def _move_now(machine: LiveMachine, memory_ranges: int, hotplug_size: int | None) -> None:
    image = machine.loaded_image()
    if image is None:
        raise CannotTellError("no crash image is loaded")
    reason = machine.why_not_updatable(image)
    if reason is not None:
        raise CannotTellError(reason)
    now = machine.read_machine()
    header, needed = header_with_room(now, image, memory_ranges, hotplug_size)
    if (elfcorehdr_room(image, now.crashkernel, None) or 0) < needed:
        run(machine.make_room(image, needed, header.to_bytes()))


def header_with_room(
    now: Machine, image: CrashImage, memory_ranges: int, hotplug_size: int | None = None
) -> tuple[ElfCoreHeader, int]:
    """Return the header that the machine should have, and the bytes of room that it is to get.

    :raise CannotTellError: it cannot be built
    """
    room = room_for(len(now.cpus), memory_ranges) if hotplug_size is None else whole_pages(hotplug_size)
    header = in_place_header(now, image, None)
    return header, max(room, whole_pages(header.size))
