# SPDX-License-Identifier: MIT
"""The lock and the queue of openSUSE's load-once.sh, for which scripts stand in here."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.loading import kdump_lock, reload, suse_queue
from crash_hotplug.linux.loading.kdump_lock import LockBusyError, kdump_locks
from crash_hotplug.linux.loading.live_machine import run_patiently
from crash_hotplug.linux.loading.reload import ReloadParts, find_reload_tool, update_by_reload
from crash_hotplug.linux.loading.suse_queue import queue_holder, reload_by_load_once
from crash_hotplug.linux.programs import run_tool
from tests.linux.fake_kexec import FakeKexec

SCRIPT = """\
#!/bin/sh
echo $$ >> {jobs}
> {lock}
flock -n {lock} -c 'while [ -s {jobs} ]; do truncate -s 0 {jobs}; echo loaded >> {loads}; {load}; done'
"""
"""As load-once.sh works, with another command in the place of load.sh."""


class LoadOnce:
    """A stand-in of the script, with files of its own."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lock, self.jobs, self.loads = directory / "kdump.lock", directory / "kdump.jobs", directory / "loads"
        self.path = directory / "load-once.sh"
        self.write()
        monkeypatch.setattr(suse_queue, "LOCK", str(self.lock))
        monkeypatch.setattr(suse_queue, "JOBS", str(self.jobs))
        monkeypatch.setattr(kdump_lock, "RED_HAT", str(directory / "missing" / "kdump"))
        monkeypatch.setattr(kdump_lock, "DEBIAN", str(directory / "missing" / "kdump_lock"))

    def write(self, load: str = "true") -> None:
        """Write the script; ``load`` is its load.sh."""
        self.path.write_text(SCRIPT.format(jobs=self.jobs, lock=self.lock, loads=self.loads, load=load))
        self.path.chmod(0o755)

    def reload(self, seconds: float = 20.0) -> subprocess.CompletedProcess[str]:
        return reload_by_load_once(run_tool, str(self.path), seconds)

    @property
    def loaded(self) -> int:
        """How often an image was loaded."""
        return len(self.loads.read_text().splitlines()) if self.loads.exists() else 0


@pytest.fixture
def load_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadOnce:
    return LoadOnce(tmp_path, monkeypatch)


def held_for(path: Path, seconds: float) -> threading.Timer:
    """Hold a lock in an open file of this process for some seconds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    timer = threading.Timer(seconds, os.close, (descriptor,))
    timer.start()
    return timer


def test_reload_loads_once_where_the_lock_is_free(load_once: LoadOnce) -> None:
    assert (load_once.reload().returncode, load_once.loaded) == (0, 1)


@pytest.mark.parametrize("code", [6, 1], ids=["of its own", "of a lock that is taken, too"])
def test_reload_that_fails_keeps_the_exit_code_of_load_sh(load_once: LoadOnce, code: int) -> None:
    load_once.write(f"exit {code}")
    assert load_once.reload().returncode == code


def test_reload_is_tried_again_while_the_kernel_is_loading_an_image(load_once: LoadOnce) -> None:
    busy = "echo kexec_load failed: Device or resource busy >&2; exit 255"
    load_once.write(f"[ $(wc -l < {load_once.loads}) -gt 2 ] || {{ {busy}; }}")
    assert (load_once.reload().returncode, load_once.loaded) == (0, 3)


def test_reload_gives_up_where_the_kernel_is_busy_all_the_time(load_once: LoadOnce) -> None:
    load_once.write("echo kexec_load failed: Device or resource busy >&2; exit 255")
    assert load_once.reload(0.5).returncode == 255


def test_reload_waits_for_the_lock_and_runs_the_job_that_its_holder_did_not_begin(load_once: LoadOnce) -> None:
    timer = held_for(load_once.lock, 0.5)
    assert load_once.reload().returncode == 0
    assert not timer.is_alive()
    assert load_once.loaded == 1


def test_reload_runs_no_job_that_the_holder_of_the_lock_has_done(load_once: LoadOnce) -> None:
    load_once.write("sleep 0.5")
    with subprocess.Popen([str(load_once.path)]):
        deadline = time.monotonic() + 10
        while load_once.loaded == 0 and time.monotonic() < deadline:  # until the first job is out of the queue
            pass
        assert load_once.reload().returncode == 0
    assert (load_once.loaded, load_once.jobs.read_text()) == (2, "")


def test_reload_gives_up_where_the_lock_stays_taken(load_once: LoadOnce) -> None:
    timer = held_for(load_once.lock, 2.0)
    with pytest.raises(CrashHotplugError, match=r"waits for the lock .*kdump\.lock, which process \d+"):
        load_once.reload(0.1)
    timer.join()


def test_update_finds_the_lock_busy_while_load_once_has_it(load_once: LoadOnce) -> None:
    timer = held_for(load_once.lock, 0.5)
    with (
        pytest.raises(LockBusyError, match=r"kdump\.lock is taken: process \d+ .*is loading a crash image"),
        kdump_locks(),
    ):
        pass
    timer.join()
    with kdump_locks():
        pass


def test_update_does_not_hold_the_lock_so_that_no_job_is_lost(load_once: LoadOnce) -> None:
    load_once.lock.touch()
    with kdump_locks():
        subprocess.run([str(load_once.path)], check=True)
    assert (load_once.loaded, load_once.jobs.read_text()) == (1, "")


@pytest.mark.parametrize("kind", ["missing", "link", "fifo"])
def test_lock_that_load_once_does_not_hold_is_free(load_once: LoadOnce, kind: str) -> None:
    elsewhere = load_once.lock.with_name("elsewhere")
    timer = held_for(elsewhere, 0.5)
    if kind == "link":
        load_once.lock.symlink_to(elsewhere)
    elif kind == "fifo":
        os.mkfifo(load_once.lock)
    assert queue_holder() is None
    timer.join()


@pytest.mark.parametrize("loaded", [True, False])
def test_reload_tool_of_suse_is_found_in_its_own_directory(
    load_once: LoadOnce, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    monkeypatch.setattr(reload, "SEARCH", str(load_once.path.parent / "missing"))
    assert find_reload_tool(loaded) is None
    monkeypatch.setattr(
        reload, "TOOLS", [*reload.TOOLS[:2], reload.TOOLS[2]._replace(directory=str(load_once.path.parent))]
    )
    assert find_reload_tool(loaded) == [str(load_once.path)]


def test_update_by_reload_waits_for_the_lock_of_load_once(load_once: LoadOnce, tmp_path: Path) -> None:
    parts = ReloadParts(lambda _loaded: [str(load_once.path)], lambda: None, user=lambda: 0)
    timer = held_for(load_once.lock, 0.5)
    report = run_patiently(update_by_reload(FakeKexec(tmp_path).machine(), parts=parts))
    assert report == (Outcome.RELOADED, str(load_once.path))
    assert not timer.is_alive()
    assert load_once.loaded == 1
