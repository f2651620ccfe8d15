"""Where the layout of struct kimage comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.image import KNOWN_LAYOUTS, KimageLayout
from crash_hotplug.linux import btf_file
from crash_hotplug.linux.btf_file import kimage_layouts, layout_source
from crash_hotplug.linux.sysroot import Sysroot

MEMBERS = {"start": 24, "nr_segments": 56, "segment": 64, "control_page": 624}


@pytest.fixture
def sysroot(tmp_path: Path) -> Sysroot:
    (tmp_path / "sys" / "kernel" / "btf").mkdir(parents=True)
    return Sysroot(str(tmp_path))


def test_layouts_without_btf_are_those_of_the_table(sysroot: Sysroot) -> None:
    assert kimage_layouts(sysroot) == KNOWN_LAYOUTS
    assert layout_source(sysroot) == "table"


def test_layouts_with_btf_are_the_one_of_btf(sysroot: Sysroot, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path(sysroot.locate("/sys/kernel/btf/vmlinux"))).write_bytes(b"btf")
    monkeypatch.setattr(btf_file, "struct_members", lambda _data, name, _needed: MEMBERS if name == "kimage" else None)
    assert kimage_layouts(sysroot) == (KimageLayout(24, 56, 64, 624),)
    assert layout_source(sysroot) == "BTF"


def test_layout_source_of_unusable_btf_is_the_table(sysroot: Sysroot) -> None:
    (Path(sysroot.locate("/sys/kernel/btf/vmlinux"))).write_bytes(b"not BTF")
    assert layout_source(sysroot) == "table"
