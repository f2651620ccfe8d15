"""Which reload does an event start?  Small rules files, one question each."""

from __future__ import annotations

import pytest

from crash_hotplug.core.doctor.udev_rules import Start, Surroundings, UEvent, mentions_reload, parse_rules, reloads
from tests.family_trees import FAMILIES

ADD = UEvent("cpu", "add")
RUN = 'RUN+="/usr/bin/kdumpctl reload"'
NOWHERE = Surroundings({"cpu": None, "memory": None})
EVENTS = [UEvent(s, a) for s in ("cpu", "memory") for a in ("add", "online", "offline", "remove")]


def started(text: str, event: UEvent = ADD, around: Surroundings = NOWHERE) -> list[Start]:
    return reloads(parse_rules(text), event, around)


def certain(text: str, event: UEvent = ADD, around: Surroundings = NOWHERE) -> list[bool]:
    return [start.certain for start in started(text, event, around)]


def events_of(family: str, path: str, crash_hotplug: bool | None) -> list[str]:
    text = (FAMILIES / family / path).read_text()
    around = Surroundings({"cpu": crash_hotplug, "memory": crash_hotplug}, lambda _path: "1\n")
    return [f"{event.subsystem} {event.action}" for event in EVENTS if certain(text, event, around) == [True]]


def test_debians_rule_reloads_whatever_the_kernel_does() -> None:
    expected = ["cpu add", "cpu online", "cpu remove", "memory online", "memory offline"]
    for says in (None, False, True):
        assert events_of("debian", "lib/udev/rules.d/50-kdump-tools.rules", says) == expected


def test_red_hats_rule_stands_back_where_the_kernel_does_the_work() -> None:
    path = "usr/lib/udev/rules.d/98-kexec.rules"
    expected = ["cpu add", "cpu remove", "memory online", "memory offline"]
    assert events_of("redhat", path, None) == events_of("redhat", path, False) == expected
    assert events_of("redhat", path, True) == []


def test_red_hats_reload_leaves_the_sandbox_and_asks_for_a_unit() -> None:
    start = started((FAMILIES / "redhat/usr/lib/udev/rules.d/98-kexec.rules").read_text())[0]
    assert (start.escapes_sandbox, start.needs_active, start.line) == (True, "kdump.service", 11)


def test_opensuses_rule_knows_memory_only_and_asks_for_a_loaded_image() -> None:
    path = "usr/lib/kdump/70-kdump.rules"
    assert events_of("opensuse", path, False) == ["memory add", "memory remove"]
    assert events_of("opensuse", path, True) == []
    text = (FAMILIES / "opensuse" / path).read_text()
    assert started(text, UEvent("memory", "add"), Surroundings({"memory": False}, lambda _path: "0\n")) == []


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (f'SUBSYSTEM=="cpu", ACTION=="add", {RUN}', [True]),
        (f'SUBSYSTEM=="cpu|memory", {RUN}', [True]),
        (f'SUBSYSTEM=="c*", {RUN}', [True]),
        (f'SUBSYSTEM!="cpu", {RUN}', []),
        (f'SUBSYSTEM=="memory", {RUN}', []),
        (f'ACTION!="remove", {RUN}', [True]),
        (f'KERNEL=="cpu[0-9]*", {RUN}', [True]),
        (f'KERNEL=="cpu0", {RUN}', [False]),
        (f'KERNEL=="sda", {RUN}', []),
        (f'ENV{{KDUMP}}=="yes", {RUN}', [False]),
        (f'TEST=="/etc/kdump.conf", {RUN}', []),
        (f'CONST{{arch}}=="x86-64", {RUN}', [True]),
        (f'CONST{{arch}}=="ppc64le", {RUN}', []),
        ('RUN+="/bin/true"', []),
        ('IMPORT{program}="/usr/sbin/kdump-config try-reload"', [True]),
        ('ENV{SYSTEMD_WANTS}+="kdump-reload.service"', [True]),
        ('RUN+="/bin/systemctl try-restart kdump.service"', [True]),
        (f"# {RUN}", []),
        (f'{RUN}, RUN-="/usr/bin/kdumpctl reload"', [True]),
        (f'{RUN}\nRUN:="/bin/true"', []),
        (f'SUBSYSTEM=="cpu", \\\n  ACTION=="add", {RUN}', [True]),
        (f"this is no rule, {RUN}", []),
    ],
)
def test_one_rule(rule: str, expected: list[bool]) -> None:
    assert certain(rule) == expected


@pytest.mark.parametrize(
    ("match", "expected"),
    [('SUBSYSTEM=="cpu"', []), ('SUBSYSTEM=="memory"', [True]), ('ENV{X}=="1"', [False])],
)
def test_a_goto_leads_past_the_reload_for_sure_never_or_perhaps(match: str, expected: list[bool]) -> None:
    assert certain(f'{match}, GOTO="end"\n{RUN}\nLABEL="end"') == expected


def test_a_goto_leads_down_only_and_without_its_label_nowhere() -> None:
    assert certain(f'LABEL="up"\n{RUN}\nGOTO="up"') == [True]
    assert certain(f'GOTO="missing"\n{RUN}') == [True]


def test_many_unknown_gotos_do_not_take_for_ever() -> None:
    text = "".join(f'ENV{{X{n}}}=="1", GOTO="l{n}"\n' for n in range(200))
    labels = "".join(f'LABEL="l{n}"\n' for n in range(200))
    assert certain(text + labels + RUN) == [False]


def test_what_depends_on_an_unknown_programs_result_is_possible_only() -> None:
    assert certain(f'PROGRAM="/usr/local/bin/ask", RESULT=="yes", {RUN}') == [False]


def test_a_program_that_cannot_be_read_fits_no_rule() -> None:
    assert certain(f'PROGRAM="/bin/cat /missing", {RUN}') == []


def test_line_numbers_are_those_of_the_file() -> None:
    rules = parse_rules(f'# one\n\nSUBSYSTEM=="cpu", \\\n{RUN}\nLABEL="x"')
    assert [(rule.first, rule.last) for rule in rules] == [(3, 4), (5, 5)]


def test_only_programs_that_load_an_image_count() -> None:
    loads = ("kdumpctl reload", "/sbin/kexec -p -c", "sh -c 'kexec -p x'", "/usr/lib/kdump/load.sh")
    others = ("/bin/cat /sys/kernel/kexec_crash_loaded", "/bin/true", "systemctl is-active kdump.service")
    assert all(map(mentions_reload, loads))
    assert not any(map(mentions_reload, others))
