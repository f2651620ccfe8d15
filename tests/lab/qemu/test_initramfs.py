# SPDX-License-Identifier: MIT
"""The initramfs of a guest: the cpio archive, the order of modules, kernels given as files."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from crash_hotplug_lab.qemu import initramfs, kernels
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.guest_architecture import ARM64


def make_tree(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "bin/tool").write_bytes(b"#!/bin/sh\n")
    (root / "bin/tool").chmod(0o755)
    (root / "sbin").symlink_to("bin")


def test_cpio_members_are_aligned_and_owned_by_root(tmp_path: Path) -> None:
    make_tree(tmp_path)
    out = io.BytesIO()
    initramfs.write_tree(tmp_path, out)
    raw, place, names = out.getvalue(), 0, []
    while True:
        assert raw[place : place + 6] == b"070701"
        fields = [int(raw[place + 6 + 8 * n : place + 14 + 8 * n], 16) for n in range(13)]
        assert (fields[2], fields[3]) == (0, 0)
        name = raw[place + 110 : place + 109 + fields[11]].decode()
        if name == "TRAILER!!!":
            break
        names.append((name, oct(fields[1])))
        place = (place + 110 + fields[11] + 3 & ~3) + fields[6] + 3 & ~3
    assert names == [("bin", "0o40755"), ("sbin", "0o120777"), ("bin/tool", "0o100755")]
    assert len(raw) % 512 == 0


@pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio on this machine to read the archive with")
def test_cpio_archive_is_read_by_cpio(tmp_path: Path) -> None:
    make_tree(tmp_path)
    out = io.BytesIO()
    initramfs.write_tree(tmp_path, out)
    listed = subprocess.run(["cpio", "-t", "--quiet"], input=out.getvalue(), capture_output=True, check=True)
    assert listed.stdout.split() == [b"bin", b"sbin", b"bin/tool"]


def module(depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0intree=Y\0"


def test_modules_come_after_their_dependencies(tmp_path: Path) -> None:
    (tmp_path / "virtio-pci.ko").write_bytes(module("virtio,virtio_ring"))
    (tmp_path / "virtio.ko.xz").write_bytes(lzma.compress(module("")))
    (tmp_path / "virtio_ring.ko").write_bytes(module("virtio"))
    order = kernels.modules_in_load_order(tmp_path, ("virtio_pci", "built_in"))
    assert list(order) == ["virtio", "virtio_ring", "virtio_pci"]
    assert order["virtio"] == module("")


def bzimage(release: str) -> bytes:
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x400).to_bytes(2, "little")
    head[0x600 : 0x600 + len(release) + 5] = release.encode() + b" (me)"
    return bytes(head)


def test_kernel_given_as_a_file_has_the_release_of_its_header(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage("6.17.0-mine+"))
    kernel = kernels.own(tmp_path / "bzImage", tmp_path)
    assert (kernel.release, kernel.series, kernel.has_crash_hotplug) == ("6.17.0-mine+", (6, 17), True)


def test_arm64_kernel_given_as_a_file_has_the_release_of_its_banner(tmp_path: Path) -> None:
    image = bytearray(0x1000)
    image[0x38:0x3C] = b"ARM\x64"
    image[0x800:0x900] = b"Linux version 6.17.0-mine (me@here) #1 SMP".ljust(0x100, b"\0")
    (tmp_path / "Image").write_bytes(image)
    kernel = kernels.own(tmp_path / "Image", tmp_path, architecture=ARM64)
    assert (kernel.release, kernel.name, kernel.has_crash_hotplug) == ("6.17.0-mine", "arm64-own", False)
    with pytest.raises(LabError, match="is not an x86 kernel image"):
        kernels.own(tmp_path / "Image", tmp_path)
    (tmp_path / "bzImage").write_bytes(bzimage("6.1"))
    with pytest.raises(LabError, match="is not an arm64 kernel image"):
        kernels.own(tmp_path / "bzImage", tmp_path, architecture=ARM64)


def test_libraries_are_copied_with_those_that_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {"program": ["liba.so.1", "ld.so"], "liba.so.1": ["libb.so.1", "liba.so.1"], "libb.so.1": []}
    monkeypatch.setattr(initramfs, "_needed", lambda path: needed[path.name])
    libraries = {}
    for name in ("liba.so.1", "libb.so.1", "libc.so.1"):
        libraries[name] = tmp_path / name
        libraries[name].write_text(name)
    target = tmp_path / "target"
    target.mkdir()
    initramfs._copy_libraries(tmp_path / "program", libraries, target)
    assert sorted(path.name for path in target.iterdir()) == ["liba.so.1", "libb.so.1"]


def test_needed_libraries_are_read_from_the_elf_file() -> None:
    assert "libc.so.6" in initramfs._needed(Path(shutil.which("sh") or "/bin/sh"))


def test_kernel_given_as_a_file_is_refused_where_it_is_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no kernel")
    with pytest.raises(LabError, match="is not an x86 kernel image"):
        kernels.own(tmp_path / "text", tmp_path)
    with pytest.raises(LabError, match="cannot read"):
        kernels.own(tmp_path / "nothing", tmp_path)
    (tmp_path / "bzImage").write_bytes(bzimage("6.1"))
    with pytest.raises(LabError, match="is not a directory of kernel modules"):
        kernels.own(tmp_path / "bzImage", tmp_path / "nothing")


def test_kernel_key_that_is_not_known_is_refused() -> None:
    with pytest.raises(LabError, match=r"no kernel is known as 2\.6; known are 5\.10"):
        kernels.ready("2.6")
