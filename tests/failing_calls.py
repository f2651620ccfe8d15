# SPDX-License-Identifier: MIT
"""Let each system call of a command fail in turn: ``python3 -m tests.failing_calls``.

A command runs on a machine of files.  In each run one of its calls fails in one way: an open, a read, a listed
directory, a lock, the file that remembers a torn image, or kexec_load itself.  The command may then give up, but it
ends with a sentence and one of the exit codes, it never says that a wrong image is right, and an image that it lost or
broke is named as such.  A healthy run after it gives the right image again, or says that a reload is due.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import io
import os
import struct
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple
from unittest import mock

from crash_hotplug.cli.main import main
from crash_hotplug.core.arch.boot_params import E820_COUNT, E820_ENTRY, E820_RAM, E820_TABLE
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.linux.loading.kdump_lock import kdump_locks
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.loading.reload import ReloadParts
from crash_hotplug.linux.loading.system_calls import KexecError
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.core.kallsyms_table import FakeTable
from tests.linux.fake_kcore import DIRECT_MAP, TEXT_VIRT
from tests.linux.fake_kexec import KERNEL, POINTER_OFFSET, POINTER_VIRT, PURGATORY, ZERO_PAGE, FakeKexec
from tests.trees import LiveTree

EXIT_CODES = (0, 1, 3, 4, 5)
"""Of cli/exit_codes.py, without wrong usage."""
LOUD = ("torn", "reload", "no dump", "no crash image is loaded")
"""Words of a sentence about an image that has to be loaded anew."""


class Fault(NamedTuple):
    """One way in which a call fails."""

    name: str
    error: int = 0
    """The error number that the call sets; 0 where it succeeds, with other data."""


_ERRORS = {name: Fault(name, getattr(errno, name)) for name in ("EIO", "EACCES", "ENOENT", "EMFILE", "ENOLCK")}
_SHORT, _TRUNCATED, _EMPTY, _ZEROS = Fault("short"), Fault("truncated"), Fault("empty"), Fault("zeros")
"""Half of the data, and the rest at the next read; half, and then the end; nothing; zeros, as kcore shows for a page
that it cannot read."""
_REFUSED, _DROPPED, _HALF_COPIED, _ALWAYS_DROPPED, _BUSY = (
    Fault("refused", errno.EPERM),
    Fault("image dropped", errno.ENOMEM),
    Fault("image dropped, segments half copied", errno.ENOMEM),
    Fault("image dropped each time", errno.ENOMEM),
    Fault("busy", errno.EBUSY),
)
FAULTS: dict[str, Sequence[Fault]] = {
    "open": [_ERRORS[name] for name in ("EIO", "EACCES", "ENOENT", "EMFILE")],
    "read": [_ERRORS["EIO"], _SHORT, _TRUNCATED, _EMPTY, _ZEROS],
    "listdir": [_ERRORS[name] for name in ("EIO", "ENOENT", "EACCES")],
    "flock": [Fault("taken", errno.EWOULDBLOCK), _ERRORS["ENOLCK"], _ERRORS["EIO"]],
    "write": [_ERRORS["EIO"], Fault("ENOSPC", errno.ENOSPC)],
    "rename": [_ERRORS["EIO"]],
    "mkdir": [Fault("EROFS", errno.EROFS)],
    "kexec_load": [_REFUSED, _DROPPED, _HALF_COPIED, _ALWAYS_DROPPED, _BUSY],
}


class Call(NamedTuple):
    """One call that a command made."""

    kind: str
    path: str
    """Below the machine's root."""


