# SPDX-License-Identifier: MIT
"""``crash-hotplug load`` on the running machine, and the record of what it loaded."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass

from crash_hotplug.core.crash_machine import CrashMachine
from crash_hotplug.core.decision import Wants
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.core.plan import room_for
from crash_hotplug.core.reload import Loaded, load
from crash_hotplug.core.steps import Say, Steps, say_nothing
from crash_hotplug.core.update import take_lock
from crash_hotplug.linux.atomic_file import write_atomically
from crash_hotplug.linux.kexec_state import read_kexec_state, why_no_load
from crash_hotplug.linux.loading.capture_kernel import (
    CaptureKernel,
    LoaderCalls,
    Strategy,
    check_files,
    load_capture_kernel,
    unload_crash_image,
)
from crash_hotplug.linux.loading.live_machine import run_patiently
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot

DIRECTORY = "/run/crash-hotplug"
"""Directory of the record, which lasts until the next boot."""
_NAME = "loaded.json"
RECORD = f"{DIRECTORY}/{_NAME}"
"""What load did, for a person who reads a saved tree."""
_LIMIT = 64 << 10


@dataclass(frozen=True)
class LoadRecord:
    """The record of one load, from which it can be repeated."""

    files: CaptureKernel
    strategy: Strategy
    memory_ranges: int
    """Memory ranges for which the elfcorehdr has room."""
    hotplug_size: int | None
    """Room in bytes, where it was requested in bytes."""

    @property
    def wants(self) -> Wants:
        """The requirements of this load for the update that makes the image ready."""
        return Wants(self.memory_ranges, self.hotplug_size)


def load_once(
    machine: CrashMachine,
    record: LoadRecord,
    room_is_a_must: bool,
    say: Say = say_nothing,
    sysroot: Sysroot | None = None,
    calls: LoaderCalls = LoaderCalls(),
    directory: str = DIRECTORY,
) -> Loaded:
    """Load the image that *record* describes, make it ready for hot-plug, and write the record.

    :param room_is_a_must: put the previous image back if the new one cannot get the room
    :raise InputError: a file or the room is invalid; nothing was changed
    :raise NoRoomError: the reserved region is too small; nothing was changed
    :raise CrashHotplugError: the load was refused; the message says which image is loaded now
    """
    sysroot = sysroot or Sysroot()
    refused = why_no_load(read_kexec_state(sysroot))
    if refused is not None:
        raise CrashHotplugError(refused)
    now = read_machine(sysroot)
    check_files(record.files, record.hotplug_size or room_for(len(now.cpus), record.memory_ranges), now)

    def load_image() -> Steps[str]:
        return load_capture_kernel(record.files, record.strategy, record.hotplug_size, calls)
        yield

    def unload_image() -> Steps[None]:
        unload_crash_image(calls)
        return
        yield

    loaded = run_patiently(load(machine, load_image, unload_image, record.wants, room_is_a_must, say))
    save_record(record, directory)
    return loaded


def unload(machine: CrashMachine, calls: LoaderCalls = LoaderCalls(), directory: str = DIRECTORY) -> None:
    """Unload the crash image of any loader, and remove the record.

    :raise CannotTellError: the user is not root
    :raise CrashHotplugError: the kernel refused
    """
    if os.geteuid() != 0:
        raise CannotTellError("only root can unload the crash image; run as root")
    run_patiently(take_lock(machine))
    try:
        unload_crash_image(calls)
        forget_record(directory)
    finally:
        machine.unlock()


def save_record(record: LoadRecord, directory: str = DIRECTORY) -> None:
    """Write the record of a load.

    :raise CrashHotplugError: it cannot be written
    """
    content = {
        "schema": 1,
        "kernel": record.files.kernel,
        "initrd": record.files.initrd,
        "cmdline": record.files.cmdline,
        "allow_unsigned": record.files.allow_unsigned,
        "strategy": record.strategy.value,
        "max_memory_ranges": record.memory_ranges,
        "hotplug_size": record.hotplug_size,
    }
    path = os.path.join(directory, _NAME)
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
    except OSError as error:
        raise CrashHotplugError(f"{path} cannot be written: {error.strerror}") from error
    write_atomically(path, json.dumps(content, indent=1).encode())


def read_record(directory: str = DIRECTORY) -> LoadRecord | None:
    """Return the record of the last load; None where there was none since boot.

    :raise InputError: the file belongs to another user, or is not in the format of :func:`save_record`
    """
    path = os.path.join(directory, _NAME)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        # Root loads the files that the record names, so no other user may have written it.
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            raise InputError(f"{path} may have been written by a user other than root: it is not used")
        data = file.read(_LIMIT)
    try:
        content = json.loads(data)
        initrd, size = content["initrd"], content["hotplug_size"]
        files = CaptureKernel(
            str(content["kernel"]),
            None if initrd is None else str(initrd),
            str(content["cmdline"]),
            content.get("allow_unsigned") is True,  # a record of version 0.1.0 has no such key
        )
        return LoadRecord(
            files,
            Strategy(content["strategy"]),
            int(content["max_memory_ranges"]),
            None if size is None else int(size),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a record of crash-hotplug load: {error!r}") from error


def forget_record(directory: str = DIRECTORY) -> None:
    """Remove the record: its image was unloaded."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, _NAME))
