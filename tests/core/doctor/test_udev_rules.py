# SPDX-License-Identifier: MIT
"""Reloads that an event starts, one small rules file each, and rules files without them."""

from __future__ import annotations

import pytest

from crash_hotplug.core.doctor.udev_rules import (
    GUARD,
    Reload,
    RuleContext,
    UEvent,
    find_reloads,
    mentions_reload,
    parse_rules,
    without_reload,
)
from tests.family_trees import FAMILIES

ADD = UEvent("cpu", "add")
RUN = 'RUN+="/usr/bin/kdumpctl reload"'
NOWHERE = RuleContext({"cpu": None, "memory": None})
EVENTS = [UEvent(s, a) for s in ("cpu", "memory") for a in ("add", "online", "offline", "remove")]


def started(text: str, event: UEvent = ADD, context: RuleContext = NOWHERE) -> list[Reload]:
    return find_reloads(parse_rules(text), event, context)


def certain(text: str, event: UEvent = ADD, context: RuleContext = NOWHERE) -> list[bool]:
    return [reload.certain for reload in started(text, event, context)]


def events_of(family: str, path: str, crash_hotplug: bool | None) -> list[str]:
    text = (FAMILIES / family / path).read_text()
    context = RuleContext({"cpu": crash_hotplug, "memory": crash_hotplug}, lambda _path: "1\n")
    return [f"{event.subsystem} {event.action}" for event in EVENTS if certain(text, event, context) == [True]]


def test_debian_rule_reloads_whatever_the_kernel_does() -> None:
    expected = ["cpu add", "cpu online", "cpu remove", "memory online", "memory offline"]
    for says in (None, False, True):
        assert events_of("debian", "lib/udev/rules.d/50-kdump-tools.rules", says) == expected


def test_red_hat_rule_skips_its_reload_where_the_kernel_updates() -> None:
    path = "usr/lib/udev/rules.d/98-kexec.rules"
    expected = ["cpu add", "cpu remove", "memory online", "memory offline"]
    assert events_of("redhat", path, None) == events_of("redhat", path, False) == expected
    assert events_of("redhat", path, True) == []


def test_red_hat_reload_escapes_the_sandbox_and_needs_a_unit() -> None:
    reload = started((FAMILIES / "redhat/usr/lib/udev/rules.d/98-kexec.rules").read_text())[0]
    assert (reload.escapes_sandbox, reload.needs_active, reload.line) == (True, "kdump.service", 11)


def test_opensuse_rule_covers_memory_only_and_needs_a_loaded_image() -> None:
    path = "usr/lib/kdump/70-kdump.rules"
    assert events_of("opensuse", path, False) == ["memory add", "memory remove"]
    assert events_of("opensuse", path, True) == []
    text = (FAMILIES / "opensuse" / path).read_text()
    assert started(text, UEvent("memory", "add"), RuleContext({"memory": False}, lambda _path: "0\n")) == []


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
def test_rule_starts_certain_possible_or_no_reload(rule: str, expected: list[bool]) -> None:
    assert certain(rule) == expected


@pytest.mark.parametrize(
    ("match", "expected"),
    [('SUBSYSTEM=="cpu"', []), ('SUBSYSTEM=="memory"', [True]), ('ENV{X}=="1"', [False])],
)
def test_goto_skips_the_reload_always_never_or_possibly(match: str, expected: list[bool]) -> None:
    assert certain(f'{match}, GOTO="end"\n{RUN}\nLABEL="end"') == expected


def test_goto_leads_down_only_and_is_ignored_without_its_label() -> None:
    assert certain(f'LABEL="up"\n{RUN}\nGOTO="up"') == [True]
    assert certain(f'GOTO="missing"\n{RUN}') == [True]


def test_many_unknown_gotos_take_linear_time() -> None:
    text = "".join(f'ENV{{X{n}}}=="1", GOTO="l{n}"\n' for n in range(200))
    labels = "".join(f'LABEL="l{n}"\n' for n in range(200))
    assert certain(text + labels + RUN) == [False]


def test_reload_that_depends_on_an_unknown_result_is_possible() -> None:
    assert certain(f'PROGRAM="/usr/local/bin/ask", RESULT=="yes", {RUN}') == [False]


def test_cat_of_a_missing_file_fails_the_match() -> None:
    assert certain(f'PROGRAM="/bin/cat /missing", {RUN}') == []


