"""Bring the loaded image up to date once: in place, with more room where it is needed, or by a full reload."""

from __future__ import annotations

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.handler import Event, EventKind, Outcome, Report, handle_event, run
from crash_hotplug.core.handler_policies import InPlace
from crash_hotplug.core.image import elfcorehdr_room
from crash_hotplug.core.move_header import MAX_MEMORY_RANGES, room_for
from crash_hotplug.linux.live_machine import LiveMachine
from crash_hotplug.linux.reload import reload_crash_image

LOOK = Event(EventKind.LOOK)
_POLICY = InPlace(waits_for_lock=False)
"""LiveMachine.try_lock() has its own patience: a lock that stays taken is reported, not waited for without end."""


def update_in_place(machine: LiveMachine) -> Report:
    """Update the header in place; one that outgrew its segment is moved first."""
    reason = machine.why_refused()
    if reason is not None:
        return Report(LOOK, Outcome.REFUSED, reason)
    report = run(handle_event(machine, _POLICY, LOOK))
    if report.outcome is not Outcome.NO_ROOM:
        return report
    reason = give_room(machine, MAX_MEMORY_RANGES)
    if reason is not None:
        return Report(LOOK, Outcome.NO_ROOM, f"{report.sentence}, and it cannot move: {reason}")
    report = run(handle_event(machine, _POLICY, LOOK))
    if report.outcome is Outcome.UPDATED:
        return Report(LOOK, report.outcome, f"{report.sentence}, at a new place with room")
    return report


def update_by_reload(reason: str) -> Report:
    """Reload the image with the machine's own tool and say why."""
    try:
        command = reload_crash_image()
    except CrashHotplugError as error:
        return Report(LOOK, Outcome.FAILED, f"{reason}; {error}" if reason else str(error))
    return Report(LOOK, Outcome.RELOADED, f"{command}: {reason}" if reason else command)


def give_room(machine: LiveMachine, memory_ranges: int) -> str | None:
    """Move the header to a place with room for all possible CPUs and so many memory ranges, unless it has it.

    :return: why that was not done; None where the room is there now
    """
    if not machine.try_lock():
        return "somebody else is loading a crash image"
    try:
        image = machine.loaded_image()
        if image is None:
            return "no crash image is loaded"
        reason = machine.why_not_updatable(image)
        if reason is not None:
            return reason
        now = machine.read_machine()
        needed = room_for(len(now.cpus), memory_ranges)
        if (elfcorehdr_room(image, now.crashkernel, None) or 0) < needed:
            run(machine.make_room(image, needed))
        return None
    except CrashHotplugError as error:
        return str(error)
    finally:
        machine.unlock()
