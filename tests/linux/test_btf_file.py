# SPDX-License-Identifier: MIT
"""The source of the layout of struct kimage: BTF, or the table of known layouts."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.image import KNOWN_LAYOUTS, KimageLayout
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
