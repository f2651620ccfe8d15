# SPDX-License-Identifier: MIT
"""The memory that an update left the loaded image torn, or none at all: nothing else shows that.

It lasts until the next boot, and is about one image: a load makes it void.
"""

from __future__ import annotations

import os

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.atomic_file import write_atomically
from crash_hotplug.linux.sysroot import Sysroot

PATH = "/run/crash-hotplug/torn"
"""The identity of the image in hexadecimal, or "no image", and a line of text: what is wrong."""


def _name(identity: bytes) -> str:
    return identity.hex() or "no image"


def mark_torn(sysroot: Sysroot, identity: bytes, sentence: str | None) -> None:
    """Remember that the image of this identity is torn; with no sentence, that it is proven to be whole.

    A file that cannot be written is no error: the report of the update says the same.
    """
    path = sysroot.locate(PATH)
    try:
        if sentence is not None:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            write_atomically(path, f"{_name(identity)}\n{sentence}\n".encode())
        elif why_torn(sysroot, identity) is not None:
            os.unlink(path)
    except (CrashHotplugError, OSError):
        return


def why_torn(sysroot: Sysroot, identity: bytes) -> str | None:
    """Return why the image of this identity is known to be torn; None where it is not."""
    try:
        known, _line, sentence = (sysroot.read_text(PATH) or "").partition("\n")
    except CrashHotplugError:
        return None
    return sentence if sentence and known == _name(identity) else None
