# SPDX-License-Identifier: MIT
"""A saved tree in a tar archive, as another person may send it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.linux import archive as module
from crash_hotplug.linux.doctor.rooted_files import exists, read_config
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.snapshot import take_snapshot
from crash_hotplug.linux.sysroot import SOS_SNAPSHOT, open_sysroot
from tests.trees import NAMES, tree

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
}


def packed(*members: tuple[str, bytes | str | tarfile.TarInfo | None]) -> bytes:
    """Return a tar archive: bytes are a file, a text is a link's target, None is a directory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.name = name
            if content is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            elif isinstance(content, bytes):
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return stream.getvalue()


def special(kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    """Return a member of another type than file, link or directory."""
    member = tarfile.TarInfo()
    member.type, member.linkname = kind, linkname
    return member


def pack_tree(directory: Path, prefix: str, path: Path) -> Path:
    """Pack a directory below *prefix* as the name of *path* says."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(directory, prefix or ".")
    ending = path.name[path.name.index(".tar") :]
    path.write_bytes(COMPRESSORS[ending](stream.getvalue()))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., str]:
    def write(*members: tuple[str, bytes | str | tarfile.TarInfo | None], ending: str = ".tar") -> str:
        path = tmp_path / f"case{ending}"
        path.write_bytes(COMPRESSORS[ending](packed(*members)))
        return str(path)

    return write


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize("prefix", ["", "case-1", "sosreport-host-2026-11-27-abcdefg", "one/two/three"])
def test_every_format_and_leading_directory_gives_the_machine_of_the_tree(
    tmp_path: Path, ending: str, prefix: str
) -> None:
    path = pack_tree(tree("6.12-ch", 1), prefix, tmp_path / f"case{ending}")
    found, directory = open_sysroot(str(path)), open_sysroot(str(tree("6.12-ch", 1)))
    assert read_machine(found) == read_machine(directory)
    assert not found.is_live


@pytest.mark.parametrize("name", NAMES)
def test_snapshot_of_an_archive_has_the_files_of_the_tree(tmp_path: Path, name: str) -> None:
    path = pack_tree(tree(name, 1), "case", tmp_path / "case.tar.gz")
    assert take_snapshot(open_sysroot(str(path))) == take_snapshot(open_sysroot(str(tree(name, 1))))


def test_parallel_compressors_streams_are_read(tmp_path: Path) -> None:
    data = packed(("proc/cmdline", b"quiet\n"))
    path = tmp_path / "case.tar.xz"
    path.write_bytes(lzma.compress(data[:512]) + bytes(8) + lzma.compress(data[512:]))
    assert open_sysroot(str(path)).read_text("/proc/cmdline") == "quiet"


def test_names_are_as_in_a_directory(archive: Callable[..., str]) -> None:
    found = open_sysroot(archive(("./proc/cmdline", b"a\n"), ("./sys/devices", None), ("./sys/b/c", b"")))
    assert found.names("/sys") == ["b", "devices"]
    assert found.names("/nowhere") == []
    assert found.directory_of_many("/sys").read_text("b", "c") == ""
    assert found.read("/proc/iomem") is None
    assert found.read("/proc/cmdline/below-a-file") is None
    assert exists(found, "/sys/devices")
    assert not exists(found, "/sys/none")
    with pytest.raises(InputError, match=r"case.tar:/sys is not a regular file"):
        found.read("/sys")


def test_links_inside_the_tree_are_followed(archive: Callable[..., str]) -> None:
    found = open_sysroot(
        archive(
            ("x/proc/real/state", b"online\n"),
            ("x/proc/link", "real"),
            ("x/proc/real/up", "../../proc/real/state"),
            ("x/etc/udev/rules.d/off.rules", "/dev/null"),
            ("x/etc/config", "/proc/link/state"),
        )
    )
    assert found.read("/proc/link/state") == b"online\n"
    assert found.read("/proc/link/up") == b"online\n"
    assert found.directory_of_many("/proc").read_text("link", "state") == "online"
    assert read_config(found, "/etc/udev/rules.d/off.rules") == ""
    assert read_config(found, "/etc/config") == "online\n"
    assert exists(found, "/proc/link/state")


@pytest.mark.parametrize("target", ["/etc/passwd", "../../etc/passwd", "../../../../../../etc/passwd"])
def test_link_out_of_the_tree_is_refused(archive: Callable[..., str], target: str) -> None:
    found = open_sysroot(archive(("x/proc/cmdline", target), ("x/etc/hostname", b"")))
    with pytest.raises(InputError, match="leads out of the saved tree"):
        found.read("/proc/cmdline")


def test_link_in_a_circle_is_refused(archive: Callable[..., str]) -> None:
    found = open_sysroot(archive(("proc/a", "b"), ("proc/b", "a")))
    with pytest.raises(InputError, match="more than 40 links"):
        found.read("/proc/a")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_device_or_pipe_is_refused(archive: Callable[..., str], kind: bytes) -> None:
    found = open_sysroot(archive(("proc/cmdline", special(kind)), ("proc/x", b"")))
    with pytest.raises(InputError, match="not a regular file"):
        found.read("/proc/cmdline")


def test_hard_link_is_the_file_of_the_tree_and_no_other(archive: Callable[..., str]) -> None:
    inside, outside = special(tarfile.LNKTYPE, "x/proc/cmdline"), special(tarfile.LNKTYPE, "/etc/passwd")
    found = open_sysroot(archive(("x/proc/cmdline", b"q\n"), ("x/proc/again", inside), ("x/proc/out", outside)))
    assert found.read("/proc/again") == b"q\n"
    with pytest.raises(InputError, match="hard link to a file that is not in the tree"):
        found.read("/proc/out")


def test_absolute_name_is_a_name_in_the_archive(archive: Callable[..., str]) -> None:
    assert open_sysroot(archive(("/proc/cmdline", b"here\n"))).read("/proc/cmdline") == b"here\n"


def test_name_with_dots_is_refused(archive: Callable[..., str]) -> None:
    with pytest.raises(InputError, match=r"a member that leads out of it: proc/../../cmdline"):
        open_sysroot(archive(("proc/../../cmdline", b"")))


def test_last_of_two_members_with_one_name_counts(archive: Callable[..., str]) -> None:
    found = open_sysroot(archive(("proc/a", b"1"), ("proc/a", b"2"), ("proc/b", "a"), ("proc/b", b"3")))
    assert (found.read("/proc/a"), found.read("/proc/b")) == (b"2", b"3")


def test_archive_without_a_tree_is_refused(archive: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="neither proc/ nor sys/"):
        open_sysroot(archive(("case/etc/passwd", b""), ("case/proc", b"a file")))


def test_archive_of_two_trees_is_refused(archive: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="more than one saved tree: a and b"):
        open_sysroot(archive(("b/proc/iomem", b""), ("a/sys/x", b"")))


def test_tree_of_the_sos_plugin_is_preferred(archive: Callable[..., str], tmp_path: Path) -> None:
    members = (("s/proc/cmdline", b"sos\n"), (f"s/{SOS_SNAPSHOT}/proc/cmdline", b"ours\n"))
    path = archive(*members)
    assert open_sysroot(path).read("/proc/cmdline") == b"ours\n"
    with tarfile.open(path) as opened:
        opened.extractall(tmp_path)
    assert open_sysroot(str(tmp_path / "s")).read("/proc/cmdline") == b"ours\n"


def test_unpacked_sosreport_whose_snapshot_leads_out_of_it_is_read_without_it(tmp_path: Path) -> None:
    (tmp_path / "s" / "proc").mkdir(parents=True)
    (tmp_path / "s" / "proc" / "cmdline").write_text("sos")
    (tmp_path / "s" / SOS_SNAPSHOT).parent.mkdir(parents=True)
    (tmp_path / "s" / SOS_SNAPSHOT).symlink_to(tree("6.1-c", 1))
    assert open_sysroot(str(tmp_path / "s")).read("/proc/cmdline") == b"sos"


def test_deeper_proc_does_not_hide_the_tree(archive: Callable[..., str]) -> None:
    found = open_sysroot(archive(("s/etc/sys/x", b""), ("s/sos_commands/proc/y", b""), ("s/sys/z", b"1")))
    assert found.read("/sys/z") == b"1"


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_truncated_archive_is_an_error_wherever_it_ends(tmp_path: Path, ending: str) -> None:
    whole = COMPRESSORS[ending](packed(("proc/cmdline", b"x" * 1000), ("var/log", bytes(3000)), ("sys/a", b"1")))
    path = tmp_path / "case"
    end = len(whole) if ending != ".tar" else 512 + 1024 + 512 + 3072 + 512 + 512 + 512  # the first block of zeros
    for size in range(0, end, 97):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"truncated|damaged|neither"):
            open_sysroot(str(path))


def test_damaged_header_does_not_end_the_archive(tmp_path: Path) -> None:
    whole = bytearray(packed(("proc/cmdline", b"x"), ("proc/iomem", b"1")))
    whole[1024] ^= 1
    (tmp_path / "case").write_bytes(whole)
    with pytest.raises(InputError, match="truncated or damaged after 1024 bytes"):
        open_sysroot(str(tmp_path / "case"))


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_damaged_archive_is_one_sentence(tmp_path: Path, ending: str) -> None:
    whole = COMPRESSORS[ending](packed(("proc/cmdline", b"x" * 1000), ("sys/a", b"1")))
    path = tmp_path / "case"
    for at in range(0, len(whole), 41):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xA5]) + whole[at + 1 :])
        try:
            open_sysroot(str(path))
        except CrashHotplugError as error:
            assert "\n" not in str(error)


def test_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "case.tar.xz.gpg"
    for data in (b"", b"x" * 5000, os.urandom(4096)):
        path.write_bytes(data)
        with pytest.raises(InputError, match="neither a directory nor a tar archive"):
            open_sysroot(str(path))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="not a regular file"):
        open_sysroot(str(path))


def test_file_beyond_its_limit_is_refused_when_it_is_read(archive: Callable[..., str]) -> None:
    found = open_sysroot(archive(("proc/x", b""), ("etc/default/kdump-tools", bytes((1 << 20) + 1))))
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        found.read("/etc/default/kdump-tools", 1 << 30)


def test_archive_with_too_many_members_is_refused(archive: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(*[(f"proc/{number}", b"") for number in range(5)])
    monkeypatch.setattr(module, "MOST_MEMBERS", 6)
    assert len(open_sysroot(path).names("/proc")) == 5
    monkeypatch.setattr(module, "MOST_MEMBERS", 5)
    with pytest.raises(InputError, match="more than 5 members"):
        open_sysroot(path)


def test_archive_with_too_many_bytes_is_refused(archive: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(("proc/x", bytes(200_000)), ("var/y", bytes(200_000)))
    monkeypatch.setattr(module, "MOST_KEPT", 200_000)
    with pytest.raises(InputError, match="settings and kernel files"):
        open_sysroot(path)
    monkeypatch.setattr(module, "MOST_KEPT", 201_000)
    assert open_sysroot(path).read("/proc/x", 1 << 20) == bytes(200_000)
    monkeypatch.setattr(module, "MOST_DECOMPRESSED", 300_000)
    with pytest.raises(InputError, match="more than 300000 bytes of contents"):
        open_sysroot(path)


def test_names_of_many_directories_take_little_time_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "case.tar.gz"
    name = "proc/" + "a/" * 20_000
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(name + "x"))
    path.write_bytes(gzip.compress(stream.getvalue()))
    start = time.monotonic()
    with pytest.raises(InputError, match="too many directories"):
        open_sysroot(str(path))
    assert time.monotonic() - start < 5


def test_kernel_files_below_a_directory_with_the_name_of_settings_may_be_large(archive: Callable[..., str]) -> None:
    found = open_sysroot(archive(("run/case/proc/kallsyms", bytes(2 << 20))))
    assert len(found.read("/proc/kallsyms", 1 << 30) or b"") == 2 << 20


def test_bytes_behind_the_end_mark_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "case").write_bytes(packed(("proc/x", b"1")) + bytes(200_000))
    assert open_sysroot(str(tmp_path / "case")).read("/proc/x") == b"1"
    monkeypatch.setattr(module, "MOST_DECOMPRESSED", 100_000)
    with pytest.raises(InputError, match="more than 100000 bytes of contents"):
        open_sysroot(str(tmp_path / "case"))


def header(size: int, kind: bytes = tarfile.REGTYPE, name: str = "proc/x") -> bytes:
    """Return the header of a member that claims *size* bytes."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.bz2", ".tar.xz"])
