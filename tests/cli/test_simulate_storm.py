"""``simulate --storm`` as a person types it, through the parser that cli/simulate.py gives it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.simulate_storm import add_arguments, run_storm
from crash_hotplug.core.errors import InputError


def parse(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_json(parser)
    parser.add_argument("--output")
    add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def storm_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert run_storm(parse("--json", *arguments)) == 0
    report = json.loads(capsys.readouterr().out)
    assert isinstance(report, dict)
    assert report["schema"] == 1
    return report


def by_policy(report: dict[str, Any]) -> dict[str, Any]:
    return {entry["policy"]: entry for entry in report["policies"]}


def test_without_the_option_there_is_no_storm() -> None:
    assert parse().storm is None


def test_table_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert run_storm(parse("--storm", 40, "--output", tmp_path)) == 0
    out, err = capsys.readouterr()
    assert out.startswith("A storm of 40 memory blocks: 5 DIMMs")
    assert f"drawn: {tmp_path / 'storm-40.png'}" in out
    assert f"drawn: {tmp_path / 'storm-40.svg'}" in out
    assert err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["storm-40.png", "storm-40.svg"]


def test_without_matplotlib_the_table_and_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run_storm(parse("--storm", 40, "--output", tmp_path)) == 0
    out, err = capsys.readouterr()
    assert "in-place (crash-hotplug)" in out
    assert err == "not drawn: pictures need matplotlib: pip install 'crash-hotplug[report]'\n"
    report = storm_json(capsys, "--storm", 40, "--output", tmp_path)
    assert report["pictures"] == []
    assert "matplotlib" in report["no_pictures_because"]


def test_progress_on_a_terminal_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_storm(parse("--storm", 8, "--no-picture"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_storm(parse("--storm", 8, "--no-picture"))
    err = capsys.readouterr().err
    assert "simulating in-place" in err
    assert err.endswith("\r\033[K"), "taken away at the end"


def test_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = storm_json(capsys, "--storm", 40, "--output", tmp_path, "--no-picture")
    assert report["pictures"] == []
    assert "no_pictures_because" not in report
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "policy"),
    [
        ("--reload-cost", "reload"),
        ("--reload-cost", "throttled"),
        ("--kernel-update-cost", "merged"),
        ("--in-place-look-cost", "in-place"),
        ("--in-place-update-cost", "in-place"),
    ],
)
def test_a_cost_counts_for_its_policy_and_for_no_other(
    capsys: pytest.CaptureFixture[str], option: str, policy: str
) -> None:
    before = by_policy(storm_json(capsys, "--storm", 40, "--no-picture"))
    after = by_policy(storm_json(capsys, "--storm", 40, "--no-picture", option, 0.4))
    changed = {name for name in before if before[name] != after[name]}
    assert policy in changed
    assert changed <= {"reload", "throttled"} if option == "--reload-cost" else changed == {policy}


@pytest.mark.parametrize("option", ["--event-cost", "--dimm-cost"])
def test_events_count_for_all(capsys: pytest.CaptureFixture[str], option: str) -> None:
    before = by_policy(storm_json(capsys, "--storm", 40, "--no-picture"))
    after = by_policy(storm_json(capsys, "--storm", 40, "--no-picture", option, 3))
    assert all(after[name]["last_event"] > before[name]["last_event"] for name in before)


def test_options_of_shape_and_cost_sets(capsys: pytest.CaptureFixture[str]) -> None:
    report = storm_json(capsys, "--storm", 40, "--no-picture", "--dimm-blocks", 40, "--costs", "oracle-2024")
    assert report["dimms"] == 1
    assert report["costs"]["reload"]["value"] == pytest.approx(389 / 3840)
    halved = storm_json(capsys, "--storm", 40, "--no-picture", "--reload-gap", 0.5)
    whole = storm_json(capsys, "--storm", 40, "--no-picture")
    gaps = [by_policy(report)["reload"]["without_image"] for report in (halved, whole)]
    assert gaps[0] == pytest.approx(gaps[1] / 2)


def test_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_storm(parse("--storm", "published")) == 0
    assert "RHEL 8, 480 1 GB DIMMs" in capsys.readouterr().out
    assert len(storm_json(capsys, "--storm", "published")["figures"]) == 9


@pytest.mark.parametrize("option", [("--reload-cost", 1), ("--costs", "rfc-2020"), ("--dimm-blocks", 8)])
def test_published_takes_no_other_shape_or_cost(option: tuple[object, ...]) -> None:
    with pytest.raises(InputError, match="leave those options out"):
        run_storm(parse("--storm", "published", *option))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--storm", "0"),
        ("--storm", "-8"),
        ("--storm", "many"),
        ("--storm", "9" * 30),
        ("--storm", "\u0663"),
        ("--storm", "8", "--dimm-blocks", "0"),
        ("--storm", "8", "--reload-cost", "nan"),
        ("--storm", "8", "--event-cost", "-1"),
        ("--storm", "8", "--reload-gap", "1.5"),
        ("--storm", "8", "--costs", "mine"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
