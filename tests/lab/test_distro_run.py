"""What the run of a full Debian guest takes from udev's and the journal's own words."""

from __future__ import annotations

import pytest

from crash_hotplug.lab import distro_run

JOURNAL = """\
[   99.000000] guest kdump-config[1]: loaded kdump kernel
[  121.944169] guest kdump-config[2039]: failed to unload kdump kernel
[  124.200000] guest crash-hotplug[300]: memory32 online: in-place: updated: the header lacked memory (35 ms)
[  125.700000] guest crash-hotplug[300]: cpu2 add, cpu2 online: nothing to do (20 ms)
                             a line that goes on
"""


def test_journal_from_a_time_on() -> None:
    lines = distro_run.journal_since(JOURNAL, 100.0)
    assert [at for at, _ in lines] == [121.944169, 124.2, 125.7]


@pytest.mark.parametrize(
    ("last", "seconds"), [("online", 0.5), ("change", 0.2), ("later", None)], ids=["cpu", "not-ours", "unanswered"]
)
def test_seconds_until_the_last_event_was_dealt_with(last: str, seconds: float | None) -> None:
    events = {
        "online": [(124.0, "online", "memory32"), (125.2, "online", "cpu2")],
        "change": [(124.0, "online", "memory32"), (125.2, "change", "memory32")],
        "later": [(126.0, "online", "memory33")],
    }[last]
    found = distro_run.seconds_until_right(events, distro_run.journal_since(JOURNAL, 100.0))
    assert found == (None if seconds is None else pytest.approx(seconds))
