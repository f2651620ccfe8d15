"""The file for node_exporter's textfile collector: always a whole one."""

from __future__ import annotations

import contextlib
import os

from crash_hotplug.core.errors import InputError


def write_metrics(path: str, text: str) -> None:
    """Replace the file by renaming a new one to its place.

    The new one is ``PATH.tmp``, which the collector does not read.  It is made anew and never followed as a link: the
    directory may belong to somebody else.

    :raise InputError: it cannot be written; the old file stays as it is
    """
    temporary = f"{path}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        with os.fdopen(os.open(temporary, flags, 0o644), "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text.encode())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
