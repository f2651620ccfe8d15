"""/sys/devices/system/cpu."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.linux.cpus import CPU_LIMIT, parse_cpu_list, read_cpus
from crash_hotplug.linux.sysroot import Sysroot
from tests.trees import tree


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8", [0, 1, 2, 3, 8]), ("0", [0]), ("", []), ("1,3-4", [1, 3, 4]), ("7-7", [7])]
)
def test_cpu_lists(text: str, numbers: list[int]) -> None:
    assert parse_cpu_list(text) == numbers


@pytest.mark.parametrize("text", ["x", "3-1", "0-999999", "0,,1", "-1", "0-", "9" * 5000, str(CPU_LIMIT)])
def test_lists_that_are_none(text: str) -> None:
    with pytest.raises(InputError):
        parse_cpu_list(text)


@given(st.text(st.sampled_from("0123456789-, "), max_size=40))
def test_any_list(text: str) -> None:
    with contextlib.suppress(InputError):
        assert all(0 <= number < CPU_LIMIT for number in parse_cpu_list(text))


def test_the_cpus_of_a_real_machine() -> None:
    cpus = read_cpus(Sysroot(str(tree("6.1-c", 1))))
    assert [(cpu.number, cpu.present, cpu.online) for cpu in cpus[:4]] == [
        (0, True, True),
        (1, True, True),
        (2, True, True),
        (3, False, False),
    ]
    assert len(cpus) == 8
    assert cpus[2].crash_notes == (0x3ECB9400, 368)
    assert cpus[3].crash_notes is None


def test_without_the_list_of_present_cpus_nothing_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    with pytest.raises(CannotTellError, match="present does not exist"):
        read_cpus(Sysroot(str(tmp_path)))


@pytest.mark.parametrize(("content", "expected"), [("0\n", None), (None, None)])
def test_notes_that_are_masked_or_missing_are_not_known(tmp_path: Path, content: str | None, expected: None) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree("6.1-c", 0), copy)
    notes = copy / "sys/devices/system/cpu/cpu1/crash_notes"
    notes.unlink()
    if content is not None:
        notes.write_text(content)
    assert read_cpus(Sysroot(str(copy)))[1].crash_notes is expected


def test_notes_that_are_no_number_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree("6.1-c", 0), copy)
    (copy / "sys/devices/system/cpu/cpu1/crash_notes").write_text("somewhere")
    with pytest.raises(InputError, match="'somewhere'"):
        read_cpus(Sysroot(str(copy)))
