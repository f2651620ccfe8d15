"""Bring the loaded image up to date once: in place, with more room where it is needed, or by a full reload."""

from __future__ import annotations

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.handler import Event, EventKind, Outcome, Report, handle_event, run
from crash_hotplug.core.handler_policies import InPlace
from crash_hotplug.core.move_header import room_for
from crash_hotplug.linux.live_machine import LiveMachine
from crash_hotplug.linux.reload import reload_crash_image

LOOK = Event(EventKind.LOOK)


def update_in_place(machine: LiveMachine) -> Report:
    """Update the header in place; one that outgrew its segment is moved first."""
    reason = machine.why_refused()
    if reason is not None:
        return Report(LOOK, Outcome.REFUSED, reason)
    report = run(handle_event(machine, InPlace(), LOOK))
    if report.outcome is not Outcome.NO_ROOM:
        return report
    reason = _move(machine)
    if reason is not None:
        return Report(LOOK, Outcome.NO_ROOM, f"{report.sentence}, and it cannot move: {reason}")
    report = run(handle_event(machine, InPlace(), LOOK))
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


def _move(machine: LiveMachine) -> str | None:
    """Move the header to a place with room; return why that was not done, None where it was."""
    if not machine.try_lock():
        return "somebody else is loading a crash image"
    try:
        image = machine.loaded_image()
        if image is None:
            return "the crash image was unloaded meanwhile"
        reason = machine.why_not_updatable(image)
        if reason is None:
            run(machine.make_room(image, room_for(len(machine.read_machine().cpus))))
        return reason
    except CrashHotplugError as error:
        return str(error)
    finally:
        machine.unlock()
