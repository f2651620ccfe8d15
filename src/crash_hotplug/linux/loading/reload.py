# SPDX-License-Identifier: MIT
"""A full reload of the crash image: with the distribution's own tool, else from the record of our own ``load``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, NamedTuple

import crash_hotplug
from crash_hotplug.core.crash_machine import CrashMachine
from crash_hotplug.core.decision import Outcome, Report
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.reload import make_ready, reload
from crash_hotplug.core.steps import Say, Steps, say_nothing
from crash_hotplug.core.update import take_lock
from crash_hotplug.linux.loading.capture_kernel import CaptureKernel, Strategy, load_capture_kernel
from crash_hotplug.linux.loading.load import LoadRecord, read_record
from crash_hotplug.linux.loading.suse_queue import LOAD_ONCE, reload_by_load_once
from crash_hotplug.linux.programs import SEARCH, run_tool, why_failed

_HERE = str(Path(crash_hotplug.__file__).parents[1])
_START = "import sys; sys.path.append(sys.argv.pop(1)); from crash_hotplug.__main__ import run; run()"
_COMMAND = (sys.executable, "-IS", "-c", _START, _HERE, "update", "--strategy", "reload", "--json")
"""This program from its place of installation: systemd-run does not pass PYTHONPATH on.

-I and -S as in the launcher that tools/install.py writes: no other packages are searched."""
_SECONDS = 330
"""A little longer than the reload itself may take."""
_WAKE_SECONDS = 5
_KEYRING = "--property=KeyringMode=shared"
"""As kdump.service has it.  Where kdumpctl (1.0.44) does not find root's user keyring in its session, it runs kexec
through sudo; where sudo is not installed, that loads no image."""


class ReloadTool(NamedTuple):
    """A distribution's own wrapper of kexec."""

    name: str
    reload: tuple[str, ...]
    """Its arguments that reload the image."""
    load: tuple[str, ...]
    """Those where no image is loaded."""
    directory: str = ""
    """Where it lies, if not among root's programs."""


TOOLS = (
    ReloadTool("kdump-config", ("try-reload",), ("load",)),
    ReloadTool("kdumpctl", ("reload",), ("start",)),
    ReloadTool("load-once.sh", (), (), os.path.dirname(LOAD_ONCE)),
)
"""Debian's, whose ``reload`` takes no lock (kdump-tools 1.6.8 to 1.10.7); Fedora's and Red Hat's; openSUSE's.

kdump-config comes first: ALT has it as Debian, and a kdumpctl that only shows dumps (kdump-tools 1.8-alt2).

The udev rule of kdump-tools runs ``try-reload``, which takes the lock and reloads only if an image is loaded.  That of
openSUSE runs load-once.sh, which takes the lock; kdump.service runs load.sh, which takes none.
"""


def find_reload_tool(loaded: bool = True, search: str = "") -> list[str] | None:
    """Return the command line of the first tool that is installed, or None.

    :param loaded: whether an image is loaded
    :param search: directories, separated by colons, instead of those in which the distributions install their tools
    """
    for tool in TOOLS:  # not by PATH, which may be missing in a service, or name a user's programs
        path = shutil.which(tool.name, path=search or tool.directory or SEARCH)
        if path is not None:
            return [path, *(tool.reload if loaded else tool.load)]
    return None


class ReloadParts(NamedTuple):
    """The parts of a reload; a test passes other ones."""

    find_tool: Callable[[bool], list[str] | None] = find_reload_tool
    record: Callable[[], LoadRecord | None] = read_record
    run: Callable[[list[str]], subprocess.CompletedProcess[str]] = run_tool
    load: Callable[[CaptureKernel, Strategy, int | None], str] = load_capture_kernel
    user: Callable[[], int] = os.geteuid


def can_reload(parts: ReloadParts = ReloadParts()) -> bool:
    """Whether a tool that reloads the image is installed, or our own ``load`` has loaded an image since boot."""
    return parts.find_tool(True) is not None or parts.record() is not None


def update_by_reload(
    machine: CrashMachine, reason: str = "", say: Say = say_nothing, parts: ReloadParts = ReloadParts()
) -> Steps[Report]:
    """Reload the image and say why.

    :param reason: why a reload is wanted, for people
    """
    if parts.user() != 0:
        return Report(Outcome.CANNOT_TELL, reason or "only root can reload the crash image")
    if not can_reload(parts):
        names = "neither kdumpctl nor kdump-config is installed, nor openSUSE's load-once.sh"
        why_not = f"{names}, and crash-hotplug load has loaded no image since boot"
        return Report(Outcome.FAILED, f"{reason}; {why_not}" if reason else why_not)
    return (yield from reload(machine, lambda: _reload_image(machine, parts), reason, say))


def _reload_image(machine: CrashMachine, parts: ReloadParts) -> Steps[str]:
    """Unload the crash image and load it again.  The distribution's tool takes its own lock.

    :return: the command or system call that loaded it, for people
    :raise CrashHotplugError: it failed
    """
    command = parts.find_tool(machine.image_loaded() is not False)
    if command is not None:
        if os.path.basename(command[0]) == os.path.basename(LOAD_ONCE):
            done = reload_by_load_once(parts.run, command[0])
        else:
            done = parts.run(command)
        if done.returncode:
            raise CrashHotplugError(f"{' '.join(command)} failed: {why_failed(done)}")
        return " ".join(command)
    record = parts.record()
    if record is None:
        raise CrashHotplugError("the record of the last load was removed")
    yield from take_lock(machine)
    try:
        how = parts.load(record.files, record.strategy, record.hotplug_size)
    finally:
        machine.unlock()
    not_ready = yield from make_ready(machine, record.wants)
    outgrown = "" if not_ready is None else f" (not made ready for hot-plug: {not_ready})"
    return f"loaded {record.files.kernel} again by {how}{outgrown}"


def reload_outside(
    reason: str, while_waiting: Callable[[], None] = lambda: None, command: Sequence[str] = _COMMAND
) -> Report:
    """Reload in a process of its own, for the watch service: ``crash-hotplug update --strategy reload``.

    The sandbox of the service's unit does not let those tools work; systemd-run leaves it.  The service
    itself has to stay awake, for its watchdog.

    :param while_waiting: called every few seconds until the reload ends
    """
    try:
        # A session of its own: stopping the service must not end a reload half way, with no image loaded.
        process = subprocess.Popen(
            [*outside_this_unit(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return Report(Outcome.FAILED, f"{reason}; the reload did not start: {error.strerror}")
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            out, err = process.communicate(timeout=_WAKE_SECONDS)
            return _report(reason, process.returncode, out, err)
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                return Report(Outcome.FAILED, f"{reason}; the reload did not end within {_SECONDS} s")
            while_waiting()


def outside_this_unit(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the prefix of a command that leaves the sandbox of this process's systemd unit; empty outside a unit."""
    runner = shutil.which("systemd-run", path="/usr/bin:/bin")
    if runner is None or "INVOCATION_ID" not in environ:
        return []
    return [runner, "--quiet", "--wait", "--collect", "--pipe", _KEYRING, "--"]


def _report(reason: str, code: int, out: bytes, err: bytes) -> Report:
    try:
        said = json.loads(out)
        outcome, sentence = Outcome(said["outcome"]), str(said["reason"])
    except (ValueError, KeyError, TypeError):
        lines = err.decode(errors="replace").split("\n")
        sentence = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
        outcome, sentence = Outcome.FAILED, f"the reload failed: {sentence}"
    if outcome is Outcome.RELOADED:
        return Report(outcome, f"{sentence}: {reason}")
    return Report(outcome, f"{reason}; {sentence}")
