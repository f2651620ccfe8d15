"""Configuration files of a machine, found as the machine itself would find them: links stay below the tree's root.

A saved tree, or the mounted root of another machine, has absolute links such as ``/etc/os-release``; here they lead to
the tree's own files and never out of it.
"""

from __future__ import annotations

import os

from crash_hotplug.core.errors import InputError
from crash_hotplug.linux.sysroot import Sysroot

NULL = "/dev/null"
"""A link to it switches a unit or a rules file off."""
_MOST_LINKS = 40
"""As the kernel's MAXSYMLINKS."""
_LIMIT = 1 << 20


def resolve(sysroot: Sysroot, path: str) -> str:
    """Return the machine's absolute path that *path* comes to when all its links are followed.

    :raise InputError: it runs in a circle
    """
    root = sysroot.directory or ""
    left = path.split("/")
    resolved = ""
    links = 0
    while left:
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            resolved = os.path.dirname(resolved).rstrip("/")
            continue
        try:
            target = os.readlink(f"{root}{resolved}/{part}")
        except (OSError, ValueError):  # no link, or nothing there
            resolved = f"{resolved}/{part}"
            continue
        links += 1
        if links > _MOST_LINKS:
            raise InputError(f"{path} runs through more than {_MOST_LINKS} links")
        resolved = "" if target.startswith("/") else resolved
        left = target.split("/") + left
    return resolved or "/"


def read_config(sysroot: Sysroot, path: str) -> str | None:
    """Return a configuration file's text; "" where it is switched off by a link to /dev/null, None where it is missing.

    Bytes that are no UTF-8 are kept as surrogate escapes.

    :raise CannotTellError: it may not be read
    :raise InputError: it is no regular file, too large, or behind a circle of links
    """
    resolved = resolve(sysroot, path)
    if resolved == NULL:
        return ""
    data = sysroot.read(resolved, _LIMIT)
    return None if data is None else data.decode("utf-8", "surrogateescape")


def exists(sysroot: Sysroot, path: str) -> bool:
    """Whether there is anything at *path*, be it a link that leads nowhere."""
    parent, name = os.path.split(path)
    root = sysroot.directory or ""
    return os.path.lexists(f"{root}{resolve(sysroot, parent)}/{name}")


def names(sysroot: Sysroot, directory: str) -> list[str]:
    """Return the names in a directory, sorted; none where it does not exist or may not be read."""
    return sysroot.names(resolve(sysroot, directory))
