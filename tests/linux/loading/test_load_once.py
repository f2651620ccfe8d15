# SPDX-License-Identifier: MIT
"""Loading an image: files first, the right loader, and the previous image where the new one is refused."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError, NoRoomError
from crash_hotplug.core.kept_image import keep_image, put_back
from crash_hotplug.core.reload import Loaded
from crash_hotplug.linux.loading.capture_kernel import (
    CaptureKernel,
    LoaderCalls,
    Strategy,
    load_capture_kernel,
    unload_crash_image,
)
from crash_hotplug.linux.loading.live_machine import run_patiently
from crash_hotplug.linux.loading.load import LoadRecord, load_once, read_record, unload
from crash_hotplug.linux.loading.system_calls import FILE_UNLOAD, KexecError, KexecFileLoadError, kexec_file_load
from tests.core.arch.test_boot_params import bzimage_head
from tests.linux.fake_kexec import INITRD, KERNEL, PURGATORY, FakeKexec


class Loader:
    """Stands in for kexec_file_load and kexec-tools; the previous image is that of a fake machine."""

    def __init__(self, fake: FakeKexec, directory: Path) -> None:
        self.fake, self.calls = fake, list[str]()
        self.error = 0
        self.records = str(directory / "run")
        self.kexec: str | None = "/sbin/kexec"
        self.kernel = directory / "vmlinuz"
        self.kernel.write_bytes(bzimage_head().ljust(0x5000, b"\0"))
        self.loader_calls = LoaderCalls(self._file_load, lambda: self.kexec, self._run_kexec)
        fake.after_load = self._note_kexec_load

    def load(
        self,
        strategy: Strategy = Strategy.AUTO,
        kernel: Path | None = None,
        initrd: str | None = None,
        cmdline: str = "",
        hotplug_size: int | None = None,
        must: bool = False,
        allow_unsigned: bool = False,
    ) -> Loaded:
        files = CaptureKernel(str(kernel or self.kernel), initrd, cmdline, allow_unsigned)
        return load_once(
            self.fake.machine(),
            LoadRecord(files, strategy, 100, hotplug_size),
            must,
            sysroot=self.fake.sysroot,
            calls=self.loader_calls,
            directory=self.records,
        )

    def _file_load(self, _kernel: int, _initrd: int, _cmdline: bytes | None, flags: int) -> None:
        if flags & FILE_UNLOAD:
            self.calls.append("unload")
            self.fake.unload()
            return
        self.calls.append("file")
        if self.error:
            if self.error != errno.EPERM:  # the kernel drops the previous image before it looks at the new one
                self.fake.unload()
            raise KexecFileLoadError(self.error)

    def _run_kexec(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        if command[1:] != ["--help"]:
            self.calls.append("kexec")
            self.fake.load_again()
        return subprocess.CompletedProcess(command, 0, "", "")

    def _note_kexec_load(self) -> None:
        whole = len(self.fake.loads[-1]) == len(self.fake.image().kimage.segments)  # type: ignore[union-attr]
        self.calls.append("put back" if (whole and self.error) or "unload" in self.calls else "update")


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    return Loader(FakeKexec(tmp_path), tmp_path)


def test_load_once_loads_and_records_the_image(loader: Loader) -> None:
    assert loader.load(cmdline="nr_cpus=1") == ("kexec_file_load", None)
    record = read_record(loader.records)
    assert record is not None
    assert record.files == CaptureKernel(str(loader.kernel), None, "nr_cpus=1", allow_unsigned=False)
    assert loader.calls == ["file", "update"]


def test_wrong_input_is_refused_before_the_image_is_dropped(loader: Loader, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no kernel")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(200 << 20)
    for error, arguments in (
        (InputError, {"kernel": tmp_path / "text"}),
        (InputError, {"kernel": tmp_path / "missing"}),
        (InputError, {"kernel": tmp_path}),
        (InputError, {"initrd": str(tmp_path / "missing")}),
        (InputError, {"cmdline": "x" * 3000}),
        (InputError, {"cmdline": "a\0b"}),
        (InputError, {"hotplug_size": 100}),
        (NoRoomError, {"initrd": str(large)}),
    ):
        with pytest.raises(error):
            loader.load(**arguments)
    assert loader.calls == []
    assert read_record(loader.records) is None


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOEXEC])
@pytest.mark.parametrize("allow_unsigned", [False, True])
def test_kexec_tools_load_where_kexec_file_load_cannot(loader: Loader, number: int, allow_unsigned: bool) -> None:
    loader.error = number
    loaded = loader.load(allow_unsigned=allow_unsigned)
    assert loaded.how.startswith("kexec -p -c: kexec_file_load failed: ")
    assert loader.calls == ["file", "kexec", "update"]


SIGNATURE_ERRORS = [errno.EKEYREJECTED, errno.ENODATA, errno.ENOKEY, errno.ENOPKG]


@pytest.mark.parametrize("number", SIGNATURE_ERRORS)
def test_refused_signature_fails_and_names_reason_and_option(loader: Loader, number: int) -> None:
    loader.error = number
    expected = r"^kexec_file_load failed: .*signature.*; with --allow-unsigned, .*; the previous image was put back$"
    with pytest.raises(CrashHotplugError, match=expected):
        loader.load()
    assert loader.calls == ["file", "put back"]
    assert read_record(loader.records) is None


@pytest.mark.parametrize("number", SIGNATURE_ERRORS)
def test_refused_signature_goes_to_kexec_tools_with_consent_only(loader: Loader, number: int) -> None:
    loader.error = number
    assert loader.load(allow_unsigned=True).how.startswith("kexec -p -c: kexec_file_load failed: ")
    assert loader.calls == ["file", "kexec", "update"]
    record = read_record(loader.records)
    assert record is not None
    assert record.files.allow_unsigned is True


def test_refused_signature_does_not_offer_kexec_tools_to_the_file_strategy(loader: Loader) -> None:
    loader.error = errno.ENODATA
    with pytest.raises(CrashHotplugError) as raised:
        loader.load(Strategy.FILE, allow_unsigned=True)
    assert "--allow-unsigned" not in str(raised.value)
    assert loader.calls == ["file", "put back"]


def test_kernel_that_kexec_file_load_would_refuse_goes_to_kexec_tools(loader: Loader) -> None:
    loader.kernel.write_bytes(bzimage_head(xloadflags=0).ljust(0x5000, b"\0"))
    assert "it has no 64-bit entry point" in loader.load().how
    with pytest.raises(InputError, match="it has no 64-bit entry point"):
        loader.load(Strategy.FILE)
    assert loader.calls == ["kexec", "update"]


def test_requested_strategy_is_the_only_one_tried(loader: Loader) -> None:
    assert loader.load(Strategy.KEXEC_TOOLS).how == "kexec -p -c"
    loader.error = errno.ENOEXEC
    with pytest.raises(CrashHotplugError, match="the previous image was put back"):
        loader.load(Strategy.FILE)
    loader.kexec = None
    with pytest.raises(CrashHotplugError, match="kexec-tools is not installed"):
        loader.load(Strategy.KEXEC_TOOLS)
    assert loader.calls == ["kexec", "update", "file", "put back"]


def test_refused_load_puts_the_previous_image_back(loader: Loader) -> None:
    loader.error = errno.EADDRNOTAVAIL
    with pytest.raises(CrashHotplugError, match=r"too small; the previous image was put back$"):
        loader.load()
    assert loader.calls == ["file", "put back"]


def test_refusal_before_the_drop_keeps_the_previous_image(loader: Loader) -> None:
    loader.error = errno.EPERM
    with pytest.raises(CrashHotplugError, match=r"it is forbidden .*; the previous image is still loaded$"):
        loader.load()
    assert loader.calls == ["file"]


@pytest.mark.parametrize(("name", "value"), [("kexec_load_disabled", "1"), ("kexec_load_limit_panic", "0")])
def test_sysctl_that_forbids_loading_is_named(loader: Loader, name: str, value: str) -> None:
    loader.fake.write_file(f"proc/sys/kernel/{name}", f"{value}\n")
    with pytest.raises(CrashHotplugError, match=f"kernel.{name}"):
        loader.load()
    assert loader.calls == []


def test_room_that_cannot_be_given_fails_only_if_it_is_a_must(tmp_path: Path) -> None:
    loader = Loader(FakeKexec(tmp_path, has_free_place=False), tmp_path)
    assert "has no free place" in (loader.load(hotplug_size=0x20000).not_ready or "")
    with pytest.raises(CrashHotplugError, match=r"has no free place .*; the previous image was put back"):
        loader.load(must=True, hotplug_size=0x20000)
    assert loader.calls == ["file", "file", "unload", "put back"]


def test_refused_load_without_a_previous_image_says_so(loader: Loader) -> None:
    loader.fake.unload()
    loader.error = errno.ENOMEM
    with pytest.raises(CrashHotplugError, match=r"; no crash image is loaded now$"):
        loader.load()
    assert loader.calls == ["file"]


def test_previous_image_that_cannot_be_put_back_is_reported(loader: Loader) -> None:
    def refuse() -> None:
        raise KexecError(errno.EPERM)

    loader.fake.before_load = refuse
    loader.error = errno.ENOMEM
    with pytest.raises(CrashHotplugError, match="the previous one could not be put back: kexec_load failed"):
        loader.load()


def test_keep_image_keeps_the_whole_previous_image(loader: Loader) -> None:
    machine = loader.fake.machine()
    kept = keep_image(machine)
    assert kept is not None
    assert {KERNEL, INITRD, PURGATORY} < {s.phys for s in kept.segments}
    assert all(loader.fake.read(s.phys, s.memsz) == s.data for s in kept.segments)
    assert run_patiently(put_back(machine, kept)) == "the previous image is still loaded"
    (loader.fake.root / "proc" / "kcore").unlink()
    assert keep_image(machine) is None


def test_broken_image_is_not_kept(loader: Loader) -> None:
    assert keep_image(loader.fake.machine()) is not None
    loader.fake.flip_bit(KERNEL)
    assert keep_image(loader.fake.machine()) is None


def test_put_back_reports_that_the_kernel_does_not_show_the_image(loader: Loader) -> None:
    (loader.fake.root / "sys/kernel/kexec_crash_loaded").unlink()
    said = run_patiently(put_back(loader.fake.machine(), None))
    assert said == "whether a crash image is loaded now cannot be told"


def test_unknown_flags_of_kexec_file_load_are_a_sentence() -> None:
    """Flags that no kernel knows are refused before anything is touched, with or without privilege."""
    with pytest.raises(KexecFileLoadError, match="kexec_file_load failed"):
        kexec_file_load(-1, -1, None, 1 << 30)


def test_unload_requires_root(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(CannotTellError, match="run as root"):
        unload(loader.fake.machine(), loader.loader_calls, loader.records)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    unload(loader.fake.machine(), loader.loader_calls, loader.records)
    assert loader.calls == ["unload"]


class FileLoads:
    """Notes the arguments of kexec_file_load; file descriptors by the files that they are."""

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, str | None, bytes | None, int]] = []

    def __call__(self, kernel: int, initrd: int, cmdline: bytes | None, flags: int) -> None:
        kernel_path, initrd_path = (None if fd < 0 else os.readlink(f"/proc/self/fd/{fd}") for fd in (kernel, initrd))
        self.calls.append((kernel_path, initrd_path, cmdline, flags))


def test_kexec_file_load_gets_the_files_the_command_line_and_the_flags(loader: Loader, tmp_path: Path) -> None:
    initrd, loads, kernel = tmp_path / "initrd", FileLoads(), str(loader.kernel)
    initrd.write_bytes(b"initrd")
    calls = LoaderCalls(loads)
    before = len(os.listdir("/proc/self/fd"))
    load_capture_kernel(CaptureKernel(kernel, str(initrd), "nr_cpus=1"), Strategy.AUTO, calls=calls)
    load_capture_kernel(CaptureKernel(kernel, None, "x\udce9"), Strategy.FILE, calls=calls)
    unload_crash_image(calls)
    # KEXEC_FILE_ON_CRASH is 2, KEXEC_FILE_NO_INITRAMFS 4, KEXEC_FILE_UNLOAD 1.
    assert loads.calls == [
        (kernel, str(initrd), b"nr_cpus=1\0", 2),
        (kernel, None, b"x\xe9\0", 2 | 4),
        (None, None, None, 1 | 2),
    ]
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("length", "fits"), [(2017, True), (2018, False)])
def test_command_line_leaves_room_for_the_address_of_the_header(loader: Loader, length: int, fits: bool) -> None:
    """COMMAND_LINE_SIZE is 2048, with the null character and ``elfcorehdr=0x… ``."""
    loads = FileLoads()
    files = CaptureKernel(str(loader.kernel), None, "x" * length)
    if fits:
        load_capture_kernel(files, Strategy.FILE, calls=LoaderCalls(loads))
    else:
        with pytest.raises(InputError, match=f"has {length} bytes: that is too long"):
            load_capture_kernel(files, Strategy.FILE, calls=LoaderCalls(loads))
    assert len(loads.calls) == int(fits)


def test_pipe_in_place_of_the_kernel_is_refused_without_waiting(loader: Loader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError):
        loader.load(kernel=tmp_path / "pipe")
    assert loader.calls == []


def test_initrd_counts_for_the_reserved_region(loader: Loader, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(250 << 20)
    with pytest.raises(NoRoomError, match="too small"):
        loader.load(initrd=str(initrd))
    assert loader.calls == []


def test_unload_holds_the_lock_and_forgets_the_record(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    held, during = [False], []

    @contextlib.contextmanager
    def locks() -> Iterator[None]:
        held[0] = True
        yield
        held[0] = False

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    loader.load()
    assert read_record(loader.records) is not None
    loader.fake.locks = locks
    calls = LoaderCalls(lambda *_arguments: during.append(held[0]))
    unload(loader.fake.machine(), calls, loader.records)
    assert (during, held) == ([True], [False])
    assert read_record(loader.records) is None