class FailingFile:
    """An unbuffered file whose reads are counted, and fail."""

    def __init__(self, calls: FailingCalls, file: Any, path: str) -> None:  # noqa: ANN401 as os.fdopen returns it
        self._calls, self._file, self._path, self._at_end = calls, file, path, False

    def __enter__(self) -> FailingFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 what the file has
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        if self._at_end:
            return b""
        fault = self._calls.next_fault("read", self._path)
        data: bytes = self._file.read(size)
        if fault is _SHORT:
            self._file.seek(len(data) // 2 - len(data), os.SEEK_CUR)
        self._at_end = fault in (_TRUNCATED, _EMPTY)
        return changed_data(fault, data)


def changed_data(fault: Fault | None, data: bytes) -> bytes:
    """Return what a read gives under a fault."""
    if fault in (_SHORT, _TRUNCATED):
        return data[: len(data) // 2]
    return b"" if fault is _EMPTY else bytes(len(data)) if fault is _ZEROS else data


class FailingCalls:
    """Counts the calls that touch files below a directory, and lets one of them fail."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self.made: list[Call] = []
        self.fails_at: int | None = None
        self.fault = Fault("none")
        self._paths: dict[int, str] = {}
        """Of the open descriptors."""

    def next_fault(self, kind: str, path: str) -> Fault | None:
        """Count a call.

        :return: how it gives other data; None where it does not fail
        :raise OSError: it fails
        """
        self.made.append(Call(kind, path.replace(self._root, "")))
        if self.fails_at != len(self.made) - 1:
            return None
        if self.fault.error and kind != "kexec_load":
            raise OSError(self.fault.error, os.strerror(self.fault.error), path)
        return self.fault

    def _path(self, path: Any, parent: int | None = None) -> str | None:  # noqa: ANN401 as os.open takes it
        """Return the path of a call where it lies below the root."""
        if isinstance(path, int):
            return self._paths.get(path)
        if parent is not None:
            return None if parent not in self._paths else os.path.join(self._paths[parent], path)
        if path.startswith("/proc/self/fd/"):
            number, _slash, name = path[len("/proc/self/fd/") :].partition("/")
            above = self._paths.get(int(number))
            return None if above is None else os.path.join(above, name) if name else above
        return path if path.startswith(self._root) else None

    def _counted(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 any call of os
            located = self._path(path, named.get("dir_fd", named.get("src_dir_fd")))
            if located is not None:
                self.next_fault(kind, located)
            result = call(path, *arguments, **named)
            if located is not None and kind == "open":
                self._paths[result] = located
            return result

        return counted

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the calls that this process makes."""
        fdopen, close, read = os.fdopen, os.close, os.read

        def open_file(descriptor: int, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 as os.fdopen
            file = fdopen(descriptor, *arguments, **named)
            path = self._paths.pop(descriptor, None)
            return file if path is None else FailingFile(self, file, path)

        def read_descriptor(descriptor: int, size: int) -> bytes:
            path = self._paths.get(descriptor)
            fault = None if path is None else self.next_fault("read", path)
            data = read(descriptor, size)
            if fault is _SHORT:
                os.lseek(descriptor, len(data) // 2 - len(data), os.SEEK_CUR)
            return changed_data(fault, data)

        def forget(descriptor: int) -> None:
            self._paths.pop(descriptor, None)
            close(descriptor)

        with contextlib.ExitStack() as patched:
            for module, name, replaced in (
                (os, "open", self._counted("open", os.open)),
                (os, "listdir", self._counted("listdir", os.listdir)),
                (os, "scandir", self._counted("listdir", os.scandir)),
                (os, "write", self._counted("write", os.write)),
                (os, "replace", self._counted("rename", os.replace)),
                (os, "makedirs", self._counted("mkdir", os.makedirs)),
                (fcntl, "flock", self._counted("flock", fcntl.flock)),
                (os, "fdopen", open_file),
                (os, "read", read_descriptor),
                (os, "close", forget),
            ):
                patched.enter_context(mock.patch.object(module, name, replaced))
            yield


CRASH_NOTES_VIRT, PER_CPU_OFFSET_VIRT, TABLE_VIRT = TEXT_VIRT + 0x3000, TEXT_VIRT + 0x4000, TEXT_VIRT + 0x10_0000
PERCPU_BASE = 0x2D400


class RestorableKexec(FakeKexec):
    """The machine of files as a live one, which can be put back into an earlier state."""

    def __init__(self, path: Path, **named: Any) -> None:  # noqa: ANN401 as FakeKexec
        self._undo: list[tuple[int, bytes]] = []
        self._saved: dict[str, bytes | None] = {}
        super().__init__(path, **named)
        self.sysroot = LiveTree(str(self.root))
        self.calls = FailingCalls(self.root)
        self._write_kernel_variables()
        for name in ("run/lock", "var/crash"):
            (self.root / name).mkdir(parents=True)
        self.keep_state()

    def _write_kernel_variables(self) -> None:
        """Write what a kernel has in memory: its table of symbols, and the places of every CPU's notes."""
        cpus = read_machine(Sysroot(str(self.root))).cpus
        places = [c.crash_notes.phys if c.crash_notes else 0x2000_0000 - c.number * 0x1000 for c in cpus]
        symbols = {
            "Bkexec_crash_image": POINTER_VIRT, "Bcrash_notes": CRASH_NOTES_VIRT,
            "D__per_cpu_offset": PER_CPU_OFFSET_VIRT,
            "T_stext": TEXT_VIRT, "T_text": TEXT_VIRT, "B_end": TEXT_VIRT + 0x80_0000,
        }  # fmt: skip
        lines = sorted((virt, name[0], name[1:]) for name, virt in symbols.items())
        self.write_file("proc/kallsyms", "".join(f"{virt:016x} {kind} {name}\n" for virt, kind, name in lines))
        table = FakeTable(symbols, virt=TABLE_VIRT)
        note = "".join(f"SYMBOL({name})={virt:x}\n" for name, virt in table.places.items())
        vmcoreinfo = read_machine(Sysroot(str(self.root))).vmcoreinfo
        assert vmcoreinfo is not None
        self.write(vmcoreinfo.phys, bytes(12) + b"VMCOREINFO\0\0" + note.encode())
        offsets = struct.pack(f"<{len(places)}Q", *(DIRECT_MAP + phys - PERCPU_BASE for phys in places))
        for virt, data in (
            (CRASH_NOTES_VIRT, PERCPU_BASE.to_bytes(8, "little")),
            (PER_CPU_OFFSET_VIRT, offsets),
            (TABLE_VIRT, bytes(table.memory)),
        ):
            self._write_at(POINTER_OFFSET + virt - POINTER_VIRT, data)

    def _write_at(self, offset: int, data: bytes) -> None:
        with self._kcore.open("rb") as file:
            file.seek(offset)
            self._undo.append((offset, file.read(len(data))))
        super()._write_at(offset, data)

    def keep_state(self) -> None:
        """Keep the state of now, for :meth:`restore`."""
        self._undo.clear()
        self._saved = {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and path != self._kcore
        }

    def restore(self) -> None:
        """Go back to the state that was kept last."""
        for offset, data in reversed(self._undo):
            super()._write_at(offset, data)
        self._undo.clear()
        for path in [path for path in self.root.rglob("*") if path.is_file() and path != self._kcore]:
            kept = self._saved.get(str(path.relative_to(self.root)))
            if kept is None:
                path.unlink()
            elif path.read_bytes() != kept:
                path.write_bytes(kept)
        self.loads.clear()
        self.flags.clear()

    def kexec_load(self, entry_phys: int, segments: Sequence[NewSegment], flags: int) -> None:
        """Act as kexec_load, or fail as it may."""
        is_first = not any(call.kind == "kexec_load" for call in self.calls.made)
        fault = self.calls.next_fault("kexec_load", "kexec_load")
        if self.calls.fault is _ALWAYS_DROPPED and not is_first:
            fault = _ALWAYS_DROPPED
        if fault is not None:
            if fault in (_DROPPED, _HALF_COPIED, _ALWAYS_DROPPED):
                self.unload()
            if fault is _HALF_COPIED:
                self.write(segments[0].phys, segments[0].data)
                self.write(segments[-1].phys, segments[-1].data[:64])
            raise KexecError(fault.error)
        super().kexec_load(entry_phys, segments, flags)

    @property
    def is_changed(self) -> bool:
        """Whether memory was written since the state was kept."""
        return bool(self._undo)

    def is_whole(self) -> bool:
        """Whether an image is loaded that purgatory would start."""
        try:
            return self.read_loaded() and self.digest_fits()
        except ValueError:  # no table where it was
            return False

    def read_loaded(self) -> bool:
        """Whether an image is loaded."""
        return (self.root / "sys/kernel/kexec_crash_loaded").read_text() == "1\n"

    def is_right(self) -> bool:
        """Whether a panic now would be dumped completely."""
        return self.is_whole() and self.verdict() is Verdict.ACCURATE


@dataclass(frozen=True)
class Scenario:
    """A command on a machine."""

    arguments: Sequence[str]
    prepare: Callable[[RestorableKexec], None] = lambda _fake: None
    """Brings the machine into the state in which the command finds it."""
    before_load: Callable[[RestorableKexec], None] = lambda _fake: None
    """Another process at the moment of the kexec_load."""

    @property
    def changes_the_image(self) -> bool:
        """Whether the command writes."""
        return self.arguments[0] != "status" and "--dry-run" not in self.arguments


def _updated(fake: RestorableKexec) -> None:
    fake.update()


def _updated_then_grown(fake: RestorableKexec) -> None:
    fake.update()
    fake.add_ranges(3)


def _grown_out_of_its_room(fake: RestorableKexec) -> None:
    fake.add_ranges(400)


def _updated_then_outgrown(fake: RestorableKexec) -> None:
    fake.update()
    fake.add_ranges(400)


def _with_cma(fake: RestorableKexec) -> None:
    """Let the capture kernel have a range of CMA, which file and E820 table show."""
    fake.write_file("sys/kernel/kexec/crash_cma_ranges", "28000000-2dffffff\n")
    page = bytearray(fake.read(ZERO_PAGE, 0x1000))
    E820_ENTRY.pack_into(page, E820_TABLE + page[E820_COUNT] * E820_ENTRY.size, 0x2800_0000, 0x600_0000, E820_RAM)
    page[E820_COUNT] += 1
    fake.write(ZERO_PAGE, bytes(page))
    fake.write(PURGATORY, fake.purgatory(True))


def _overwrite_kernel(fake: RestorableKexec) -> None:
    fake.write(KERNEL, b"another kernel")


SCENARIOS = {
    "status of a right image": Scenario(["status"], _updated),
    "status of a stale image": Scenario(["status"]),
    "status with CMA": Scenario(["status"], _with_cma),
    "dry run": Scenario(["update", "--dry-run"]),
    "first update": Scenario(["update"]),
    "later update": Scenario(["update"], _updated_then_grown),
    "later update, verified in full": Scenario(["update", "--verify", "full"], _updated_then_grown),
    "update that moves the header": Scenario(["update"], _grown_out_of_its_room),
    "later update that moves the header": Scenario(["update"], _updated_then_outgrown),
    "update with CMA": Scenario(["update"], _with_cma),
    "update that another load tears": Scenario(["update"], _updated_then_grown, _overwrite_kernel),
    "look of watch": Scenario(["watch", "--once"]),
    "later look of watch": Scenario(["watch", "--once"], _updated_then_grown),
    "reload that fails": Scenario(["update", "--strategy", "reload"], _updated),
}


class Ran(NamedTuple):
    """What came of a command."""

    code: int
    said: str


def _is_loud(ran: Ran) -> bool:
    return any(word in ran.said for word in LOUD)


class Bench:
    """The machine of one scenario, on which its command runs again and again."""

    def __init__(self, scenario: Scenario, directory: Path) -> None:
        self.scenario = scenario
        self.fake = RestorableKexec(directory)
        with self._on_the_machine():
            scenario.prepare(self.fake)
        self.fake.before_load = self._before_load
        self.fake.keep_state()

    def _machine(self, _sysroot: Sysroot | None = None) -> LiveMachine:
        sysroot = self.fake.sysroot
        return LiveMachine(sysroot, self.fake.kexec_load, lambda: kdump_locks(sysroot), "x86_64")

    def _reload(self, _command: list[str]) -> Any:  # noqa: ANN401 as run_tool
        """Act as a tool that unloads the image, and then fails."""
        self.fake.unload()
        return mock.Mock(returncode=1, stdout="", stderr="no")

    @contextlib.contextmanager
    def _on_the_machine(self) -> Iterator[None]:
        from crash_hotplug.cli import status, update, watch  # noqa: PLC0415 as the program imports them
        from crash_hotplug.linux import btf_file, kallsyms, kexec_state  # noqa: PLC0415
        from crash_hotplug.linux.loading import kdump_lock  # noqa: PLC0415
        from crash_hotplug.linux.service.reconciler import Reconciler, Reloading  # noqa: PLC0415

        has_tool = "reload" in self.scenario.arguments
        parts = ReloadParts(
            lambda _loaded: ["kdumpctl", "reload"] if has_tool else None, lambda: None, self._reload, user=lambda: 0
        )
        with contextlib.ExitStack() as patched:
            for module, name, replaced in (
                (status, "open_sysroot", lambda _directory: self.fake.sysroot),
                (update, "LiveMachine", self._machine),
                (update, "RELOAD_PARTS", parts),
                (watch, "Sysroot", lambda: self.fake.sysroot),
                (watch, "LiveMachine", self._machine),
                (watch, "Reconciler", partial(Reconciler, reloading=Reloading(can=lambda: False), patience=0.1)),
                (kallsyms, "_live", {}),
                (btf_file, "_live_layout", lambda: btf_file._read_layout(self.fake.sysroot)),
                (kexec_state, "_FLAG_PAUSE", 0.0),
                (kdump_lock, "RED_HAT", f"{self.fake.root}/run/lock/kdump"),
                (kdump_lock, "DEBIAN", f"{self.fake.root}/var/crash/kdump_lock"),
            ):
                patched.enter_context(mock.patch.object(module, name, replaced))
            yield

    def run(self, arguments: Sequence[str], fails_at: int | None = None, fault: Fault = Fault("none")) -> Ran:
        """Run a command line in which one call fails."""
        calls = self.fake.calls
        calls.made.clear()
        calls.fails_at, calls.fault = fails_at, fault
        said = io.StringIO()
        redirected = contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)
        with self._on_the_machine(), redirected[0], redirected[1], calls.counted():
            code = main(arguments)
        calls.fails_at, calls.fault = None, Fault("none")
        return Ran(code, said.getvalue())

    def calls_of_a_healthy_run(self) -> list[Call]:
        """Return the calls that the command makes where none fails."""
        self.run(self.scenario.arguments)
        made = list(self.fake.calls.made)
        self.fake.restore()
        return made

    def problem(self, number: int, call: Call, fault: Fault) -> str | None:
        """Let a call fail, and judge what came of it; None where nothing is wrong."""
        descriptors = len(os.listdir("/proc/self/fd"))
        try:
            ran = self.run(self.scenario.arguments, number, fault)
            if len(os.listdir("/proc/self/fd")) != descriptors:
                return "a descriptor stays open"
            with self._on_the_machine():
                return next(self._problems_of(ran, call), None)
        except BaseException:
            return traceback.format_exc()
        finally:
            self.fake.restore()

    def _problems_of(self, ran: Ran, failing: Call) -> Iterator[str]:
        fake, is_update = self.fake, self.scenario.changes_the_image
        if ran.code not in EXIT_CODES or not ran.said.strip():
            yield f"exit code {ran.code}: {ran.said!r}"
        if not is_update and fake.is_changed:
            yield "something was written"
        if ran.code == 0 and "would list" not in ran.said and not fake.is_right():
            yield f"a wrong yes (whole: {fake.is_whole()}): {ran.said!r}"
        if ran.code == 3 and fake.read_loaded():
            yield f"a loaded image was not seen: {ran.said!r}"
        if not fake.is_whole() and not _is_loud(ran):
            yield f"an image was broken without a word: {ran.said!r}"
        if is_update:
            yield from self._problems_of_the_next(ran, failing)

    def _problems_of_the_next(self, ran: Ran, failing: Call) -> Iterator[str]:
        """Run a healthy update behind the run, and judge it."""
        fake, was_whole = self.fake, self.fake.is_whole()
        fake.before_load = lambda: None
        again = self.run(["update", "--strategy", "in-place"])
        if was_whole and again.code and _is_loud(ran) and _is_loud(again):  # a false alarm, proven to be one
            again = self.run(["update", "--strategy", "in-place", "--verify", "full"])
        fake.before_load = self._before_load
        if was_whole and (again.code or not fake.is_right()):
            yield f"a healthy update did not help: {ran.said!r}, then {again.said!r}"
        # The report was loud; where that could not be remembered as well, no later command knows it.
        if not was_whole and not again.code and "/run/crash-hotplug" not in failing.path:
            yield f"a broken image is called right: {ran.said!r}, then {again.said!r}"

    def _before_load(self) -> None:
        self.scenario.before_load(self.fake)


class Result(NamedTuple):
    """What came of the runs of one scenario."""

    calls: int
    runs: int
    problems: list[str]


def fail_each_call(name: str, directory: Path, every: int = 1, first: int = 0) -> Result:
    """Let the calls of one scenario fail, each in every way.

    :param every: of all pairs of a call and a fault take one in so many, beginning with number *first*
    """
    bench = Bench(SCENARIOS[name], directory)
    calls = bench.calls_of_a_healthy_run()
    pairs = [(number, call, fault) for number, call in enumerate(calls) for fault in FAULTS[call.kind]][first::every]
    problems = []
    for number, call, fault in pairs:
        problem = bench.problem(number, call, fault)
        if problem is not None:
            problems.append(f"{name}, call {number} ({call.kind} {call.path}), {fault.name}: {problem}")
    return Result(len(calls), len(pairs), problems)


def run_scenarios() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="*", default=list(SCENARIOS))
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="take one in N of all pairs of call and fault"
    )
    parser.add_argument("--first", type=int, default=0, metavar="N", help="the first pair that is taken")
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.scenario:
        with tempfile.TemporaryDirectory() as directory:
            result = fail_each_call(name, Path(directory), arguments.every, arguments.first)
        print(f"{name}: {result.calls} calls, {result.runs} runs, {len(result.problems)} problems", flush=True)
        for problem in result.problems:
            print(f"  {problem}", flush=True)
        failed += len(result.problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_scenarios())
