# SPDX-License-Identifier: MIT
"""One look of the watch service: is the image still right, and if not, what is done about it.

Most looks find that nothing changed since the last one.  They read a few files and the loaded header, take no lock and
compute nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from crash_hotplug.core.decision import ANSWERED, Outcome, Report, Wants, decide
from crash_hotplug.core.elfcorehdr import entries_that_fit
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.reload import verify_image
from crash_hotplug.core.service.watch_record import Look
from crash_hotplug.core.service.watch_schedule import ReloadGate, VerificationSchedule
from crash_hotplug.core.steps import Say, say_nothing
from crash_hotplug.core.summary import summarize
from crash_hotplug.core.update import update
from crash_hotplug.core.verdict import Assessment, assess
from crash_hotplug.linux import cpus, iomem
from crash_hotplug.linux.crash_image import read_identity
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_state import read_image_loaded
from crash_hotplug.linux.loading.live_machine import PATIENCE_SECONDS, LiveMachine, run_patiently
from crash_hotplug.linux.loading.reload import can_reload, reload_outside
from crash_hotplug.linux.sysroot import LARGE, Sysroot
from crash_hotplug.linux.torn_image import why_torn

_FILES = tuple(f"{cpus.DIRECTORY}/{name}" for name in ("possible", "present", "online"))


class Reloading(NamedTuple):
    """How the service reloads; a test passes other functions."""

    can: Callable[[], bool] = can_reload
    run: Callable[[str, Callable[[], None]], Report] = reload_outside


class Loaded(NamedTuple):
    """Which image is loaded, as cheaply as it can be told."""

    identity: bytes
    """What tells it from another: its ``struct kimage``; nothing where none is loaded."""
    header: bytes
    """Its elfcorehdr, where the last full look found one."""


class Reconciler:
    """Looks at the live machine again and again, and remembers what the last look saw."""

    def __init__(
        self,
        live: LiveMachine,
        sysroot: Sysroot,
        strategy: str = "auto",
        clock: Callable[[], float] = time.monotonic,
        while_waiting: Callable[[], None] = lambda: None,
        say: Say = say_nothing,
        reloading: Reloading = Reloading(),
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        """Take how to correct a header.

        :param strategy: ``in-place``, ``reload``, or ``auto``: in place, and a reload only where that cannot be
        :param while_waiting: called every few seconds during a reload
        :param say: told what takes more than a moment
        :param patience: seconds that a lock which stays taken is waited for
        """
        self._patience = patience
        self._live, self._sysroot, self._strategy, self._clock = live, sysroot, strategy, clock
        self._while_waiting, self._say, self._reloading = while_waiting, say, reloading
        self._gate = ReloadGate()
        self._verification = VerificationSchedule(clock())
        self._last: Look | None = None
        self._seen: tuple[bytes, Loaded] | None = None
        self._unfit: Report | None = None
        """Why the image must be loaded anew although nothing shows that: it is torn, or an update of ours lost it."""
        lost = why_torn(sysroot, b"")
        if lost is not None and live.image_loaded() is False:
            self._unfit = Report(Outcome.FAILED, lost)
        self._header_at: tuple[int, int] | None = None
        """Physical address and size of the header that the last full look found."""

    def why_blind(self) -> str | None:
        """Return why nothing at all can be told or done on this machine; None where something can."""
        try:
            if read_image_loaded(self._sysroot) is None:
                return "/sys/kernel has no kexec_crash_loaded: this kernel was built without kexec"
            iomem.read_iomem(self._sysroot)
        except CrashHotplugError as error:
            return str(error)
        try:
            self._loaded()
        except CrashHotplugError as error:
            return None if self._can_reload() else f"{error}; and no reload is possible either"
        return None

    def what_lacks(self) -> str | None:
        """Return why no header can be corrected in place on this machine; None where nothing is known to forbid it."""
        try:
            refused = self._live.why_refused()
            if refused is None:
                self._loaded()
        except CrashHotplugError as error:
            refused = str(error)
        if refused is not None and not self._can_reload():
            refused += "; no reload is possible either: a header that is not accurate is only reported"
        return refused

    def _can_reload(self) -> bool:
        return self._strategy != "in-place" and self._reloading.can()

    def forget(self) -> None:
        """Read everything at the next look, and let a reload be tried again."""
        self._seen = None
        self._gate = ReloadGate()

    def look(self, is_quiet: bool) -> Look:
        """Look once, and correct the header if it is not right.

        :param is_quiet: whether the burst of events is over, so that a reload may be tried
        """
        try:
            state, loaded = self._state(), self._loaded_or_unknown()
        except CrashHotplugError as error:
            return self._remember(None, Look(Verdict.CANNOT_TELL, str(error)))
        external_change = self._external_change(loaded)
        last = self._last
        is_due = is_quiet and self._verification.is_due(self._clock())
        is_unchanged = self._seen == (state, loaded) and not is_due
        if is_unchanged and last is not None and last.verdict is Verdict.ACCURATE and _is_final(last):
            return self._remember((state, loaded), Look(last.verdict, last.sentence, room_left=last.room_left,
                                                        by_kernel=last.by_kernel, was_cheap=True))  # fmt: skip
        if external_change:
            self._unfit = None
        verification = self._verify() if is_due else None
        look = self._correct(state, is_quiet) if self._unfit is None else self._reload_unfit(self._judge()[0], state)
        if look.verdict is Verdict.ACCURATE:
            self._gate.accept(state)
        # What is loaded is read again: an update changed it.  The machine's state is that from before the look, so
        # that what came meanwhile is seen as a change.
        return self._remember(
            (state, self._loaded_or_unknown()),
            replace(look, external_change=external_change, verification=verification),
        )

    def _remember(self, seen: tuple[bytes, Loaded] | None, look: Look) -> Look:
        self._seen, self._last = seen, look
        return look

    def _correct(self, state: bytes, is_quiet: bool) -> Look:
        """Judge the image; where it is not what it should be, correct it and judge it again."""
        look, is_right = self._judge()
        if is_right:
            return look
        if look.verdict is Verdict.CANNOT_TELL and self._last is None:
            self._gate.accept(state)  # nothing has happened yet that would need a reload
        if self._strategy != "reload":
            report = self._update_in_place()
            if report.outcome is Outcome.TORN or self._is_lost(report):
                self._unfit = report
                return self._reload_unfit(self._judge()[0], state)
            if report.outcome is not Outcome.CANNOT_TELL or look.verdict is not Verdict.CANNOT_TELL:
                look = self._after(look, "in-place", report)
            if report.outcome in ANSWERED or self._strategy == "in-place" or look.verdict is Verdict.ACCURATE:
                return look
            reason = report.sentence
        else:
            if look.verdict is Verdict.ACCURATE:
                return look
            reason = look.sentence
        why_not = self._gate.why_not(self._clock(), state, is_quiet)
        if why_not is None and self._strategy == "auto" and not self._was_in_trouble():
            why_not = "it is tried in place once more first"
        if why_not is not None:
            return replace(look, action=f"{reason}; no reload: {why_not}") if look.action else look
        return self._reload(look, state, reason)

    def _verify(self) -> Report | None:
        """Hash the whole image; one whose digest does not fit is reloaded as a torn one.  None where none is loaded."""
        report = verify_image(self._live)
        if report.outcome is Outcome.NOT_LOADED:
            return None
        self._verification.done(self._clock())
        if report.outcome is Outcome.TORN:
            self._unfit = self._unfit or report
        return report

    def _is_lost(self, report: Report) -> bool:
        """Whether what failed left no image where one was."""
        return report.outcome is Outcome.FAILED and self._live.image_loaded() is False

    def _reload_unfit(self, before: Look, state: bytes) -> Look:
        """Reload an image that is torn or was lost, until that succeeds.

        The header of a torn image is right, and a lost one could have been unloaded by an administrator, so no later
        look would find anything to do.
        """
        outcome, reason = self._unfit or Report(Outcome.FAILED, "")
        verdict = before.verdict if before.verdict is Verdict.NO_IMAGE else Verdict.NOT_ACCURATE
        bad = replace(before, verdict=verdict, sentence=reason, strategy="in-place", outcome=outcome, action=reason)
        if self._strategy == "in-place" or self._gate.is_too_early(self._clock()):
            return bad
        look = self._reload(bad, state, reason)
        if look.outcome is Outcome.RELOADED:
            self._unfit = None
        return look

    def _reload(self, before: Look, state: bytes, reason: str) -> Look:
        report = self._reloading.run(reason, self._while_waiting)
        self._gate.tried(self._clock(), state, report.outcome is Outcome.RELOADED)
        if self._is_lost(report):
            self._unfit = self._unfit or report
        return self._after(before, "reload", report)

    def _update_in_place(self) -> Report:
        self._live.kexec_seconds = 0.0
        try:
            return run_patiently(
                update(self._live, Wants(may_unload=self._strategy == "auto"), self._say), self._patience
            )
        except CrashHotplugError as error:
            return Report(Outcome.FAILED, str(error))

    def _was_in_trouble(self) -> bool:
        """Whether the look before ended no better: what stood in the way may have been somebody else, for a moment."""
        last = self._last
        return last is not None and (last.failed or last.verdict is Verdict.CANNOT_TELL)

    def _after(self, before: Look, strategy: str, report: Report) -> Look:
        """Return the look after something was tried."""
        changed = report.outcome in (Outcome.UPDATED, Outcome.RELOADED)
        look = self._judge()[0] if changed else before
        seconds = self._live.kexec_seconds if strategy == "in-place" else 0.0
        return replace(look, strategy=strategy, outcome=report.outcome, action=report.sentence, kexec_seconds=seconds)

    def _judge(self) -> tuple[Look, bool]:
        """Judge the loaded image; also tell whether an update would leave its header as it is."""
        try:
            if self._live.image_loaded() is False:
                return self._no_image()
            with closing(self._live.observe()) as observation:
                if not observation.identity():
                    return self._no_image()
                image, machine = observation.image(), observation.machine()
                assessment = assess(machine, image)
                is_right = assessment.comparison.verdict is Verdict.ACCURATE and (
                    decide(image, machine, observation.read_phys).outcome is Outcome.UNCHANGED
                )
        except CrashHotplugError as error:
            return Look(Verdict.CANNOT_TELL, str(error), outcome=Outcome.CANNOT_TELL), False
        at = image.elfcorehdr_phys
        self._header_at = None if at is None else (at, assessment.header.size)
        left = None
        if assessment.room is not None:
            left = entries_that_fit(assessment.room) - len(assessment.header.program_headers)
        verdict, by_kernel = assessment.comparison.verdict, image.updated_by_kernel
        return Look(verdict, _sentence(assessment), room_left=left, by_kernel=by_kernel), is_right

    def _no_image(self) -> tuple[Look, bool]:
        self._header_at = None
        return Look(Verdict.NO_IMAGE, "a panic now leaves no dump", outcome=Outcome.NOT_LOADED), True

    def _state(self) -> bytes:
        """Return all that a header depends on and that can change: RAM and CPUs, as the kernel writes it."""
        files = [self._sysroot.read(name) or b"" for name in _FILES]
        return b"\0".join([*files, self._sysroot.read(iomem.PATH, LARGE) or b""])

    def _loaded(self) -> Loaded:
        with Kcore(self._sysroot) as kcore:
            identity = read_identity(self._sysroot, kcore)
            if not identity or self._header_at is None:
                return Loaded(identity, b"")
            return Loaded(identity, kcore.read_phys(*self._header_at))

    def _loaded_or_unknown(self) -> Loaded:
        """Return what is loaded; where kcore cannot be read, only whether something is."""
        try:
            return self._loaded()
        except CannotTellError:
            is_loaded = read_image_loaded(self._sysroot)
            return Loaded(b"unknown" if is_loaded else b"", b"")

    def _external_change(self, now: Loaded) -> str:
        """Return what another process did to the image since the last look."""
        if self._seen is None or self._last is None or now == self._seen[1]:
            return ""
        if not now.identity:
            return "another process unloaded the crash image"
        if now.identity == self._seen[1].identity and self._last.by_kernel:
            return ""  # the kernel's own handler changed the header
        return "another process loaded a crash image"


def _is_final(look: Look) -> bool:
    """Whether what stood in the way of an update, if anything, will stand there the next time too."""
    return look.outcome not in (Outcome.LOCK_BUSY, Outcome.FAILED)


def _sentence(assessment: Assessment) -> str:
    comparison = assessment.comparison
    if comparison.verdict is Verdict.ACCURATE:
        return "a panic now would be dumped completely"
    sentences = summarize(comparison.findings) or comparison.unchecked
    return sentences[0] + (f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else "")
