# SPDX-License-Identifier: MIT
"""The loaded image: found as on a live machine, and read from a saved tree."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from crash_hotplug.core.arch.boot_params import ZeroPage
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.image import Segment
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux.crash_image import _backup_source, find_crash_image, places_of, read_crash_image, read_identity
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug.linux.torn_image import mark_torn
from tests.core.test_image import kimage_bytes
from tests.linux.fake_kcore import DIRECT_MAP, TEXT_VIRT, write_kcore
from tests.trees import tree

RESERVED = RangeList([(0x2E00_0000, 0x3A00_0000)])
POINTER_VIRT = TEXT_VIRT + 0x2000
KIMAGE_PHYS = 0x200_0000
SAVED = tree("6.1-c", 0) / "crash-image"
# The segments that `kexec -d` printed for this capture, without kernel and initrd.
SEGMENTS = (
    Segment(0x2E00_0000, 0x1000, 0x30),
    Segment(0x39F4_E000, 0x6000, 0x5099),
    Segment(0x39F5_4000, 0x9000, 0x70E0),
    Segment(0x39F5_D000, 0x4000, 0x800),
    Segment(0x39F6_1000, 0x9F000, 0x9EC00),
)
IMAGE = {
    0x39F4_E000: (SAVED / "boot_params").read_bytes(),
    0x39F5_3000: (SAVED / "cmdline").read_bytes() + b"\0",
    0x39F5_D000: (SAVED / "elfcorehdr").read_bytes(),
    KIMAGE_PHYS: kimage_bytes(segments=SEGMENTS),
}


def live_tree(path: Path, physical: Mapping[int, bytes], pointer: int = DIRECT_MAP + KIMAGE_PHYS) -> Sysroot:
    (path / "proc").mkdir()
    (path / "proc" / "kallsyms").write_text(f"{POINTER_VIRT:016x} B kexec_crash_image\n")
    write_kcore(path / "proc" / "kcore", physical, {POINTER_VIRT: pointer.to_bytes(8, "little")})
    return Sysroot(str(path))


def test_live_image_is_found_through_kexec_crash_image(tmp_path: Path) -> None:
    image = find_crash_image(live_tree(tmp_path, IMAGE), RESERVED)
    assert image.elfcorehdr == IMAGE[0x39F5_D000]
    assert isinstance(image.boot, ZeroPage)
    assert (image.elfcorehdr_phys, image.boot.phys, image.boot.cmdline_phys) == (0x39F5D000, 0x39F4E000, 0x39F53000)
    assert image.cmdline == (SAVED / "cmdline").read_text()
    assert image.loader is Loader.KEXEC_TOOLS
    assert image.kimage is not None
    assert image.kimage.segments == SEGMENTS
    assert json.loads(json.dumps(places_of(image)))["segments"][3]["memsz"] == "0x4000"


def test_image_unloaded_during_the_read_is_cannot_tell(tmp_path: Path) -> None:
    with pytest.raises(CannotTellError, match="unloaded while"):
        find_crash_image(live_tree(tmp_path, IMAGE, pointer=0), RESERVED)


def test_wild_pointer_is_not_followed(tmp_path: Path) -> None:
    with pytest.raises(CannotTellError, match="no memory at virtual address 0x1234"):
        find_crash_image(live_tree(tmp_path, IMAGE, pointer=0x1234), RESERVED)


def test_image_without_an_elfcorehdr_is_cannot_tell(tmp_path: Path) -> None:
    with pytest.raises(CannotTellError, match="none of the loaded crash image's segments"):
        find_crash_image(live_tree(tmp_path, {**IMAGE, 0x39F5_D000: bytes(4096)}), RESERVED)


def test_command_line_that_contradicts_the_image_is_named(tmp_path: Path) -> None:
    """`status` reports it as a finding, and an update refuses such an image."""
    moved = {**IMAGE, 0x39F5_3000: b"quiet elfcorehdr=0x2e000000\0"}
    why = find_crash_image(live_tree(tmp_path, moved), RESERVED).why_header_not_found
    assert why is not None
    assert "look for its elfcorehdr at 0x2e000000" in why


def test_header_is_found_without_boot_params(tmp_path: Path) -> None:
    image = find_crash_image(live_tree(tmp_path, {**IMAGE, 0x39F4_E000: bytes(4096)}), RESERVED)
    assert (image.elfcorehdr_phys, image.cmdline, image.loader) == (0x39F5D000, None, None)


def test_masked_symbol_names_the_capability(tmp_path: Path) -> None:
    sysroot = live_tree(tmp_path, IMAGE)
    (tmp_path / "proc" / "kallsyms").write_text("0000000000000000 B kexec_crash_image\n")
    with pytest.raises(CannotTellError, match=r"CAP_SYSLOG .* run as root"):
        find_crash_image(sysroot, RESERVED)


def test_saved_image_is_read() -> None:
    image = read_crash_image(Sysroot(str(tree("6.12-ch", 1))), RESERVED)
    assert (image.elfcorehdr_phys, image.loader) == (0x3EE80000, Loader.KEXEC_TOOLS)


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "[]",
        '{"elfcorehdr": 5}',
        '{"entry": "0x1", "segments": 7}',
        '{"entry": "0x1", "segments": [{}]}',
        "[" * 60000,
    ],
)
def test_broken_image_json_is_refused(tmp_path: Path, content: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree("6.1-c", 0), copy)
    (copy / "crash-image" / "image.json").write_text(content)
    with pytest.raises(InputError, match=r"image\.json"):
        read_crash_image(Sysroot(str(copy)), RESERVED)


def test_saved_tree_without_the_image_names_the_option(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree("6.1-c", 0), copy)
    shutil.rmtree(copy / "crash-image")
    with pytest.raises(CannotTellError, match="--elfcorehdr FILE"):
        read_crash_image(Sysroot(str(copy)), RESERVED)


def test_pointer_that_reads_as_zeros_while_an_image_is_loaded_is_cannot_tell(tmp_path: Path) -> None:
    sysroot = live_tree(tmp_path, IMAGE, pointer=0)
    (tmp_path / "sys" / "kernel").mkdir(parents=True)
    (tmp_path / "sys" / "kernel" / "kexec_crash_loaded").write_text("1\n")
    with pytest.raises(CannotTellError, match="shows no pointer to it"), Kcore(sysroot) as kcore:
        read_identity(sysroot, kcore)
    (tmp_path / "sys" / "kernel" / "kexec_crash_loaded").write_text("0\n")
    with Kcore(sysroot) as kcore:
        assert read_identity(sysroot, kcore) == b""


def test_pointer_that_reads_as_zeros_for_a_moment_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysroot = live_tree(tmp_path, IMAGE)
    (tmp_path / "sys" / "kernel").mkdir(parents=True)
    (tmp_path / "sys" / "kernel" / "kexec_crash_loaded").write_text("1\n")
    read, zeros = Kcore.read_virt, [bytes(8)]
    monkeypatch.setattr(
        Kcore, "read_virt", lambda kcore, virt, length: zeros.pop() if zeros else read(kcore, virt, length)
    )
    with Kcore(sysroot) as kcore:
        assert read_identity(sysroot, kcore).startswith((DIRECT_MAP + KIMAGE_PHYS).to_bytes(8, "little"))


def test_live_image_read_while_kcore_moves_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sysroot, moves = live_tree(tmp_path, IMAGE), [True, True]
    monkeypatch.setattr(Kcore, "has_moved", lambda _kcore: bool(moves and moves.pop()))
    assert find_crash_image(sysroot, RESERVED).elfcorehdr == IMAGE[0x39F5_D000]
    monkeypatch.setattr(Kcore, "has_moved", lambda _kcore: True)
    with pytest.raises(CannotTellError, match="again and again"):
        find_crash_image(sysroot, RESERVED)


def test_image_that_is_known_to_be_torn_says_so(tmp_path: Path) -> None:
    sysroot = live_tree(tmp_path, IMAGE)
    with Kcore(sysroot) as kcore:
        mark_torn(sysroot, read_identity(sysroot, kcore), "a segment changed")
    assert find_crash_image(sysroot, RESERVED).torn == "a segment changed"


def test_backup_region_is_that_of_the_first_low_ram() -> None:
    ram = RangeList([(0x1000, 0x5000), (0x8000, 0x9_FC00), (0x10_0000, 0x4000_0000)])
    assert _backup_source(ram, X86_64) == (0x1000, 0x5000)
    assert _backup_source(RangeList([(0x10_0000, 0x4000_0000)]), X86_64) is None
