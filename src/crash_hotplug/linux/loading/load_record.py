"""What ``crash-hotplug load`` loaded, kept until the next boot, so that it can be loaded again."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass

from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.linux.loading.capture_kernel import CaptureKernel, Strategy

DIRECTORY = "/run/crash-hotplug"
_NAME = "loaded.json"
_LIMIT = 64 << 10


@dataclass(frozen=True)
class LoadRecord:
    """One load."""

    files: CaptureKernel
    strategy: Strategy
    memory_ranges: int
    """Memory ranges that the elfcorehdr was given room for."""
    hotplug_size: int | None
    """Bytes of room instead, where they were asked for."""


def save_record(record: LoadRecord, directory: str = DIRECTORY) -> None:
    """Keep what was loaded.

    :raise CrashHotplugError: it cannot be written
    """
    content = {
        "schema": 1,
        "kernel": record.files.kernel,
        "initrd": record.files.initrd,
        "cmdline": record.files.cmdline,
        "strategy": record.strategy.value,
        "max_memory_ranges": record.memory_ranges,
        "hotplug_size": record.hotplug_size,
    }
    path = os.path.join(directory, _NAME)
    try:
        os.makedirs(directory, mode=0o755, exist_ok=True)
        descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(content, file, indent=1)
        os.replace(f"{path}.new", path)
    except OSError as error:
        raise CrashHotplugError(f"{path} cannot be written: {error.strerror}") from error


def read_record(directory: str = DIRECTORY) -> LoadRecord | None:
    """Return what was loaded last; None where nothing was since the boot.

    :raise InputError: the file is not ours, or not what :func:`save_record` writes
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
        # Root loads what it names, so nobody else may have written it.
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
            raise InputError(f"{path} may have been written by somebody else than root: it is not used")
        data = file.read(_LIMIT)
    try:
        content = json.loads(data)
        initrd, size = content["initrd"], content["hotplug_size"]
        files = CaptureKernel(str(content["kernel"]), None if initrd is None else str(initrd), str(content["cmdline"]))
        return LoadRecord(
            files,
            Strategy(content["strategy"]),
            int(content["max_memory_ranges"]),
            None if size is None else int(size),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not what crash-hotplug load writes: {error!r}") from error


def forget_record(directory: str = DIRECTORY) -> None:
    """Forget what was loaded: it was unloaded."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, _NAME))
