# SPDX-License-Identifier: MIT
"""The judge of a full guest: uevents as udevadm prints them, the journal, the kexec calls, the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug_lab.distro import judge, sides
from crash_hotplug_lab.distro.family import DEBIAN, RED_HAT, SUSE, Family
from crash_hotplug_lab.distro.kexec_calls import KexecCall
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
    "add": "KERNEL[125.500000] add      /devices/system/cpu/cpu2 (cpu)\n",
    "change": """\
monitor will print the received events for:
KERNEL[124.000000] online   /devices/system/memory/memory32 (memory)
KERNEL[125.200000] change   /devices/system/memory/memory32 (memory)
""",
    "later": "KERNEL[126.000000] online   /devices/system/memory/memory33 (memory)\n",
}


def test_journal_is_cut_at_a_time() -> None:
    lines = judge.journal_since(JOURNAL, 100.0)
    assert [at for at, _ in lines] == [121.944169, 124.2, 125.7]


def recorded(
    monitor: str,
    journal: list[tuple[float, str]] | None = None,
    calls: list[KexecCall] | None = None,
    family: Family = DEBIAN,
) -> judge.Recorded:
    lines = judge.journal_since(JOURNAL, 100.0) if journal is None else journal
    return judge.Recorded(family, judge.parse_events(MONITOR[monitor]), lines, calls or [], 2.0)


@pytest.mark.parametrize(
    ("last", "seconds"), [("online", 0.5), ("change", 0.2), ("later", None)], ids=["cpu", "not-ours", "unanswered"]
)
def test_seconds_until_right_counts_from_the_last_event_of_debians_rule(last: str, seconds: float | None) -> None:
    found = recorded(last).seconds_until_right
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("family", "device", "action", "reacts"),
    [
        (DEBIAN, "memory32", "online", True),
        (DEBIAN, "memory32", "change", False),
        (DEBIAN, "cpu2", "online", True),
        (RED_HAT, "cpu2", "add", True),
        (RED_HAT, "cpu2", "online", False),
        (SUSE, "memory32", "add", True),
        (SUSE, "memory32", "online", False),
        (SUSE, "cpu2", "add", False),
    ],
)
def test_uevents_of_each_familys_rule_are_told_from_others(
    family: Family, device: str, action: str, reacts: bool
) -> None:
    assert family.reacts_to(device, action) is reacts


RELOAD = [KexecCall("kexec", 124.2, 124.3, False, True), KexecCall("kexec", 124.9, 126.2, True, True)]
"""An unload, and a load that began before the event of the CPU."""


def test_reloads_are_counted_from_the_journal_and_the_calls() -> None:
    ours = KexecCall("python3", 123.0, 123.1, True, True)
    found = recorded("online", judge.journal_since(JOURNAL, 0.0), [*RELOAD, ours]).reloads
    assert found == judge.Reloads(unloaded=1, loaded=1, failed=1)


@pytest.mark.parametrize(
    ("side", "figures"),
    [
        (sides.WITHOUT, "2 events for the rule; kexec unloaded 1 times and loaded 1 times; 1 reloads failed; stale to "
                        "the end; 2.000 s without an image; 2.0 s of CPU time"),
        (sides.WITH, "2 events for the rule; kexec unloaded 1 times and loaded 1 times; 1 reloads failed; stale for "
                     "0.70 s; 2.000 s without an image; 2.0 s of CPU time"),
    ],
)  # fmt: skip
def test_figures_of_a_side(side: str, figures: str) -> None:
    assert recorded("online", calls=RELOAD).figures(side) == figures


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
        (sides.WITHOUT, b"new", "not accurate", "fail"),  # the rule's reload failed, so nothing can have written it
        (sides.WITHOUT, b"old", "accurate", "fail"),
        (sides.WITH, b"new", "accurate", "fail"),  # Debian's rule was still there
        (sides.RELOAD, b"new", "accurate", "fail"),
        (sides.LAST_RESORT, b"new", "accurate", "fail"),
    ],
)
def test_judge_hotplug_of_one_failed_reload_for_one_event(
    tmp_path: Path, side: str, after: bytes, verdict: str, outcome: str
) -> None:
    result = result_at(verdict)
    judge.judge_hotplug(result, side, recorded("change"), trees(tmp_path, b"old", after))
    judge.conclude(result, side, storm=True)
    assert result.outcome == outcome, result.reason


def test_judge_hotplug_of_the_service_without_a_reload(tmp_path: Path) -> None:
    journal = [(at, line) for at, line in judge.journal_since(JOURNAL, 100.0) if "kdump-config" not in line]
    result = result_at("accurate")
    judge.judge_hotplug(result, sides.WITH, recorded("online", journal), trees(tmp_path, b"old", b"new"))
    judge.conclude(result, sides.WITH, storm=True)
    assert result.outcome == "pass", result.reason


@pytest.mark.parametrize(
    ("side", "late", "outcome"),
    [(sides.WITH, 0.9, "pass"), (sides.WITH, 1.1, "fail"), (sides.LOCKS, 1.1, "pass"), (sides.LOCKS, 16.0, "fail")],
)
def test_judge_hotplug_allows_the_service_more_time_after_a_race(
    tmp_path: Path, side: str, late: float, outcome: str
) -> None:
    journal = [(125.2 + late, "guest crash-hotplug[300]: cpu2 online: nothing to do (20 ms)")]
    result = result_at("accurate")
    judge.judge_hotplug(result, side, recorded("online", journal), trees(tmp_path, b"old", b"new"))
    judge.conclude(result, side, storm=True)
    assert result.outcome == outcome, result.reason


@pytest.mark.parametrize(("ended", "outcome"), [(126.0, "pass"), (125.0, "fail")], ids=["after", "before"])
def test_judge_hotplug_of_a_rule_that_works_wants_a_reload_after_the_last_event(
    tmp_path: Path, ended: float, outcome: str
) -> None:
    calls = [KexecCall("kexec", 124.5, ended, True, True)]
    result = result_at("accurate")
    given = recorded("add", [], calls, RED_HAT)
    judge.judge_hotplug(result, sides.WITHOUT, given, trees(tmp_path, b"old", b"new"))
    judge.conclude(result, sides.WITHOUT, storm=True, family=RED_HAT)
    assert result.outcome == outcome, result.reason


@pytest.mark.parametrize(
    ("said", "outcome"), [("Can't read the dump memory(/proc/vmcore). Bad address", "fault"), ("", "fail")]
)
def test_judge_broken_dump_finds_bad_address(tmp_path: Path, said: str, outcome: str) -> None:
    (tmp_path / "serial.log").write_text(f"write_elf_load_segment: {said}\n")
    result = result_at("accurate")
    judge.judge_broken_dump(result, tmp_path / "serial.log")
    judge.conclude(result, sides.RULE, storm=False)
    assert result.outcome == outcome


UNLOAD = [KexecCall("kexec", 124.2, 124.3, False, True)]


@pytest.mark.parametrize(
    ("family", "calls", "after", "outcome"),
    [
        (RED_HAT, [], b"new", "pass"),
        (RED_HAT, UNLOAD, b"new", "fail"),  # a rule that yields to the kernel reloads nothing
        (RED_HAT, [], b"old", "fail"),
        (SUSE, [], b"new", "pass"),
        (DEBIAN, [], b"new", "fault"),  # its rule tries and fails, and its capture kernel adds the DIMMs to itself
        (DEBIAN, UNLOAD, b"new", "fail"),
    ],
)
def test_judge_hotplug_of_a_kernel_that_updates_the_header_itself(
    tmp_path: Path, family: Family, calls: list[KexecCall], after: bytes, outcome: str
) -> None:
    lines = judge.journal_since(JOURNAL, 100.0) if family is DEBIAN else []
    given = judge.Recorded(family, judge.parse_events(MONITOR["add"]), lines, calls, 2.0, kernel_updates=True)
    result = result_at("accurate")
    judge.judge_hotplug(result, sides.WITHOUT, given, trees(tmp_path, b"old", after))
    judge.conclude(result, sides.WITHOUT, False, family, kernel_updates=True)
    assert result.outcome == outcome, result.reason
    assert "the kernel updates the header" in given.figures(sides.WITHOUT)


def test_judge_hotplug_of_a_corrected_rule_wants_a_reload_for_every_event(tmp_path: Path) -> None:
    calls = [KexecCall("kexec", 125.6, 125.7, False, True), KexecCall("kexec", 125.7, 126.2, True, True)]
    for made, outcome in ((calls, "pass"), (calls[:1], "fail")):
        result = result_at("accurate")
        judge.judge_hotplug(result, sides.CORRECTED, recorded("add", [], made), trees(tmp_path, b"old", b"new"))
        judge.conclude(result, sides.CORRECTED, storm=False)
        assert result.outcome == outcome, result.reason
        tmp_path /= "again"


@pytest.mark.parametrize(("succeeded", "outcome"), [(True, "pass"), (False, "fail")])
def test_judge_hotplug_of_opensuses_rule_takes_a_queued_job_for_no_failure(
    tmp_path: Path, succeeded: bool, outcome: str
) -> None:
    queued = [(125.6, "cpu2: Process '/usr/lib/kdump/load-once.sh' failed with exit code 1.")]
    calls = [KexecCall("kexec", 125.6, 126.0, True, succeeded), KexecCall("kexec", 126.1, 126.5, True, True)]
    result = result_at("accurate")
    given = recorded("add", queued, calls, SUSE)
    judge.judge_hotplug(result, sides.RULE, given, trees(tmp_path, b"old", b"new"))
    judge.conclude(result, sides.RULE, storm=True, family=SUSE)
    assert result.outcome == outcome, result.reason
