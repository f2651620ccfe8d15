# SPDX-License-Identifier: MIT
"""Modules in an initramfs: several archives, every compression, and files that are none."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Callable

import pytest

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.doctor import initramfs
from crash_hotplug.linux.doctor.initramfs import has_module
from crash_hotplug.linux.sysroot import Sysroot, open_sysroot

PLACE = "/boot/initrd.img"
MODULE = "usr/lib/modules/6.12/kernel/drivers/virtio/virtio_mem.ko.xz"


def archive(*names: str, content: bytes = b"some bytes") -> bytes:
    made = b""
    for name in (*names, "TRAILER!!!"):
        data = b"" if name == "TRAILER!!!" else content
        raw = name.encode() + b"\0"
        fields = [0, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        made += head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
    return made + bytes(-len(made) % 512)


def tool(*command: str) -> Callable[[bytes], bytes]:
    def compress(data: bytes) -> bytes:
        if shutil.which(command[0]) is None:
            pytest.skip(f"there is no {command[0]}")
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout

    return compress


def found(tmp_path: Path, data: bytes) -> bool:
    (tmp_path / "proc").mkdir()
    (tmp_path / "boot").mkdir()
    (tmp_path / PLACE[1:]).write_bytes(data)
    return has_module(Sysroot(str(tmp_path)), PLACE, "virtio_mem")


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zstd": tool("zstd", "-c"),
    "lz4 as the kernel reads it": tool("lz4", "-l", "-c"),
    "lz4": tool("lz4", "-c"),
}


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_module_is_found_behind_the_microcode_in_every_compression(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    early = archive("kernel/x86/microcode/GenuineIntel.bin", content=bytes(range(256)) * 8192)
    assert found(tmp_path, early + bytes(4096) + compress(archive("init", MODULE)))


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_module_that_is_not_there_is_not_found(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    others = ("init", "lib/virtio_mem.ko.xz.d/none", "lib/xvirtio_mem.ko", "lib/virtio_mem.conf")
    assert not found(tmp_path, archive("early") + compress(archive(*others)))


@pytest.mark.parametrize("name", ["lib/virtio-mem.ko", "virtio_mem.ko.zst", "./lib/virtio_mem.ko.gz"])
def test_module_may_be_named_with_a_dash_and_be_compressed_itself(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, archive(name))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"#!/bin/sh\n", "where an archive should begin"),
        (archive(MODULE.replace("virtio_mem", "other"))[:150], "ends within an archive"),
        (gzip.compress(archive("init"))[:40], "is not an initramfs that can be read"),
        (gzip.compress(b"text"), "no archive in the compressed part"),
        (archive("init")[:-512] + b"0707", "where an archive should begin"),
        (b"070701" + b"F" * 104, "a name has 4294967295 bytes"),
    ],
)
def test_file_that_is_no_initramfs_is_cannot_tell(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(CannotTellError, match=words):
        found(tmp_path, data)


def test_missing_file_and_missing_program_are_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sys").mkdir()
    with pytest.raises(CannotTellError, match="does not exist"):
        has_module(Sysroot(str(tmp_path)), PLACE, "virtio_mem")
    monkeypatch.setattr(initramfs, "SEARCH", "/nonexistent")
    with pytest.raises(CannotTellError, match="compressed with zstd, and there is no program zstd"):
        found(tmp_path, b"\x28\xb5\x2f\xfd" + bytes(16))


@pytest.mark.parametrize("image", ["squash-root.img", "squashfs-root.img", "erofs-root.img"])
def test_image_of_dracut_with_the_other_files_is_cannot_tell(tmp_path: Path, image: str) -> None:
    words = f"the files are in {image} in it, .* `lsinitrd {PLACE} . grep virtio_mem` shows"
    with pytest.raises(CannotTellError, match=words):
        found(tmp_path, archive("init", image, "usr/lib/modules/6.1/kernel/drivers/block/loop.ko"))
    assert has_module(Sysroot(str(tmp_path)), PLACE, "loop")


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_initramfs_in_a_packed_tree_is_read_too(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    packed = tmp_path / "tree.tar.gz"
    with tarfile.open(packed, "w:gz") as tree:
        for name, data in (("tree/proc/cmdline", b"quiet\n"), (f"tree{PLACE}", compress(archive(MODULE)))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tree.addfile(member, io.BytesIO(data))
    assert has_module(open_sysroot(str(packed)), PLACE, "virtio_mem")