def test_bomb_in_a_header_takes_no_memory(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "case"
    path.write_bytes(COMPRESSORS[ending](header(32 << 20, tarfile.XHDTYPE) + bytes(32 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="in a member's header"):
            open_sysroot(str(path))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1 << 62, (8 << 30) + 1, -512, -(1 << 40)])
def test_size_that_no_archive_has_is_refused_at_once(tmp_path: Path, size: int) -> None:
    path = tmp_path / "case"
    path.write_bytes(header(3) + bytes(512) + header(size, name="var/log") + bytes(1024))
    start = time.monotonic()
    with pytest.raises(InputError):
        open_sysroot(str(path))
    assert time.monotonic() - start < 2


def test_chain_of_headers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "case"
    path.write_bytes(header(0, tarfile.XHDTYPE) * 3000 + bytes(1024))
    with pytest.raises(InputError):
        open_sysroot(str(path))


def test_xz_that_demands_too_much_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "case.tar.xz"
    path.write_bytes(lzma.compress(packed(("proc/x", b"1")), preset=9))
    assert open_sysroot(str(path)).read("/proc/x") == b"1"
    monkeypatch.setattr(module, "_DICTIONARY", 32 << 20)
    with pytest.raises(InputError, match="is damaged: Memory usage limit"):
        open_sysroot(str(path))


def test_python_without_a_decompressor_cannot_tell(
    archive: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(("proc/x", b""), ending=".tar.xz")
    monkeypatch.setitem(__import__("sys").modules, "lzma", None)
    with pytest.raises(CannotTellError, match="cannot decompress"):
        open_sysroot(path)


def test_archive_cannot_be_written(archive: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="no file in it can be changed"):
        open_sysroot(archive(("proc/x", b""))).root_for_writing()
