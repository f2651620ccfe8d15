"""What the programs that measure in the guest conclude from what they saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.lab.guest import kill_updates, measure_handler, measure_updates

OLD, NEW, OTHER = ("old",), ("new",), ("other",)


@pytest.mark.parametrize(
    ("now", "calls", "said"),
    [
        (OLD, 0, "as before"),
        (NEW, 0, "WRONG"),
        (NEW, 1, "as after"),
        (OLD, 1, "WRONG"),
        (OTHER, 1, "WRONG"),
        (OLD, None, "as before"),
        (NEW, None, "as after"),
        (OTHER, None, "WRONG"),
        (kill_updates.NOTHING, 0, "NOTHING"),
        (kill_updates.NOTHING, 1, "NOTHING"),
        (kill_updates.NOTHING, None, "NOTHING"),
    ],
)
def test_what_is_loaded_after_a_kill(now: tuple[str], calls: int | None, said: str) -> None:
    assert kill_updates.verdict(OLD, NEW, now, calls) == said


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
