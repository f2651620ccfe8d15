# SPDX-License-Identifier: MIT
"""The forecast of one situation, changed in one point at a time."""

from __future__ import annotations

from dataclasses import replace

from crash_hotplug.core.doctor.forecast import Change, Situation, forecast, overall
from crash_hotplug.core.doctor.settings_files import Sandbox
from crash_hotplug.core.doctor.udev_rules import Reload, UEvent

RELOAD = Reload("/usr/lib/udev/rules.d/98-kexec.rules", 3, "RUN", "/usr/bin/kdumpctl reload", True)
EVENTS = [event for change in Change for event in change.events]
NOTHING = Situation(
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
UDEV = replace(NOTHING, reloads={event: [RELOAD] for event in EVENTS})
KERNEL = replace(NOTHING, kernel_updates={"cpu": True, "memory": True})
SERVICE = replace(NOTHING, service_active=True)


def reloads(reload: Reload) -> dict[UEvent, list[Reload]]:
    return {event: [reload] for event in EVENTS}


def handled(situation: Situation) -> dict[str, bool | None]:
    return {found.change.name: found.is_handled for found in forecast(situation)}


def verdict(situation: Situation) -> bool | None:
    return overall(situation, forecast(situation))


def sentences(situation: Situation) -> str:
    return " | ".join(found.sentence for found in forecast(situation))


def test_forecast_without_kernel_rule_and_service_is_not_handled() -> None:
    assert verdict(NOTHING) is False
    assert "nothing updates the header" in sentences(NOTHING)


def test_udev_reload_handles_every_change() -> None:
    assert verdict(UDEV) is True
    assert "/usr/lib/udev/rules.d/98-kexec.rules" in sentences(UDEV)


def test_sandbox_stops_a_reload_unless_systemd_runs_it() -> None:
    boxed = replace(UDEV, sandbox=Sandbox.NO_SYSTEM_CALL)
    assert verdict(boxed) is False
    assert "fails silently" in sentences(boxed)
    assert verdict(replace(UDEV, sandbox=Sandbox.ONE_SYSTEM_CALL)) is None
    outside = RELOAD._replace(program="systemd-run kdumpctl reload")
    assert verdict(replace(boxed, reloads=reloads(outside))) is True


def test_reload_that_asks_for_a_unit_depends_on_its_state() -> None:
    command = "/bin/sh -c 'systemctl is-active kdump.service || exit 0; systemd-run kdumpctl reload'"
    asks = replace(UDEV, reloads=reloads(RELOAD._replace(program=command)))
    assert verdict(replace(asks, active_units={"kdump.service": True})) is True
    assert verdict(replace(asks, active_units={"kdump.service": False})) is False
    assert verdict(replace(asks, active_units={"kdump.service": None})) is None


def test_certain_failure_of_a_reload_outweighs_a_possible_one() -> None:
    command = "systemctl is-active kdump.service || exit 0; kdumpctl reload"
    asks = replace(UDEV, sandbox=Sandbox.ONE_SYSTEM_CALL, reloads=reloads(RELOAD._replace(program=command)))
    assert verdict(asks) is None
    stopped = replace(asks, active_units={"kdump.service": False})
    assert verdict(stopped) is False
    assert "kdump.service is active, and it is not active" in sentences(stopped)


def test_uncertain_reload_is_cannot_tell() -> None:
    assert verdict(replace(UDEV, reloads=reloads(RELOAD._replace(certain=False)))) is None


def test_kernel_leaves_removed_memory_in_the_header() -> None:
    expected = {"CPU_ADDED": True, "CPU_REMOVED": True, "MEMORY_ADDED": True, "MEMORY_REMOVED": False}
    assert handled(KERNEL) == expected
    assert verdict(KERNEL) is False
    assert verdict(replace(KERNEL, service_active=True)) is True
    repaired = {event: [RELOAD] for event in Change.MEMORY_REMOVED.events}
    assert verdict(replace(KERNEL, reloads=repaired)) is True


def test_service_updates_in_place_else_reloads_else_fails() -> None:
    assert verdict(SERVICE) is True
    assert "in place" in sentences(SERVICE)
    refused = replace(SERVICE, in_place=False, in_place_reason="lockdown forbids it")
    assert verdict(refused) is False
    assert verdict(replace(refused, reload_tool="kdumpctl reload")) is True
    assert "lockdown forbids it" in sentences(replace(refused, reload_tool="kdumpctl reload"))
    assert verdict(replace(SERVICE, in_place=None)) is True


def test_udev_reload_beside_the_service_is_reported() -> None:
    assert "udev reloads the whole image as well" in sentences(replace(UDEV, service_active=True))
    assert "as well" not in sentences(SERVICE)
    boxed = replace(UDEV, service_active=True, sandbox=Sandbox.NO_SYSTEM_CALL)
    assert verdict(boxed) is True
    assert "fails silently" in sentences(boxed)


def test_kernel_alone_can_update_where_nothing_may_be_loaded() -> None:
    forbidden = replace(UDEV, service_active=True, nothing_loads="kernel.kexec_load_disabled forbids it")
    assert verdict(forbidden) is False
    assert "kexec_load_disabled" in sentences(forbidden)
    assert handled(replace(forbidden, kernel_updates=KERNEL.kernel_updates))["CPU_ADDED"] is True


def test_header_with_every_possible_cpu_needs_no_update_for_one() -> None:
    found = handled(replace(NOTHING, describes_all_cpus=True))
    assert found == {"CPU_ADDED": True, "CPU_REMOVED": True, "MEMORY_ADDED": False, "MEMORY_REMOVED": False}


def test_capture_kernel_that_claims_dimms_loses_added_memory() -> None:
    found = handled(replace(SERVICE, capture_kernel_claims_dimms=True))
    assert found == {"CPU_ADDED": True, "CPU_REMOVED": True, "MEMORY_ADDED": False, "MEMORY_REMOVED": True}


def test_unknown_facts_are_not_guessed() -> None:
    assert verdict(replace(SERVICE, image_loaded=None)) is None
    assert verdict(replace(NOTHING, rules_known=False)) is None
    assert verdict(replace(NOTHING, service_active=None)) is None
    assert verdict(replace(NOTHING, reloads={UEvent("cpu", "add"): []})) is False


def test_memory_that_the_kernel_leaves_in_the_header_is_named() -> None:
    removed = next(found for found in forecast(KERNEL) if found.change is Change.MEMORY_REMOVED)
    assert removed[1:] == (False, "the kernel leaves it in the header, and nothing else removes it")


def test_sandbox_without_the_capability_lets_no_reload_work() -> None:
    assert set(handled(replace(UDEV, sandbox=Sandbox.NO_CAPABILITY)).values()) == {False}


def test_reload_of_an_image_with_volume_keys_may_fail() -> None:
    """A reload needs the keys again (kdumpctl's prepare_luks()); an update by the kernel keeps them."""
    assert verdict(replace(UDEV, hands_over_keys=True)) is None
    assert "asks for the volume keys again" in sentences(replace(UDEV, hands_over_keys=True))
    only_a_reload = replace(
        SERVICE, in_place=False, in_place_reason="the image hands LUKS keys", reload_tool="kdumpctl reload"
    )
    assert verdict(only_a_reload) is True
    assert verdict(replace(only_a_reload, hands_over_keys=True)) is None
    assert "reloads the image (kdumpctl reload)" in sentences(replace(only_a_reload, hands_over_keys=True))
    by_kernel = replace(only_a_reload, hands_over_keys=True, kernel_updates={"cpu": True, "memory": True})
    assert handled(by_kernel) == {"CPU_ADDED": True, "CPU_REMOVED": True, "MEMORY_ADDED": True, "MEMORY_REMOVED": None}


def test_reload_in_a_transient_unit_needs_the_sudo_that_kdumpctl_calls() -> None:
    transient = RELOAD._replace(program="/usr/bin/systemd-run --quiet --no-block /usr/lib/udev/kdump-udev-throttler")
    for reload, expected in ((transient, False), (RELOAD, True)):  # kdump.service has root's user keyring
        assert verdict(replace(UDEV, reloads=reloads(reload), lacks_sudo=True)) is expected
    assert "leaves no image loaded" in sentences(replace(UDEV, reloads=reloads(transient), lacks_sudo=True))
    assert verdict(replace(UDEV, reloads=reloads(transient))) is True


def test_capture_kernel_that_refuses_added_cpus_loses_the_dump_of_a_panic_there() -> None:
    situation = replace(SERVICE, capture_kernel_refuses_added_cpus=True)
    assert handled(situation) == {**handled(SERVICE), "CPU_ADDED": False}
    assert "a panic on an added CPU leaves no dump" in sentences(situation)
    assert handled(replace(SERVICE, capture_kernel_refuses_added_cpus=None)) == handled(SERVICE)
