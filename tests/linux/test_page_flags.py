# SPDX-License-Identifier: MIT
"""The memory that virtio-mem has not plugged, from page flags and from a saved tree."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux import page_flags
from crash_hotplug.linux.page_flags import read_not_plugged
from crash_hotplug.linux.sysroot import Sysroot
from tests.trees import LiveTree

MIB = 1 << 20
OFFLINE, BUDDY = 1 << 23, 1 << 10
VIRTIO_MEM = RangeList([(0, 8 * MIB)])


@pytest.fixture(autouse=True)
def pages_of_4_kib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4096)


def live(tmp_path: Path, flags: list[int]) -> Sysroot:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/kpageflags").write_bytes(struct.pack(f"={len(flags)}Q", *flags))
    return LiveTree(str(tmp_path))


def test_pieces_whose_pages_are_all_logically_offline_are_not_plugged(tmp_path: Path) -> None:
    flags = [BUDDY] * 512 + [OFFLINE] * 1024 + [BUDDY] * 512
    assert read_not_plugged(live(tmp_path, flags), VIRTIO_MEM) == RangeList([(2 * MIB, 6 * MIB)])


def test_single_pages_of_a_balloon_are_plugged(tmp_path: Path) -> None:
    flags = [OFFLINE] * 511 + [BUDDY] * 513 + [BUDDY] * 1024
    assert read_not_plugged(live(tmp_path, flags), VIRTIO_MEM) == RangeList()


def test_other_memory_is_not_looked_at(tmp_path: Path) -> None:
    flags = [OFFLINE] * 1024 + [BUDDY] * 512 + [OFFLINE] * 512
    assert read_not_plugged(live(tmp_path, flags), RangeList([(4 * MIB, 8 * MIB)])) == RangeList([(6 * MIB, 8 * MIB)])
    assert read_not_plugged(Sysroot(str(tmp_path)), RangeList()) == RangeList()


def test_not_plugged_memory_is_not_known_without_page_flags(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert read_not_plugged(LiveTree(str(tmp_path)), VIRTIO_MEM) is None
    assert read_not_plugged(Sysroot(str(tmp_path)), VIRTIO_MEM) is None
    (tmp_path / "proc/kpageflags").write_bytes(bytes(8))  # it ends before the memory does
    assert read_not_plugged(LiveTree(str(tmp_path)), VIRTIO_MEM) is None


def test_saved_tree_keeps_the_ranges(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    ranges = RangeList([(2 * MIB, 4 * MIB), (6 * MIB, 8 * MIB)])
    (tmp_path / page_flags.SAVED[1:]).write_bytes(page_flags.not_plugged_json(ranges))
    assert read_not_plugged(Sysroot(str(tmp_path)), VIRTIO_MEM) == ranges


@pytest.mark.parametrize("text", ["{", "[]", '{"not_plugged": [[1, 2]]}', '{"not_plugged": [["0x1"]]}', "7"])
def test_saved_ranges_in_another_format_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / page_flags.SAVED[1:]).write_text(text)
    with pytest.raises(InputError, match=r"not-plugged\.json is not in the format of a snapshot"):
        read_not_plugged(Sysroot(str(tmp_path)), VIRTIO_MEM)
