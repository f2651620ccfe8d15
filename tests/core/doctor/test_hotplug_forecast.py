"""Who reacts to a hot-plug, and does it work?  One situation, changed in one point at a time."""

from __future__ import annotations

from dataclasses import replace

from crash_hotplug.core.doctor.hotplug_forecast import Change, RuleStart, Situation, forecast, overall
from crash_hotplug.core.doctor.udev_rules import Start, UEvent
from crash_hotplug.core.doctor.unit_file import Sandbox

RELOAD = RuleStart("/usr/lib/udev/rules.d/98-kexec.rules", Start("/usr/bin/kdumpctl reload", 3, "RUN", True))
EVENTS = [event for change in Change for event in change.events]
NOBODY = Situation(
    image_loaded=True,
    kernel_updates={"cpu": None, "memory": None},
    describes_all_cpus=False,
    service_active=False,
    in_place=True,
    in_place_reason=None,
    nothing_loads=None,
    reload_tool=None,
    reloads={},
    rules_known=True,
    sandbox=Sandbox.OPEN,
    active_units={},
    capture_kernel_claims_dimms=False,
)
UDEV = replace(NOBODY, reloads={event: [RELOAD] for event in EVENTS})
KERNEL = replace(NOBODY, kernel_updates={"cpu": True, "memory": True})
SERVICE = replace(NOBODY, service_active=True)


def handled(situation: Situation) -> dict[str, bool | None]:
    return {outcome.change.name: outcome.is_handled for outcome in forecast(situation)}


def verdict(situation: Situation) -> bool | None:
    return overall(situation, forecast(situation))


def sentences(situation: Situation) -> str:
    return " | ".join(outcome.sentence for outcome in forecast(situation))


def test_nobody_reacts() -> None:
    assert verdict(NOBODY) is False
    assert "nothing reacts" in sentences(NOBODY)


def test_udevs_reload_works() -> None:
    assert verdict(UDEV) is True
    assert "/usr/lib/udev/rules.d/98-kexec.rules" in sentences(UDEV)


def test_the_sandbox_stops_a_reload_but_not_one_that_leaves_it() -> None:
    boxed = replace(UDEV, sandbox=Sandbox.NO_SYSTEM_CALL)
    assert verdict(boxed) is False
    assert "fails silently" in sentences(boxed)
    assert verdict(replace(UDEV, sandbox=Sandbox.ONE_SYSTEM_CALL)) is None
    outside = RuleStart(RELOAD.path, Start("systemd-run kdumpctl reload", 3, "RUN", True))
    assert verdict(replace(boxed, reloads={event: [outside] for event in EVENTS})) is True


def test_a_reload_that_asks_for_a_unit() -> None:
    command = "/bin/sh -c 'systemctl is-active kdump.service || exit 0; systemd-run kdumpctl reload'"
    asks = replace(UDEV, reloads={event: [RuleStart("x", Start(command, 1, "RUN", True))] for event in EVENTS})
    assert verdict(replace(asks, active_units={"kdump.service": True})) is True
    assert verdict(replace(asks, active_units={"kdump.service": False})) is False
    assert verdict(replace(asks, active_units={"kdump.service": None})) is None


def test_a_reload_that_is_only_possible_is_cannot_tell() -> None:
    perhaps = RuleStart("x", Start("kdumpctl reload", 1, "RUN", False))
    assert verdict(replace(UDEV, reloads={event: [perhaps] for event in EVENTS})) is None


def test_the_kernels_handler_leaves_removed_memory_in_the_header() -> None:
    expected = {"CPU_ADDED": True, "CPU_REMOVED": True, "MEMORY_ADDED": True, "MEMORY_REMOVED": False}
    assert handled(KERNEL) == expected
    assert verdict(KERNEL) is False
    assert verdict(replace(KERNEL, service_active=True)) is True
    repaired = {event: [RELOAD] for event in Change.MEMORY_REMOVED.events}
    assert verdict(replace(KERNEL, reloads=repaired)) is True


def test_the_service_updates_in_place_else_reloads_else_fails() -> None:
    assert verdict(SERVICE) is True
    assert "in place" in sentences(SERVICE)
    refused = replace(SERVICE, in_place=False, in_place_reason="lockdown forbids it")
    assert verdict(refused) is False
    assert verdict(replace(refused, reload_tool="kdumpctl reload")) is True
    assert "lockdown forbids it" in sentences(replace(refused, reload_tool="kdumpctl reload"))
    assert verdict(replace(SERVICE, in_place=None)) is True


def test_the_service_and_udev_at_once_are_told() -> None:
    assert "udev reloads the whole image as well" in sentences(replace(UDEV, service_active=True))
    assert "as well" not in sentences(SERVICE)
    boxed = replace(UDEV, service_active=True, sandbox=Sandbox.NO_SYSTEM_CALL)
    assert verdict(boxed) is True
    assert "fails silently" in sentences(boxed)


def test_where_nothing_may_be_loaded_only_the_kernel_helps() -> None:
    forbidden = replace(UDEV, service_active=True, nothing_loads="kernel.kexec_load_disabled forbids it")
    assert verdict(forbidden) is False
    assert "kexec_load_disabled" in sentences(forbidden)
    assert handled(replace(forbidden, kernel_updates=KERNEL.kernel_updates))["CPU_ADDED"] is True


def test_a_header_with_every_possible_cpu_needs_no_update_for_one() -> None:
    found = handled(replace(NOBODY, describes_all_cpus=True))
    assert found == {"CPU_ADDED": True, "CPU_REMOVED": True, "MEMORY_ADDED": False, "MEMORY_REMOVED": False}


def test_a_capture_kernel_that_takes_dimms_for_itself_loses_them() -> None:
    found = handled(replace(SERVICE, capture_kernel_claims_dimms=True))
    assert found == {"CPU_ADDED": True, "CPU_REMOVED": True, "MEMORY_ADDED": False, "MEMORY_REMOVED": True}


def test_what_is_not_known_is_not_guessed() -> None:
    assert verdict(replace(SERVICE, image_loaded=None)) is None
    assert verdict(replace(NOBODY, rules_known=False)) is None
    assert verdict(replace(NOBODY, service_active=None)) is None
    assert verdict(replace(NOBODY, reloads={UEvent("cpu", "add"): []})) is False
