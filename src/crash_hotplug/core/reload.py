# SPDX-License-Identifier: MIT
"""Around the update: load an image and make it ready, reload it, and put back the previous image where that fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from crash_hotplug.core.crash_machine import CrashMachine
from crash_hotplug.core.decision import ANSWERED, Outcome, Report, Wants
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.core.kept_image import keep_image, put_back
from crash_hotplug.core.purgatory import verify_digest
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.steps import Say, Step, Steps, say_nothing
from crash_hotplug.core.update import take_lock, update


def verify_image(machine: CrashMachine) -> Report:
    """Compute the digest over the loaded image, and remember an image whose digest does not fit as torn.

    :return: UNCHANGED where it fits, TORN where it does not, else NOT_LOADED or CANNOT_TELL
    """
    try:
        with closing(machine.observe()) as observation:
            identity = observation.identity()
            if not identity:
                return Report(Outcome.NOT_LOADED, "no crash image is loaded")
            image, crashkernel = observation.image(), observation.machine().crashkernel
            try:
                verify_digest(image, crashkernel, observation.read_phys)
            except CannotTellError:
                raise
            except CrashHotplugError as error:
                observation.confirm()  # else it was read at wrong places
                if observation.identity() != identity:
                    return Report(Outcome.CANNOT_TELL, "another process loaded a crash image meanwhile")
                observation.mark_torn(str(error))
                return Report(Outcome.TORN, str(error))
    except CrashHotplugError as error:
        return Report(Outcome.CANNOT_TELL, str(error))
    return Report(Outcome.UNCHANGED, "the digest fits the whole loaded image")


_INTERRUPTED = "the load was interrupted"
LoadImage = Callable[[], Steps[str]]
"""Loads an image by other means than an update, and returns the name of what loaded it, for people."""


class Loaded(NamedTuple):
    """What came of a load."""

    how: str
    """What loaded it, for people."""
    not_ready: str | None
    """Why the image is not ready for hot-plug; None where it is."""


def load(
    machine: CrashMachine,
    load_image: LoadImage,
    unload: Callable[[], Steps[None]],
    wants: Wants,
    room_is_a_must: bool,
    say: Say = say_nothing,
) -> Steps[Loaded]:
    """Load an image and make it ready for hot-plug: room to grow, out of the digest, every possible CPU described.

    :param room_is_a_must: where the room cannot be given, put the previous image back
    :raise InputError: a file is not what it should be; nothing was changed
    :raise CrashHotplugError: it was refused; the sentence says what is loaded now
    """
    yield from take_lock(machine)
    try:
        say("the loaded image is read and hashed, to be put back if the load fails")
        kept = keep_image(machine)
        yield Step("load: previous image kept")
        try:
            how = yield from load_image()
        except InputError:
            raise  # found in the files before anything was changed
        except (CrashHotplugError, KeyboardInterrupt) as error:
            state = yield from put_back(machine, kept)
            raise CrashHotplugError(f"{str(error) or _INTERRUPTED}; {state}") from error
    finally:
        machine.unlock()
    reason = yield from make_ready(machine, wants, say)
    if reason is not None and room_is_a_must and kept is not None:
        yield from take_lock(machine)
        try:
            yield from unload()
            state = yield from put_back(machine, kept)
        finally:
            machine.unlock()
        raise CrashHotplugError(f"{reason}; {state}")
    return Loaded(how, reason)


def make_ready(machine: CrashMachine, wants: Wants, say: Say = say_nothing) -> Steps[str | None]:
    """Make an image that was just loaded ready for hot-plug.

    :return: why that was not done, for people; None where the image is ready
    """
    report = yield from update(machine, wants._replace(gives_room=True, may_unload=True), say)
    return None if report.outcome in (Outcome.UPDATED, Outcome.UNCHANGED) else report.sentence


def reload(machine: CrashMachine, reload_image: LoadImage, reason: str, say: Say = say_nothing) -> Steps[Report]:
    """Load the image anew by other means, which unload first: where they fail then, put the previous image back.

    :param reload_image: takes the lock by itself
    :param reason: why a reload is wanted, for people
    """
    was_loaded = machine.image_loaded() is not False
    say("the loaded image is read and hashed, to be put back if the reload fails")
    kept = keep_image(machine)
    yield Step("reload: previous image kept")
    say("the crash image is reloaded")
    try:
        how = yield from reload_image()
        if machine.image_loaded() is not False:
            return Report(Outcome.RELOADED, f"{how}: {reason}" if reason else how)
        if not was_loaded:
            return Report(Outcome.NOT_LOADED, f"no crash image is loaded ({how} loads none then)")
        raise CrashHotplugError(f"{how} left no crash image")
    except (CrashHotplugError, KeyboardInterrupt) as error:
        failed = str(error) or _INTERRUPTED
    try:
        yield from take_lock(machine)
    except CrashHotplugError as error:
        state = f"{error}; is a crash image loaded now? (crash-hotplug status)"
    else:
        try:
            state = yield from put_back(machine, kept)
        finally:
            machine.unlock()
    return Report(Outcome.FAILED, f"{reason}; {failed}; {state}" if reason else f"{failed}; {state}")


def update_or_reload(
    machine: CrashMachine,
    wants: Wants,
    by_reload: Callable[[str], Steps[Report]],
    say: Say = say_nothing,
    can_reload: Callable[[], bool] = lambda: True,
) -> Steps[Report]:
    """Update in place, and reload where that cannot be.

    :param by_reload: reloads the image; it is given the reason, for people
    :param can_reload: whether anything is there to reload with; if not, what cannot be told stays that
    """
    report = yield from update(machine, wants._replace(may_unload=True), say)
    if report.outcome in ANSWERED:
        return report
    reloaded = yield from by_reload(report.sentence)
    if report.outcome is Outcome.CANNOT_TELL and reloaded.outcome is Outcome.FAILED and not can_reload():
        return Report(Outcome.CANNOT_TELL, reloaded.sentence)
    return reloaded
