"""What the programs that measure in the guest conclude from what they saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.lab.guest import kill_updates, measure_handler, measure_updates


@pytest.fixture(autouse=True)
def nothing_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_updates, "_new", {})


OLD, NEW, OTHER, NOTHING = ("old",), ("new",), ("other",), ("nothing",)


def test_a_kill_before_the_call_leaves_what_was_there() -> None:
    assert kill_updates.verdict(OLD, OLD, 0) == "as before"
    assert kill_updates.verdict(OLD, NEW, 0) == "WRONG"


def test_every_kill_after_the_call_leaves_the_same() -> None:
    assert [kill_updates.verdict(OLD, now, 1) for now in (NEW, NEW, OTHER)] == ["as after", "as after", "WRONG"]


def test_a_kill_inside_the_call_leaves_one_or_the_other() -> None:
    kill_updates.verdict(OLD, NEW, 1)
    assert [kill_updates.verdict(OLD, now, None) for now in (OLD, NEW, OTHER)] == ["as before", "as after", "WRONG"]


@pytest.mark.parametrize("calls", [0, 1, None])
def test_an_image_that_is_gone_is_told(calls: int | None) -> None:
    assert kill_updates.verdict(OLD, NOTHING, calls) == "NOTHING"


def test_slow_updates_are_laid_beside_what_the_watcher_saw() -> None:
    updates = [(float(n), n + 0.05, 0.004) for n in range(10)] + [(10.0, 13.0, 2.8)]
    lines = measure_updates.explain(updates, [(3.0, 3.02), (10.1, 12.6)])
    assert lines == [
        "slow: kexec_load 2800.0 ms in an update of 3000.0 ms, in which the clock's watcher stood still for 2500.0 ms"
    ]


def test_what_function_graph_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trace").write_text(
        "# tracer: function_graph\n"
        " 1) # 9876.543 us |  crash_handle_hotplug_event();\n"
        " 0)               |  __x64_sys_kexec_load() {\n"
        " 0)   1.500 us    |    kimage_free();\n"
        " 0)   0.500 us    |    kimage_free();\n"
        " 0) $ 2000000 us  |  } /* __x64_sys_kexec_load */\n"
        " 0) * 12345.67 us |  } /* __x64_sys_kexec_load [kernel] */\n"
    )
    monkeypatch.setattr(measure_handler, "_TRACING", str(tmp_path))
    assert measure_handler.durations() == {
        "crash_handle_hotplug_event": [pytest.approx(9.876543)],
        "kimage_free": [pytest.approx(0.0015), pytest.approx(0.0005)],
        "__x64_sys_kexec_load": [pytest.approx(2000), pytest.approx(12.34567)],
    }
    assert measure_handler.durations() == {}
