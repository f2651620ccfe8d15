# SPDX-License-Identifier: MIT
"""The update: bring the header of the loaded crash image up to date.

This is the whole of it, written once.  ``update``, ``update --dry-run``, ``watch``, ``load`` and the model of
crash_hotplug_lab run these generators over :class:`CrashMachine`; a live machine and the model implement that and
nothing else.  The order of the steps is what keeps an image usable:

observe    identity of the loaded image, the image, the machine, in one observation
decide     nothing to do, replace the header, move it, or refuse
plan       what one kexec_load lists; purgatory's digest is made to exclude the header here
carry out  sample the pages that will be kept, compare the identity, one kexec_load
read back  compare the samples, the header and the control pages; verify a digest that was written

core/reload.py has what goes around it: make an image ready after a load, reload, put back the previous image.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from crash_hotplug.core.crash_machine import CrashMachine, ImageChangedError, KexecBusyError, Observation
from crash_hotplug.core.decision import Outcome, Report, Wants, decide, make_plan, why_encrypted
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError, NoRoomError
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.kept_image import keep, put_back
from crash_hotplug.core.loaded_image import UnmappedImageError
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.page_samples import check_samples, sample_pages
from crash_hotplug.core.plan import TornImageError, UpdatePlan, check_result, overlaid
from crash_hotplug.core.purgatory import verify_digest
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.steps import OutOfPatienceError, Say, Step, Steps, say_nothing

_LOAD_ATTEMPTS = 3
"""How often a kexec_load that failed after the kernel had dropped the loaded image is made."""
_REPLACED = 2
"""How often the kernel may replace the header before the image is loaded without leave for the kernel to update it."""
_ATTEMPTS = 8
"""How often an image that changed under the update is looked at again."""


class HeaderReplacedError(CrashHotplugError):
    """The kernel put a header of its own in the place of the one that was written; the image is whole.

    The kernel's handler came in between, or a kernel rewrites the header of every such image inside kexec_load (as
    linux-mm 1a15eb5ca092 is going to).
    """


def update(machine: CrashMachine, wants: Wants = Wants(), say: Say = say_nothing) -> Steps[Report]:
    """Bring the header of the loaded image up to date, in place.

    :raise CrashHotplugError: the lock cannot be opened; nothing was changed
    """
    refused = machine.why_refused()
    if refused is not None:
        return Report(Outcome.REFUSED, refused)
    try:
        yield from take_lock(machine)
    except OutOfPatienceError as error:
        return Report(Outcome.LOCK_BUSY, str(error))
    try:
        replaced = 0
        for _attempt in range(_ATTEMPTS):
            try:
                return _after_replacements((yield from _try_to_update(machine, wants, say)), replaced)
            except HeaderReplacedError as error:
                replaced += 1
                wants = wants._replace(leaves_kernel_updates=replaced < _REPLACED)
                reason = str(error)
            except ImageChangedError as error:
                reason = str(error)
            yield Step("update: image changed, looks again")
        return Report(Outcome.FAILED, reason)
    except CrashHotplugError as error:
        return Report(_outcome_of(error), str(error))
    finally:
        machine.unlock()


def _after_replacements(report: Report, replaced: int) -> Report:
    """Return the report of the last attempt, where the kernel replaced the header before it."""
    if replaced and report.outcome is Outcome.UNCHANGED:
        return report._replace(outcome=Outcome.UPDATED, sentence="the kernel wrote the header anew, and it is right")
    if replaced >= _REPLACED and report.outcome is Outcome.UPDATED:
        return report._replace(sentence=f"{report.sentence}; the kernel, which replaced the header, updates it no more")
    return report


def take_lock(machine: CrashMachine) -> Steps[None]:
    """Wait for the lock that keeps other updates and loads away.

    :raise OutOfPatienceError: it stays taken
    """
    while not machine.try_lock():
        try:
            yield Step("update: waits for the lock", waits=True)
        except OutOfPatienceError:
            raise OutOfPatienceError(machine.why_locked()) from None
    yield Step("update: lock taken")


def _outcome_of(error: CrashHotplugError) -> Outcome:
    if isinstance(error, KexecBusyError) and error.is_limited:
        return Outcome.LOCK_BUSY
    if isinstance(error, NoRoomError):
        return Outcome.NO_ROOM
    if isinstance(error, TornImageError):
        return Outcome.TORN
    # All that an update reads is the kernel's: an invalid file there is a truncated or hidden one, not bad input.
    return Outcome.CANNOT_TELL if isinstance(error, (CannotTellError, InputError)) else Outcome.FAILED


def _try_to_update(machine: CrashMachine, wants: Wants, say: Say) -> Steps[Report]:
    """Observe, decide, plan and carry it out.

    :raise HeaderReplacedError: the kernel put its own header in the place of what was written
    :raise ImageChangedError: another image is loaded than the one that was observed; nothing was changed
    :raise TornImageError: another image was loaded at that moment; a reload must follow
    :raise CrashHotplugError: it could not be done
    """
    if machine.image_loaded() is False:
        return Report(Outcome.NOT_LOADED, "no crash image is loaded")
    with closing(machine.observe()) as observation:
        try:
            found = yield from _observe_and_plan(observation, wants, say)
        except UnmappedImageError:
            if not wants.may_unload:
                raise
            return (yield from _update_unmapped(machine, observation, wants, say))
        if isinstance(found, Report):
            return found
        yield from _carry_out(machine, observation, found, say)
        return Report(Outcome.UPDATED, found.sentence)


_UNLOADED = "an update unloaded the image to read it, and did not come to load it again"


def _update_unmapped(machine: CrashMachine, observation: Observation, wants: Wants, say: Say) -> Steps[Report]:
    """Update an image that the kernel has unmapped: unload it, read it, and load what it should be.

    The contents stay in the reserved region when an image is unloaded.  Where anything fails then the image is put
    back, if its digest fits.  Errors as :func:`_try_to_update`.
    """
    say("the kernel has unmapped the loaded image: it is unloaded for a moment, to be read")
    now = observation.machine()
    if now.memory_encryption is not None:
        return Report(Outcome.REFUSED, why_encrypted(now.memory_encryption))
    observation.confirm()
    observation.mark_unloaded(_UNLOADED)
    yield from machine.kexec_load(0, (), False)
    yield Step("update: unloaded")
    kept, loads = None, False
    try:
        image = observation.image()
        kept = keep(image, now.crashkernel, observation.read_phys)
        wants = wants._replace(gives_room=True, always_writes=True)
        found = yield from _decide_and_plan(observation, b"", image, now, wants, say)
        if isinstance(found, Report):
            raise CrashHotplugError(found.sentence)
        loads = True
        yield from _carry_out(machine, observation, found, say)
    except TornImageError:
        raise
    except (CrashHotplugError, KeyboardInterrupt) as error:
        is_another = not loads and machine.image_loaded() is not False
        state = yield from put_back(machine, kept)
        if is_another or isinstance(error, ImageChangedError):
            raise ImageChangedError(f"{error}; {state}") from error
        raise CrashHotplugError(f"{str(error) or 'the update was interrupted'}; {state}") from error
    finally:
        if machine.image_loaded():
            observation.mark_unloaded(None)
    return Report(Outcome.UPDATED, f"{found.sentence}; for a moment no image was loaded")


class _Task(NamedTuple):
    """What is to be carried out, and what it was planned for."""

    identity: bytes
    image: CrashImage
    crashkernel: RangeList
    header: bytes
    plan: UpdatePlan
    verify_full: bool
    sentence: str
    """What is said when it is done."""
    updated_by_kernel: bool
    """Whether the kernel may update the header by itself from then on."""


def _observe_and_plan(observation: Observation, wants: Wants, say: Say) -> Steps[Report | _Task]:
    """Observe image and machine, and plan what is to be done; a report where that is nothing."""
    identity = observation.identity()
    yield Step("update: identity read")
    if not identity:
        return Report(Outcome.NOT_LOADED, "no crash image is loaded")
    try:
        image = observation.image()
        yield Step("update: image read")
        machine = observation.machine()
        yield Step("update: machine read")
        return (yield from _decide_and_plan(observation, identity, image, machine, wants, say))
    except CrashHotplugError:
        observation.confirm()  # else it was read at wrong places
        _compare_identity(observation, identity)  # else it may be parts of two images
        raise


def _decide_and_plan(
    observation: Observation, identity: bytes, image: CrashImage, machine: Machine, wants: Wants, say: Say
) -> Steps[Report | _Task]:
    """Decide and plan; errors as :func:`decide` and :func:`make_plan`.

    :param identity: of what is loaded now
    """
    if wants.verify_full:
        say("the whole image is hashed")
        verify_digest(image, machine.crashkernel, observation.read_phys)
        observation.mark_torn(None)
        image = image._replace(torn=None)
    decision = decide(image, machine, observation.read_phys, wants)
    if decision.outcome is not Outcome.UPDATED:
        observation.confirm()
        return Report(decision.outcome, decision.sentence)
    plan = make_plan(decision, image, machine, observation.read_phys, say)
    by_kernel = image.updated_by_kernel and wants.leaves_kernel_updates
    task = _Task(
        identity, image, machine.crashkernel, decision.header, plan, wants.verify_full, decision.sentence, by_kernel
    )
    yield Step("update: planned", plan)
    return task


def _carry_out(machine: CrashMachine, observation: Observation, task: _Task, say: Say) -> Steps[None]:
    """Load what the plan lists, and read back what is loaded then; errors as :func:`_try_to_update`."""
    plan = task.plan
    # Before the identity is compared: the samples are then those of the image that was looked at.
    samples = sample_pages(plan.kept, observation.read_phys)
    yield Step("update: kept segments sampled")
    if plan.has_unproven_zeros:
        _prove_listed(observation, task, say)
    dropped = 0
    while True:
        if not dropped or machine.image_loaded():
            observation.confirm()
            _compare_identity(observation, task.identity)
            _compare_listed(observation, plan)
        yield Step("update: identity compared")
        try:
            yield from machine.kexec_load(plan.entry_phys, plan.segments, task.updated_by_kernel)
            if plan.makes_readable is not None:
                yield from machine.kexec_load(plan.entry_phys, (plan.makes_readable,), False)
            break
        except KexecBusyError as error:
            if error.is_limited:
                raise
            busy = error
        except CrashHotplugError as error:
            if machine.image_loaded() is not False:
                raise
            # The kernel dropped the image before it failed.  The rest of the image is still in the reserved region, so
            # the same call makes it whole.
            dropped += 1
            if dropped == _LOAD_ATTEMPTS:
                raise CrashHotplugError(f"{error}; no crash image is loaded now: load one") from error
            continue
        try:
            yield Step("update: waits for the kexec lock", waits=True)
        except OutOfPatienceError:
            raise busy from None
    _check_what_is_loaded(machine, task, samples, say)
    yield Step("update: read back")


def _check_what_is_loaded(machine: CrashMachine, task: _Task, samples: Mapping[Range, bytes], say: Say) -> None:
    """Observe the machine after the call, again where it cannot be read for a moment; errors as :func:`_read_back`."""
    for _attempt in range(_ATTEMPTS):
        try:
            with closing(machine.observe()) as after:
                _read_back(after, task, samples, say)
                break
        except TornImageError as error:
            after.mark_torn(str(error))
            raise
        except (CannotTellError, ImageChangedError, InputError) as error:  # InputError: a file that is truncated now
            reason = error
    else:
        raise CrashHotplugError(f"what was loaded cannot be verified: {reason}; reload the crash image") from reason


def _compare_identity(observation: Observation, identity: bytes) -> None:
    if observation.identity() != identity:
        raise ImageChangedError("another process loaded or unloaded a crash image meanwhile")


def _compare_listed(observation: Observation, plan: UpdatePlan) -> None:
    """Read what is listed without a change once more.

    /proc/kcore shows zeros for a page that it cannot read at the moment, and they would be written into the image.
    """
    for s in plan.segments:
        if s.source_phys is not None and observation.read_phys(s.source_phys, len(s.data)) != s.data:
            raise ImageChangedError(f"the segment at {s.source_phys:#x} does not read the same twice")


def _prove_listed(observation: Observation, task: _Task, say: Say) -> None:
    """Compute the digest of the image with the bytes that are listed without a change.

    :raise CrashHotplugError: they are not those that were loaded
    :raise ImageChangedError: another image is loaded, or they read differently now
    """
    _compare_listed(observation, task.plan)  # zeros for a moment only: the update looks again
    say("the whole image is hashed: a page that has to be written back reads as zeros")
    unchanged = {s.phys: s.data for s in task.plan.segments if s.source_phys == s.phys}
    try:
        verify_digest(task.image, task.crashkernel, overlaid(unchanged, observation.read_phys))
    except CrashHotplugError:
        observation.confirm()
        _compare_identity(observation, task.identity)
        raise


def _read_back(after: Observation, task: _Task, samples: Mapping[Range, bytes], say: Say) -> None:
    """Check what is loaded after the call.

    :raise TornImageError: it may leave no dump, and has to be loaded anew
    :raise CrashHotplugError: it is not what was meant
    :raise CannotTellError: it cannot be read
    :raise ImageChangedError: what was read cannot be relied on
    """
    if not after.identity():
        raise CrashHotplugError("the crash image was unloaded at the very moment of the update: load one")
    now = sample_pages(samples, after.read_phys)
    image = after.image()
    after.confirm()
    check_samples(samples, now)
    if image.kimage is None:
        raise CannotTellError("struct kimage of the loaded image could not be read")
    check_result(task.plan, image.kimage)
    if image.why_header_not_found is not None:
        raise TornImageError(image.why_header_not_found)
    # A digest that the update wrote is computed once more: only that covers every byte that was not listed.
    if task.verify_full or task.plan.excludes_elfcorehdr:
        say("the whole image is hashed")
        try:
            verify_digest(image, task.crashkernel, after.read_phys)
        except CannotTellError:
            raise
        except CrashHotplugError as error:
            after.confirm()
            raise TornImageError(str(error)) from error
    if not image.elfcorehdr.startswith(task.header):
        sentence = "the header that was written is not the one that is there: reload the crash image"
        raise HeaderReplacedError(sentence) if task.updated_by_kernel else CrashHotplugError(sentence)
