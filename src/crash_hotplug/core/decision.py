# SPDX-License-Identifier: MIT
"""The decision of an update: nothing to do, replace the header, move it, or refuse.  Nothing is changed here."""

from __future__ import annotations

from enum import Enum

from crash_hotplug.core.arch.architecture import whole_pages
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, entries_that_fit
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.expected import header_to_write
from crash_hotplug.core.image import CrashImage, elfcorehdr_room
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.plan import (
    MAX_MEMORY_RANGES,
    Move,
    UpdatePlan,
    plan_update,
    prepare_move,
    room_for,
    why_no_plan,
)
from crash_hotplug.core.purgatory import ReadPhys
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.sizes import count
from crash_hotplug.core.steps import Say, say_nothing


class Outcome(str, Enum):
    """What came of an update.  The values are those of the JSON reports."""

    UPDATED = "updated"
    UNCHANGED = "unchanged"
    RELOADED = "reloaded"
    NOT_LOADED = "not loaded"
    LOCK_BUSY = "lock busy"
    REFUSED = "refused"
    NO_ROOM = "no room"
    CANNOT_TELL = "cannot tell"
    TORN = "mixed"
    """What is loaded now may leave no dump, although its header is right (a torn image): only a reload helps."""
    FAILED = "failed"


ANSWERED = (Outcome.UPDATED, Outcome.UNCHANGED, Outcome.NOT_LOADED, Outcome.LOCK_BUSY)
"""Outcomes of an update in place after which no reload is due."""


class Report(NamedTuple):
    """What came of an update, and why, for people."""

    outcome: Outcome
    sentence: str


class Wants(NamedTuple):
    """What is asked of an update."""

    memory_ranges: int = MAX_MEMORY_RANGES
    """Memory ranges that a moved header gets room for."""
    hotplug_size: int | None = None
    """Bytes of room instead."""
    gives_room: bool = False
    """Whether a header that has less room than that is moved although it fits, as after a load."""
    always_writes: bool = False
    """Whether a header is written even where it is right."""
    verify_full: bool = False
    """Whether the digest over the whole image is computed, before and after."""
    may_unload: bool = False
    """Whether an image that the kernel has unmapped is unloaded to be read: for that moment there is none."""
    leaves_kernel_updates: bool = True
    """Whether a kernel that may update the header by itself may go on."""

    def room(self, machine: Machine, header: ElfCoreHeader) -> int:
        """Return the bytes of room that a moved header gets."""
        page = machine.architecture.page_size
        if self.hotplug_size is None:
            room = room_for(len(machine.cpus), self.memory_ranges, page)
        else:
            room = whole_pages(self.hotplug_size, page)
        return max(room, whole_pages(header.size, page))


class Decision(NamedTuple):
    """What an update is to do."""

    outcome: Outcome
    """What comes of it, if nothing goes wrong: UPDATED, UNCHANGED, TORN, REFUSED or NO_ROOM."""
    sentence: str
    """The reason, for people."""
    header: bytes = b""
    """What is to be written, where something is."""
    room: int | None = None
    """Bytes that the header may grow to where it is."""
    move: Move | None = None
    """Where it moves to; None where it stays."""
    why_stays: str | None = None
    """Why it cannot move although its room is too small for every possible CPU; it describes the present ones then."""


def decide(image: CrashImage, machine: Machine, read_phys: ReadPhys, wants: Wants = Wants()) -> Decision:
    """Decide what is to be done about the header of *image*.  Nothing is changed, and nothing hashed.

    Every possible CPU is described where the notes of all of them are known, so that no later CPU event needs an
    update.  A header that has no room for them moves; where it cannot move, it describes the present CPUs.

    :raise CannotTellError: nothing can be decided
    """
    if image.torn is not None or image.why_header_not_found is not None:
        return _only_a_reload(image)
    header = header_to_write(machine, image)
    room, new_room = elfcorehdr_room(image, machine.crashkernel), wants.room(machine, header)
    must_move = wants.gives_room and (room or 0) < new_room
    if not must_move and not wants.always_writes and image.elfcorehdr.startswith(header.to_bytes()):
        return Decision(Outcome.UNCHANGED, "the header is right as it is", room=room)
    refused = why_not_updatable(image, machine)
    if refused is not None:
        return Decision(Outcome.REFUSED, refused, room=room)
    if room is None and not must_move:
        raise CannotTellError("how much room the loaded elfcorehdr has cannot be told")
    if room is not None and header.size <= room and not must_move:
        return _write(header, room)
    try:
        move = prepare_move(image, machine, new_room, read_phys)
    except CannotTellError as error:
        if must_move or room is None:
            raise
        return _where_it_is(image, machine, room, str(error), wants)
    sentence = f"written at a new place, with room for {count(entries_that_fit(new_room), 'entry', 'entries')}"
    return Decision(Outcome.UPDATED, sentence, header.to_bytes(), room, move)


def _only_a_reload(image: CrashImage) -> Decision:
    if image.torn is not None:
        return Decision(Outcome.TORN, image.torn)
    return Decision(Outcome.REFUSED, f"{image.why_header_not_found}; only a reload corrects that")


def why_not_updatable(image: CrashImage, machine: Machine) -> str | None:
    """Return why *image* cannot be updated in place, without hashing anything; None where it can."""
    if machine.memory_encryption is not None:
        return why_encrypted(machine.memory_encryption)
    if image.luks_keys is not None:
        keys = f"LUKS keys to the capture kernel ({image.luks_keys})"
        return f"the image hands {keys}, which kexec_load would leave readable"
    return why_no_plan(image, machine)


def why_encrypted(technology: str) -> str:
    """Return why an image in encrypted memory is not updated in place, for people."""
    return f"memory is encrypted ({technology}); an update in place was never tried there"


def _write(header: ElfCoreHeader, room: int) -> Decision:
    entries = count(len(header.program_headers), "entry", "entries")
    return Decision(Outcome.UPDATED, f"{entries} written", header.to_bytes(), room)


def _where_it_is(image: CrashImage, machine: Machine, room: int, why_stays: str, wants: Wants) -> Decision:
    """Decide for a header that has no room for every possible CPU and cannot move: the present ones may fit."""
    header = header_to_write(machine, image, possible_cpus=False)
    if header.size > room:
        sentence = f"the new elfcorehdr has {header.size} bytes, its room {room}: the old one stays"
        return Decision(Outcome.NO_ROOM, f"{sentence}, and it cannot move: {why_stays}", b"", room, None, why_stays)
    if image.elfcorehdr.startswith(header.to_bytes()) and not wants.always_writes:
        found = Decision(Outcome.UNCHANGED, "the header is right as it is", room=room)
    else:
        found = _write(header, room)
    sentence = f"{found.sentence}; present CPUs only, because it cannot move: {why_stays}"
    return found._replace(sentence=sentence, why_stays=why_stays)


def make_plan(
    decision: Decision, image: CrashImage, machine: Machine, read_phys: ReadPhys, say: Say = say_nothing
) -> UpdatePlan:
    """Plan the one kexec_load that a decision to write needs.

    :param say: told before the image is hashed
    :raise CannotTellError: it cannot be proven that the rest of the image survives
    """
    return plan_update(image, machine, decision.header, decision.move, read_phys, say)