def test_line_numbers_are_those_of_the_file() -> None:
    rules = parse_rules(f'# one\n\nSUBSYSTEM=="cpu", \\\n{RUN}\nLABEL="x"')
    assert [(rule.first, rule.last) for rule in rules] == [(3, 4), (5, 5)]


def test_mentions_reload_only_for_programs_that_load_an_image() -> None:
    loads = ("kdumpctl reload", "/sbin/kexec -p -c", "sh -c 'kexec -p x'", "/usr/lib/kdump/load.sh")
    others = ("/bin/cat /sys/kernel/kexec_crash_loaded", "/bin/true", "systemctl is-active kdump.service")
    assert all(map(mentions_reload, loads))
    assert not any(map(mentions_reload, others))


RULES = (
    "debian/lib/udev/rules.d/50-kdump-tools.rules",
    "redhat/usr/lib/udev/rules.d/98-kexec.rules",
    "opensuse/usr/lib/kdump/70-kdump.rules",
)


def starts_any(text: str) -> bool:
    context = RuleContext({"cpu": False, "memory": False}, lambda _path: "1\n")
    return any(started(text, event, context) for event in EVENTS)


@pytest.mark.parametrize("path", RULES)
def test_without_reload_leaves_no_reload_in_the_rules_of_a_family(path: str) -> None:
    text = (FAMILIES / path).read_text()
    assert starts_any(text)
    changed = without_reload(text, ["who wrote it"])
    assert not starts_any(changed)
    assert changed.startswith("# who wrote it\n")
    assert without_reload(changed) == changed


def test_without_reload_keeps_all_other_rules() -> None:
    other = 'SUBSYSTEM=="memory", ACTION=="add", ATTR{state}="online"\nSUBSYSTEM=="net", RUN+="/bin/true"\n'
    reload = 'SUBSYSTEM=="cpu", ACTION=="add", PROGRAM="/usr/sbin/kdump-config try-reload"\n'
    assert without_reload(other) == other
    assert without_reload(other + reload) == f"{other}# {reload}"


def test_without_reload_keeps_a_reload_for_other_devices() -> None:
    changed = without_reload('SUBSYSTEM=="block", GOTO="go"\nLABEL="go"\nRUN+="/usr/bin/kdumpctl reload"')
    assert not starts_any(changed)
    assert started(changed, UEvent("block", "add"), RuleContext({}))


def test_without_reload_comments_out_every_line_of_a_rule() -> None:
    text = (
        'SUBSYSTEM=="cpu", \\\n  ACTION=="add", \\\n  RUN+="/usr/bin/kdumpctl reload"\nSUBSYSTEM=="cpu", MODE="0600"\n'
    )
    changed = without_reload(text)
    assert changed == (
        '# SUBSYSTEM=="cpu",\n#   ACTION=="add",\n#   RUN+="/usr/bin/kdumpctl reload"\nSUBSYSTEM=="cpu", MODE="0600"\n'
    )
    assert not starts_any(changed)


def test_goto_leads_to_the_next_label_further_down() -> None:
    text = f'LABEL="x"\nGOTO="x"\n{RUN}\nLABEL="x"\nRUN+="/usr/bin/kdumpctl start"\n'
    assert [reload.line for reload in started(text)] == [5]


def test_program_runs_before_its_result_is_compared() -> None:
    context = RuleContext({"cpu": None}, {"/sys/x": "1\n"}.get)
    assert certain(f'RESULT=="1", PROGRAM=="/bin/cat /sys/x", {RUN}', context=context) == [True]
    assert certain(f'RESULT=="0", PROGRAM=="/bin/cat /sys/x", {RUN}', context=context) == []


def test_match_that_is_inverted_holds_where_the_machine_lacks_the_value() -> None:
    assert certain(f'PROGRAM!="/bin/cat /missing", {RUN}') == [True]
    assert certain(f'ATTR{{crash_hotplug}}!="1", {RUN}') == [True]
    assert certain(f'ATTR{{crash_hotplug}}=="1", {RUN}') == []


def test_reload_that_is_taken_from_the_list_is_not_started() -> None:
    assert started('RUN-="/usr/bin/kdumpctl reload"') == []


def test_rule_with_a_label_or_of_another_subsystem_gets_a_guard() -> None:
    for text in (f'SUBSYSTEM=="cpu", LABEL="x", {RUN}', f'SUBSYSTEM=="net", {RUN}'):
        assert without_reload(text) == GUARD + text
    assert without_reload(f'SUBSYSTEM=="cpu", {RUN}') == f'# SUBSYSTEM=="cpu", {RUN}'
