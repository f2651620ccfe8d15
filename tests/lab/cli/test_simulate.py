# SPDX-License-Identifier: MIT
"""``simulate`` and ``explore``: story, scenarios, search, snapshot, JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from crash_hotplug.core.sizes import human_size
from tests.cli.running import run, run_lab


def test_story_shows_three_policies_and_writes_their_dumps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run_lab(capsys, "simulate", "--output", str(tmp_path))
    assert result.code == 0
    assert "stale dump" in result.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vmcore-in-place", "vmcore-merged", "vmcore-reload"]


def test_snapshot_is_a_machine_that_status_and_audit_understand(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tree, dumps = str(tmp_path / "tree"), str(tmp_path)
    for policy, code in (("in-place", 0), ("merged", 4)):
        tree = str(tmp_path / f"tree-{policy}")
        assert run_lab(capsys, "simulate", "--policy", policy, "--snapshot", tree, "--output", dumps).code == 0
        assert run(capsys, "status", "--sysroot", tree).code == code
        assert run(capsys, "audit", str(tmp_path / f"vmcore-{policy}"), "--sysroot", tree).code == code


def test_snapshot_of_several_policies_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_lab(capsys, "simulate", "--snapshot", str(tmp_path / "t"), "--output", str(tmp_path)).code == 2


def test_simulate_json_has_the_outcome_of_each_policy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = json.loads(run_lab(capsys, "simulate", "--json", "--output", str(tmp_path)).out)
    assert report["schema"] == 1
    assert [(r["policy"], r["outcome"]) for r in report["results"]] == [
        ("reload", "accurate dump"),
        ("merged", "stale dump"),
        ("in-place", "accurate dump"),
    ]


def test_simulate_json_has_all_that_a_person_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = run_lab(capsys, "simulate", "--policy", "reload", "--output", str(tmp_path)).out
    report = run_lab(capsys, "simulate", "--policy", "reload", "--json", "--output", str(tmp_path)).json
    result = report["results"][0]
    assert shown.startswith(f"{report['title']}.\n{report['description']}\n")
    assert f"{result['description']} (Linux {result['kernel']})" in shown
    seconds = result["without_image_seconds"]
    assert (result["windows"], seconds["least"], seconds["most"]) == (6, 3.0, 6.0)
    assert "without a crash image: 6 times, 3.0 s to 6.0 s" in shown
    assert f"{result['vmcore']} ({human_size(result['vmcore_size'])}, sparse)" in shown
    assert os.stat(result["vmcore"]).st_size == result["vmcore_size"]


def test_list_names_the_bundled_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    assert "dimm-removed" in run_lab(capsys, "list").out


def test_explore_of_one_scenario_shows_a_table_and_traces(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_lab(capsys, "explore", "cpu-leaves", "--policy", "in-place", "--policy", "merged")
    assert result.code == 0
    assert "refused by digest" in result.out
    assert "shortest way" in result.out


def test_explore_json_counts_every_state_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run_lab(capsys, "explore", "cpu-leaves", "--json", "--policy", "v6").out)
    assert report["explored"][0]["title"] == "A CPU goes offline and is removed"
    assert report["states"] == sum(report["explored"][0]["policies"][0]["outcomes"].values())


def test_unknown_scenario_is_a_sentence_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_lab(capsys, "simulate", "no-such-scenario")
    assert result.code == 1


def test_arm64_snapshot_is_a_machine_that_status_and_audit_understand(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for scenario, code in (("hot-add", 0), ("file-load", 0)):
        tree, dumps = str(tmp_path / f"tree-{scenario}"), str(tmp_path)
        arguments = ("--arch", "arm64", "--policy", "in-place", "--snapshot", tree, "--output", dumps)
        assert run_lab(capsys, "simulate", scenario, *arguments).code == 0
        assert run(capsys, "status", "--sysroot", tree).code == code
        assert run(capsys, "audit", str(tmp_path / "vmcore-in-place"), "--sysroot", tree).code == code


def test_simulate_of_arm64_leaves_out_policies_of_the_kernel(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = run_lab(capsys, "simulate", "--arch", "arm64", "--json", "--output", str(tmp_path))
    assert [(r["policy"], r["outcome"]) for r in json.loads(result.out)["results"]] == [
        ("reload", "accurate dump"),
        ("in-place", "accurate dump"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("simulate", "hot-add", "--policy", "merged"), "no released arm64 kernel updates the elfcorehdr itself"),
        (("explore", "hot-add", "--policy", "v6"), "so there is no policy v6"),
        (("simulate", "v6-hotplug-size"), "cannot run v6-hotplug-size: kexec --hotplug is for kernels that update"),
        (("explore", "high-and-low-crashkernel"), "the model's arm64 machine has no second reservation"),
    ],
)
def test_scenario_or_policy_that_arm64_cannot_have_is_wrong_usage(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_lab(capsys, *arguments, "--arch", "arm64")
    assert (result.code, words in result.err) == (2, True)


def test_explore_of_arm64_shows_a_table_of_its_policies(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run_lab(capsys, "explore", "offline-block", "--arch", "arm64", "--json").out)
    assert [found["policy"] for found in report["explored"][0]["policies"]] == ["reload", "in-place"]
    assert all(found["outcomes"]["broken dump"] == 0 for found in report["explored"][0]["policies"])
