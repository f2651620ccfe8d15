# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab bench`` as a person runs it, with a stand-in for the measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from crash_hotplug_lab.bench.bench_updates import IN_PLACE, Measured
from crash_hotplug_lab.bench.kexec_call_timer import Timing
from crash_hotplug_lab.cli import bench
from crash_hotplug_lab.cli.bench import Spread, ratio_of_medians, spread_of
from tests.cli.running import run_lab

KEXEC = "kexec -p /boot/vmlinuz"


class Machine:
    """The part of the live machine that the command uses."""

    refused: str | None = None
    image: object | None = object()

    def why_refused(self) -> str | None:
        return self.refused

    def image_loaded(self) -> bool:
        return self.image is not None

    def observe(self) -> Machine:
        return self

    def identity(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[list[str]], int]]:
    asked: list[tuple[list[list[str]], int]] = []

    def measure(commands: Sequence[list[str]], rounds: int, _say: Callable[[str], None]) -> list[Measured]:
        asked.append((list(commands), rounds))
        ours = Measured(IN_PLACE, [Timing(0.050, 0.040, 0.004, 1, 0)] * rounds)
        theirs = [Measured(" ".join(c), [Timing(1.0, 0.8, 0.6, 1, 0)] * rounds) for c in commands]
        return [ours, *theirs]

    monkeypatch.setattr(bench, "bench", measure)
    monkeypatch.setattr(bench, "LiveMachine", Machine)
    monkeypatch.setattr(bench, "find_reload_tool", lambda: None)
    return asked


def test_bench_shows_a_reload_as_a_multiple_of_an_update(
    asked: list[tuple[list[list[str]], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run_lab(capsys, "bench", "--yes", "--rounds", "3", "--against", KEXEC)
    assert (shown.code, asked) == (0, [([KEXEC.split()], 3)])
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["without", "an", "image", "600.00", "(600.00", "to", "600.00)", "x", "150.00"] in lines


def test_bench_json_has_every_value(
    asked: list[tuple[list[list[str]], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    report = run_lab(capsys, "bench", "--yes", "--rounds", "2", "--against", KEXEC, "--json").json
    ours, theirs = report["measured"]
    assert ours["in_place"]
    assert theirs["cpu_seconds"]["ratio_to_in_place"] == 20
    assert theirs["without_image_seconds"]["values"] == [0.6, 0.6]


def test_bench_without_yes_measures_nothing(
    asked: list[tuple[list[list[str]], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = run_lab(capsys, "bench", "--against", KEXEC)
    assert (shown.code, asked, shown.out) == (2, [], "")
    assert (
        f"20 times {KEXEC}: each leaves the machine without a crash image for a moment; --yes accepts that" in shown.err
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--yes"], 1, "neither kdumpctl nor kdump-config is installed; name a command that loads"),
        (["--yes", "--against", "kexec '"], 2, "--against cannot be read"),
        (["--yes", "--against", ""], 2, "--against has no command"),
        (["--yes", "--rounds", "0"], 2, "is not a number from 1 to 10000"),
        (["--yes", "--no-reload", "--against", KEXEC], 2, "not allowed with"),
    ],
)
def test_bench_usage_error_is_a_sentence_and_a_code(
    asked: list[tuple[list[list[str]], int]], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int,
    said: str,
) -> None:  # fmt: skip
    shown = run_lab(capsys, "bench", *arguments)
    assert (shown.code, asked) == (code, [])
    assert said in shown.err


def test_bench_on_a_machine_that_forbids_loading(
    asked: list[tuple[list[list[str]], int]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "refused", "lockdown (integrity) forbids kexec_load")
    shown = run_lab(capsys, "bench", "--yes", "--no-reload")
    assert (shown.code, asked) == (1, [])
    assert "lockdown" in shown.err


def test_bench_without_a_crash_image(
    asked: list[tuple[list[list[str]], int]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "image", None)
    shown = run_lab(capsys, "bench", "--yes", "--no-reload")
    assert (shown.code, asked) == (3, [])
    shown = run_lab(capsys, "bench", "--yes", "--no-reload", "--json")
    assert (shown.code, shown.json["verdict"]) == (3, "no crash image")


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        ([3.0], (3, 3, 3, 3, 3)),
        ([5.0, 1.0, 3.0, 2.0, 4.0], (1, 2, 3, 4, 5)),
        ([1.0, 2.0], (1, 1.25, 1.5, 1.75, 2)),
    ],
)
def test_spread_has_quartiles_and_extremes(values: list[float], spread: tuple[float, ...]) -> None:
    assert spread_of(values) == Spread(*spread)


def test_spread_of_no_values_is_refused() -> None:
    with pytest.raises(ValueError, match="no measurements"):
        spread_of([])


def test_ratio_of_medians_is_none_where_the_base_is_zero() -> None:
    assert ratio_of_medians([10.0, 30.0, 20.0], [1.0, 2.0, 9.0]) == 10
    assert ratio_of_medians([1.0], [0.0]) is None
