"""What the run of a full Debian guest takes from udev's and the journal's own words."""

from __future__ import annotations

import pytest

from crash_hotplug.lab import distro_judge

JOURNAL = """\
[   99.000000] guest kdump-config[1]: loaded kdump kernel
[  121.944169] guest kdump-config[2039]: failed to unload kdump kernel
[  124.200000] guest crash-hotplug[300]: memory32 online: in-place: updated: the header lacked memory (35 ms)
[  125.700000] guest crash-hotplug[300]: cpu2 add, cpu2 online: nothing to do (20 ms)
                             a line that goes on
"""

MONITOR = {
    "online": """\
KERNEL[124.000000] online   /devices/system/memory/memory32 (memory)
KERNEL[125.200000] online   /devices/system/cpu/cpu2 (cpu)
""",
    "change": """\
monitor will print the received events for:
KERNEL[124.000000] online   /devices/system/memory/memory32 (memory)
KERNEL[125.200000] change   /devices/system/memory/memory32 (memory)
""",
    "later": "KERNEL[126.000000] online   /devices/system/memory/memory33 (memory)\n",
}


def test_journal_from_a_time_on() -> None:
    lines = distro_judge.journal_since(JOURNAL, 100.0)
    assert [at for at, _ in lines] == [121.944169, 124.2, 125.7]


@pytest.mark.parametrize(
    ("last", "seconds"), [("online", 0.5), ("change", 0.2), ("later", None)], ids=["cpu", "not-ours", "unanswered"]
)
def test_seconds_until_the_last_event_was_dealt_with(last: str, seconds: float | None) -> None:
    events = distro_judge.parse_events(MONITOR[last])
    found = distro_judge.seconds_until_right(events, distro_judge.journal_since(JOURNAL, 100.0))
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_events_that_debians_rule_is_about() -> None:
    events = distro_judge.parse_events(MONITOR["change"])
    assert [(event.device, event.is_debians) for event in events] == [("memory32", True), ("memory32", False)]


def test_what_kdump_config_did() -> None:
    lines = distro_judge.journal_since(JOURNAL, 0.0)
    assert distro_judge.reloads(lines) == distro_judge.Reloads(unloaded=0, loaded=1, failed=1)
