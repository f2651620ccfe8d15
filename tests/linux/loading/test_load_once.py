"""Loading an image: files first, the right loader, and the former image where the new one is refused."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError, NoRoomError
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.linux.loading import capture_kernel, former_image
from crash_hotplug.linux.loading.system_calls import kexec_file_load
from crash_hotplug.linux.loading.load import load_once
from crash_hotplug.linux.loading.capture_kernel import CaptureKernel, Strategy
from crash_hotplug.linux.loading.former_image import keep_former_image
from crash_hotplug.core.reload import put_back
from crash_hotplug.linux.loading.system_calls import KexecFileLoadError
from crash_hotplug.linux.loading.system_calls import KexecError
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.loading.load import LoadRecord, read_record, save_record
from tests.core.test_capture_kernel import bzimage_head
from tests.linux.fake_kexec import INITRD, KERNEL, PURGATORY, FakeKexec


class Loader:
    """Stands in for kexec_file_load, kexec-tools and take-over; the former image is that of a fake machine."""

    def __init__(self, fake: FakeKexec, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake, self.calls = fake, list[str]()
        self.error = 0
        self.not_ready: str | None = None
        self.records = str(directory / "run")
        self.kexec: str | None = "/sbin/kexec"
        self.kernel = directory / "vmlinuz"
        self.kernel.write_bytes(bzimage_head().ljust(0x5000, b"\0"))
        monkeypatch.setattr(kexec_file_load, "_call", self._file_load)
        monkeypatch.setattr(capture_kernel, "find_kexec", lambda: self.kexec)
        monkeypatch.setattr(capture_kernel, "load_with_kexec_tools", self._kexec)
        monkeypatch.setattr(former_image, "load_crash_image", self._put_back)
        monkeypatch.setattr(load_once, "kdump_locks", _unlocked)
        monkeypatch.setattr(load_once, "Sysroot", lambda: fake.sysroot)
        monkeypatch.setattr(load_once, "make_ready", lambda *_: self.not_ready)
        monkeypatch.setattr(load_once, "unload_crash_image", self._unload)
        monkeypatch.setattr(load_once, "save_record", lambda record: save_record(record, self.records))

    def load(
        self,
        strategy: Strategy = Strategy.AUTO,
        kernel: Path | None = None,
        initrd: str | None = None,
        cmdline: str = "",
        hotplug_size: int | None = None,
        must: bool = False,
    ) -> load_once.Loaded:
        files = CaptureKernel(str(kernel or self.kernel), initrd, cmdline)
        return load_once.load_once(
            LiveMachine(self.fake.sysroot), LoadRecord(files, strategy, 8192, hotplug_size), must
        )

    def _file_load(self, _kernel: int, _initrd: int, _cmdline: bytes | None, _flags: int) -> None:
        self.calls.append("file")
        if self.error:
            if self.error != errno.EPERM:  # the kernel drops the former image before it looks at the new one
                self.fake.unload()
            raise KexecFileLoadError(self.error)

    def _kexec(self, *_arguments: object) -> list[str]:
        self.calls.append("kexec")
        return ["-p", "-c"]

    def _put_back(self, _entry: int, segments: Sequence[NewSegment], _flags: int) -> None:
        self.calls.append("put back")
        for s in segments:
            assert self.fake.read(s.phys, s.memsz) == s.data

    def _unload(self) -> None:
        self.calls.append("unload")
        self.fake.unload()


def _unlocked(_seconds: float) -> AbstractContextManager[None]:
    return nullcontext()


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loader:
    return Loader(FakeKexec(tmp_path), tmp_path, monkeypatch)


def test_it_is_loaded_and_remembered(loader: Loader) -> None:
    assert loader.load(cmdline="nr_cpus=1") == ("kexec_file_load", None)
    record = read_record(loader.records)
    assert record is not None
    assert record.files == (str(loader.kernel), None, "nr_cpus=1")
    assert loader.calls == ["file"]


def test_what_is_wrong_is_said_before_anything_is_dropped(loader: Loader, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOEXEC, errno.EKEYREJECTED, errno.ENODATA])
def test_where_only_kexec_load_will_do_kexec_tools_loads(loader: Loader, number: int) -> None:
    loader.error = number
    loaded = loader.load()
    assert loaded.how.startswith("kexec -p -c: kexec_file_load failed: ")
    assert loader.calls == ["file", "kexec"]


def test_what_kexec_file_load_would_refuse_is_not_given_to_it(loader: Loader) -> None:
    loader.kernel.write_bytes(bzimage_head(xloadflags=0).ljust(0x5000, b"\0"))
    assert "it has no 64-bit entry point" in loader.load().how
    with pytest.raises(InputError, match="it has no 64-bit entry point"):
        loader.load(Strategy.FILE)
    assert loader.calls == ["kexec"]


def test_a_strategy_that_was_asked_for_is_the_only_one(loader: Loader) -> None:
    assert loader.load(Strategy.KEXEC_TOOLS).how == "kexec -p -c"
    loader.error = errno.ENOEXEC
    with pytest.raises(CrashHotplugError, match="the former image was put back"):
        loader.load(Strategy.FILE)
    loader.kexec = None
    with pytest.raises(CrashHotplugError, match="kexec-tools is not installed"):
        loader.load(Strategy.KEXEC_TOOLS)
    assert loader.calls == ["kexec", "file", "put back"]


def test_a_kernel_that_refuses_gets_the_former_image_back(loader: Loader) -> None:
    loader.error = errno.EADDRNOTAVAIL
    with pytest.raises(CrashHotplugError, match=r"too small; the former image was put back$"):
        loader.load()
    assert loader.calls == ["file", "put back"]


def test_a_refusal_that_dropped_nothing(loader: Loader) -> None:
    loader.error = errno.EPERM
    with pytest.raises(CrashHotplugError, match=r"it is forbidden .*; the former image is still loaded$"):
        loader.load()
    assert loader.calls == ["file"]


@pytest.mark.parametrize(("name", "value"), [("kexec_load_disabled", "1"), ("kexec_load_limit_panic", "0")])
def test_a_sysctl_that_forbids_it_is_named(loader: Loader, name: str, value: str) -> None:
    loader.fake.write_file(f"proc/sys/kernel/{name}", f"{value}\n")
    with pytest.raises(CrashHotplugError, match=f"kernel.{name}"):
        loader.load()
    assert loader.calls == []


def test_room_that_cannot_be_given(loader: Loader) -> None:
    loader.not_ready = "there is no free place"
    assert loader.load().not_ready == "there is no free place"
    with pytest.raises(CrashHotplugError, match="there is no free place; the former image was put back"):
        loader.load(must=True)
    assert loader.calls == ["file", "file", "unload", "put back"]


def test_without_a_former_image(loader: Loader) -> None:
    loader.fake.unload()
    loader.error = errno.ENOMEM
    with pytest.raises(CrashHotplugError, match=r"; no crash image is loaded now$"):
        loader.load()
    assert loader.calls == ["file"]


def test_a_former_image_that_cannot_be_put_back(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> None:
        raise KexecError(errno.EPERM)

    monkeypatch.setattr(former_image, "load_crash_image", refused)
    loader.error = errno.ENOMEM
    with pytest.raises(CrashHotplugError, match="the former one could not be put back: kexec_load failed"):
        loader.load()


def test_all_of_the_former_image_is_kept(loader: Loader) -> None:
    former = keep_former_image(loader.fake.sysroot)
    assert former is not None
    assert {KERNEL, INITRD, PURGATORY} < {s.phys for s in former.segments}
    assert put_back(former, loader.fake.sysroot) == "the former image is still loaded"
    (loader.fake.root / "proc" / "kcore").unlink()
    assert keep_former_image(loader.fake.sysroot) is None


def test_a_kernel_that_does_not_say_whether_an_image_is_loaded(loader: Loader) -> None:
    (loader.fake.root / "sys/kernel/kexec_crash_loaded").unlink()
    assert put_back(None, loader.fake.sysroot) == "whether a crash image is loaded now cannot be told"


def test_a_kernel_that_refuses_is_a_sentence() -> None:
    """Flags that no kernel knows are refused before anything is touched, with or without privilege."""
    with pytest.raises(KexecFileLoadError, match="kexec_file_load failed"):
        kexec_file_load._call(-1, -1, None, 1 << 30)


def test_unloading_is_roots(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_once, "is_root", lambda: False)
    with pytest.raises(CannotTellError, match="run as root"):
        load_once.unload()
    monkeypatch.setattr(load_once, "is_root", lambda: True)
    monkeypatch.setattr(load_once, "forget_record", lambda: None)
    load_once.unload()
    assert loader.calls == ["unload"]
