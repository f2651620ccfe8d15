"""Files that commands write for a person."""

from __future__ import annotations

import os
import tempfile

from crash_hotplug.core.errors import InputError


def write_output(path: str, data: bytes) -> None:
    """Write a file whole or not at all; whoever reads it never sees half of it.

    :raise InputError: it cannot be written
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path} exists and is not a regular file")
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=os.path.dirname(path) or ".", delete=False) as file:
            temporary = file.name
            file.write(data)
        os.chmod(temporary, 0o600)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
