"""What the run of a full Debian guest takes from udev's and the journal's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug_lab.distro import distro_judge, sides
from crash_hotplug_lab.qemu.results import Moment, Result

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


def result_at(verdict: str) -> Result:
    result = Result("debian-guest", "t", "debian-12", "6.1", "6.1", "kdump-tools", "with")
    result.moments.append(Moment("before-panic", 0.0, verdict, "a reason"))
    return result


def trees(tmp_path: Path, before: bytes, after: bytes) -> tuple[Path, Path]:
    for name, header in (("loaded", before), ("before-panic", after)):
        (tmp_path / name / "crash-image").mkdir(parents=True)
        (tmp_path / name / "crash-image/elfcorehdr").write_bytes(header)
    return tmp_path / "loaded", tmp_path / "before-panic"


@pytest.mark.parametrize(
    ("side", "after", "verdict", "outcome"),
    [
        (sides.WITHOUT, b"old", "not accurate", "pass"),
        (sides.WITHOUT, b"new", "not accurate", "fail"),  # nobody can have written it
        (sides.WITHOUT, b"old", "accurate", "fail"),
        (sides.WITH, b"new", "accurate", "fail"),  # Debian's rule was still there
        (sides.RELOAD, b"new", "accurate", "fail"),
        (sides.LAST_RESORT, b"new", "accurate", "fail"),
    ],
)
def test_one_failed_reload_for_one_event(tmp_path: Path, side: str, after: bytes, verdict: str, outcome: str) -> None:
    journal = distro_judge.journal_since(JOURNAL, 100.0)
    events = distro_judge.parse_events(MONITOR["change"])
    result = result_at(verdict)
    distro_judge.judge_hotplug(result, side, events, journal, trees(tmp_path, b"old", after))
    distro_judge.conclude(result, side, storm=True)
    assert result.outcome == outcome, result.reason


def test_no_reload_and_a_header_that_is_right_at_once(tmp_path: Path) -> None:
    journal = [(at, line) for at, line in distro_judge.journal_since(JOURNAL, 100.0) if "kdump-config" not in line]
    result = result_at("accurate")
    events = distro_judge.parse_events(MONITOR["online"])
    distro_judge.judge_hotplug(result, sides.WITH, events, journal, trees(tmp_path, b"old", b"new"))
    distro_judge.conclude(result, sides.WITH, storm=True)
    assert result.outcome == "pass", result.reason


@pytest.mark.parametrize(
    ("said", "outcome"), [("Can't read the dump memory(/proc/vmcore). Bad address", "fault"), ("", "fail")]
)
def test_a_dump_that_breaks_off(tmp_path: Path, said: str, outcome: str) -> None:
    (tmp_path / "serial.log").write_text(f"write_elf_load_segment: {said}\n")
    result = result_at("accurate")
    distro_judge.judge_broken_dump(result, tmp_path / "serial.log")
    distro_judge.conclude(result, sides.RULE, storm=False)
    assert result.outcome == outcome
