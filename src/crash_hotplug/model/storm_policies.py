"""What systems do when a storm of memory blocks arrives: four policies.

Whatever a reload or an update describes is what was in /proc/iomem when it began; what comes later needs another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

from crash_hotplug.model.storm import ImageState, StormGuest, StormPolicy, Work

THROTTLE_SLEEP = 1.0
"""Seconds that RHEL 8's kdump-udev-throttler sleeps (``sleep 1``)."""
SETTLE_TIMEOUT = 3.0
"""Seconds after which its ``udevadm settle --timeout 3`` gives up."""


class ReloadPerEvent:
    """RHEL 7's 98-kexec.rules: ``systemd-run kdumpctl reload`` for each block that goes online.

    udev does not wait for it.  kdumpctl holds its lock, so reloads queue up and run one after the other, every one
    of them, whether there is anything left to describe or not.  Debian's and Ubuntu's rules reload per event too, but
    inside udev's rule.
    """

    name = "reload"
    title = "reload per event (RHEL 7)"

    def __init__(self, guest: StormGuest) -> None:
        """Answer the events of *guest*."""
        self.work = Work()
        self._guest = guest
        self._queued = 0
        self._described = 0

    def on_plugged(self) -> None:
        """Do nothing: the rule matches ACTION=="online" only."""

    def on_online(self) -> float:
        """Queue a reload."""
        self._request_reload()
        return 0.0

    def _request_reload(self) -> None:
        self._queued += 1
        if self._queued == 1:
            self._start()

    def _start(self) -> None:
        costs = self._guest.costs
        self._guest.schedule.after(costs.reload.value * (1 - costs.reload_gap.value), self._unload)

    def _unload(self) -> None:
        self._guest.remove_image()
        self._described = self._guest.plugged
        costs = self._guest.costs
        self._guest.schedule.after(costs.reload.value * costs.reload_gap.value, self._load)

    def _load(self) -> None:
        self._guest.install_image(self._described)
        self.work.replacements += 1
        self.work.busy += self._guest.costs.reload.value
        self._queued -= 1
        if self._queued:
            self._start()


class ThrottledReload(ReloadPerEvent):
    """RHEL 8's kdump-udev-throttler, on kernels that do not update the header themselves.

    The first event takes a lock (events that find it taken go away), sleeps 1 s, waits up to 3 s for udev's queue to
    drain, gives the lock back and only then reloads; so an event during the reload starts the next round.
    """

    name = "throttled"
    title = "throttled reload (RHEL 8)"

    def __init__(self, guest: StormGuest) -> None:
        """Answer the events of *guest*."""
        super().__init__(guest)
        self._is_locked = False
        self._timeout = 0

    def on_online(self) -> float:
        """Begin a round unless one is under way."""
        if not self._is_locked:
            self._is_locked = True
            self._guest.schedule.after(THROTTLE_SLEEP, self._settle)
        return 0.0

    def _settle(self) -> None:
        self._timeout = self._guest.schedule.after(SETTLE_TIMEOUT, self._finish_round)
        self._guest.when_udev_is_idle(self._drained)

    def _drained(self) -> None:
        self._guest.schedule.cancel(self._timeout)
        self._finish_round()

    def _finish_round(self) -> None:
        self._guest.forget_udev_waiter(self._drained)
        self._is_locked = False
        self._request_reload()


class MergedHandler:
    """The handler in Linux 6.6 and newer (crash_handle_hotplug_event, on MEM_ONLINE).

    It runs inside the notifier, so the next block waits for it, and it takes the image out while it works.  It
    rebuilds the header for each block, also where a whole DIMM was described by the first.
    """

    name = "merged"
    title = "merged: in the kernel (6.6+)"

    def __init__(self, guest: StormGuest) -> None:
        """Answer the events of *guest*."""
        self.work = Work()
        self._guest = guest

    def on_plugged(self) -> None:
        """Do nothing: no notifier runs at the add, only at MEM_ONLINE."""

    def on_online(self) -> float:
        """Rebuild the header while the guest waits."""
        seconds = self._guest.costs.kernel_update.value
        described = self._guest.plugged
        self._guest.remove_image()
        self._guest.schedule.after(seconds, lambda: self._guest.install_image(described))
        self.work.replacements += 1
        self.work.busy += seconds
        return seconds


class InPlaceUpdate:
    """What crash-hotplug does: look at the machine after an event, replace the header if it would change.

    Level-triggered: whatever comes while it looks or updates makes it look once more, however many events it was.
    """

    name = "in-place"
    title = "in-place (crash-hotplug)"

    def __init__(self, guest: StormGuest) -> None:
        """Answer the events of *guest*."""
        self.work = Work()
        self.looks = 0
        self._guest = guest
        self._is_working = False
        self._look_again = False

    def on_plugged(self) -> None:
        """Look: each block of the DIMM has an "add" uevent."""
        self._wake()

    def on_online(self) -> float:
        """Look, in user space: the guest does not wait."""
        self._wake()
        return 0.0

    def _wake(self) -> None:
        if self._is_working:
            self._look_again = True
        else:
            self._look()

    def _look(self) -> None:
        self._is_working, self._look_again = True, False
        self.looks += 1
        seconds = self._guest.costs.in_place_look.value
        self.work.busy += seconds
        seen = self._guest.plugged
        needed = self._guest.state is not ImageState.ACCURATE
        self._guest.schedule.after(seconds, lambda: self._update(seen) if needed else self._rest())

    def _update(self, seen: int) -> None:
        seconds = self._guest.costs.in_place_update.value
        self._guest.remove_image()
        self.work.replacements += 1
        self.work.busy += seconds
        self._guest.schedule.after(seconds, lambda: self._install(seen))

    def _install(self, seen: int) -> None:
        self._guest.install_image(seen)
        self._rest()

    def _rest(self) -> None:
        self._is_working = False
        if self._look_again:
            self._look()


POLICIES: Mapping[str, Callable[[StormGuest], StormPolicy]] = {
    ReloadPerEvent.name: ReloadPerEvent,
    ThrottledReload.name: ThrottledReload,
    MergedHandler.name: MergedHandler,
    InPlaceUpdate.name: InPlaceUpdate,
}
"""Every policy by its name, in the order in which results are shown."""
