"""A rules file loses the reloads of a hot-plug, and only those."""

from __future__ import annotations

import pytest

from crash_hotplug.core.doctor.rules_without_reload import without_reload
from crash_hotplug.core.doctor.udev_rules import Surroundings, UEvent, parse_rules, reloads
from tests.family_trees import FAMILIES

RULES = (
    "debian/lib/udev/rules.d/50-kdump-tools.rules",
    "redhat/usr/lib/udev/rules.d/98-kexec.rules",
    "opensuse/usr/lib/kdump/70-kdump.rules",
)
EVENTS = [UEvent(s, a) for s in ("cpu", "memory") for a in ("add", "online", "offline", "remove")]


def starts_any(text: str) -> bool:
    around = Surroundings({"cpu": False, "memory": False}, lambda _path: "1\n")
    return any(reloads(parse_rules(text), event, around) for event in EVENTS)


@pytest.mark.parametrize("path", RULES)
def test_no_reload_is_left_of_any_familys_rules(path: str) -> None:
    text = (FAMILIES / path).read_text()
    assert starts_any(text)
    changed = without_reload(text, ["who wrote it"])
    assert not starts_any(changed)
    assert changed.startswith("# who wrote it\n")
    assert without_reload(changed, ()) == changed


def test_rules_that_do_other_things_stay_as_they_are() -> None:
    other = 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}="online"\nSUBSYSTEM=="net", RUN+="/bin/true"\n'
    reload = 'SUBSYSTEM=="cpu", ACTION=="add", PROGRAM="/usr/sbin/kdump-config try-reload"\n'
    assert without_reload(other, ()) == other
    assert without_reload(other + reload, ()) == f"{other}# {reload}"


def test_a_reload_that_other_devices_reach_too_stays_for_them() -> None:
    text = 'SUBSYSTEM=="block", GOTO="go"\nLABEL="go"\nRUN+="/usr/bin/kdumpctl reload"'
    changed = without_reload(text, ())
    assert not starts_any(changed)
    block = UEvent("block", "add")
    assert reloads(parse_rules(changed), block, Surroundings({}))


def test_a_rule_over_several_lines_becomes_a_comment_as_a_whole() -> None:
    text = (
        'SUBSYSTEM=="cpu", \\\n  ACTION=="add", \\\n  RUN+="/usr/bin/kdumpctl reload"\nSUBSYSTEM=="cpu", MODE="0600"\n'
    )
    changed = without_reload(text, ())
    assert changed == (
        '# SUBSYSTEM=="cpu",\n#   ACTION=="add",\n#   RUN+="/usr/bin/kdumpctl reload"\nSUBSYSTEM=="cpu", MODE="0600"\n'
    )
    assert not starts_any(changed)
