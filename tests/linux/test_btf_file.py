# SPDX-License-Identifier: MIT
"""The source of the layout of struct kimage: BTF, or the table of known layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import KNOWN_LAYOUTS, KimageLayout
from crash_hotplug.linux import btf_file
from crash_hotplug.linux.btf_file import kimage_layouts, layout_source
from crash_hotplug.linux.sysroot import Sysroot
from tests.core.test_btf import MEMBERS, btf


@pytest.fixture
def sysroot(tmp_path: Path) -> Sysroot:
    (tmp_path / "sys" / "kernel" / "btf").mkdir(parents=True)
    return Sysroot(str(tmp_path))


def test_layouts_without_btf_are_those_of_the_table(sysroot: Sysroot) -> None:
    assert kimage_layouts(sysroot) == KNOWN_LAYOUTS
    assert layout_source(sysroot) == "table"


def test_layouts_with_btf_are_the_one_of_btf(sysroot: Sysroot) -> None:
    (Path(sysroot.locate("/sys/kernel/btf/vmlinux"))).write_bytes(btf({**MEMBERS, "start": 40}))
    assert kimage_layouts(sysroot) == (KimageLayout(40, 56, 64, 624),)
    assert layout_source(sysroot) == "BTF"


def test_layout_source_of_unusable_btf_is_the_table(sysroot: Sysroot) -> None:
    (Path(sysroot.locate("/sys/kernel/btf/vmlinux"))).write_bytes(b"not BTF")
    assert layout_source(sysroot) == "table"


def test_layout_of_the_running_kernel_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []

    def read(_sysroot: Sysroot, path: str, _limit: int) -> bytes:
        reads.append(path)
        return btf({**MEMBERS, "start": 40})

    monkeypatch.setattr(Sysroot, "read", read)
    btf_file._live_layout.cache_clear()
    try:
        assert [kimage_layouts(Sysroot()) for _ in range(2)] == [(KimageLayout(40, 56, 64, 624),)] * 2
        assert reads == ["/sys/kernel/btf/vmlinux"]
    finally:
        btf_file._live_layout.cache_clear()


def test_btf_that_may_not_be_read_leaves_the_table(sysroot: Sysroot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> bytes:
        raise CannotTellError("no")

    monkeypatch.setattr(Sysroot, "read", refused)
    assert kimage_layouts(sysroot) is KNOWN_LAYOUTS
