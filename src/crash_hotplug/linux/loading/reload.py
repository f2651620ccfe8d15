"""A full reload of the crash image, with the tool that the distribution itself uses."""

from __future__ import annotations

import shutil
import subprocess
from typing import NamedTuple

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.failed_program import why_failed
from crash_hotplug.linux.loading.kexec_tools import SEARCH

_SECONDS = 300


class NoReloadToolError(CrashHotplugError):
    """The machine has no tool of its own that loads the crash image."""


class ReloadTool(NamedTuple):
    """A distribution's own wrapper of kexec."""

    name: str
    arguments: tuple[str, ...]


TOOLS = (
    ReloadTool("kdumpctl", ("reload",)),
    ReloadTool("kdump-config", ("try-reload",)),
)
"""Fedora's and Red Hat's, then Debian's, whose ``reload`` takes no lock (kdump-tools 1.6.8 to 1.10.7).

``try-reload`` does what its udev rule asks for: under the lock, and only where an image is loaded.
"""


def find_reload_tool(search: str = SEARCH) -> list[str] | None:
    """Return the command line of the first tool that is installed, or None.

    :param search: directories, separated by colons; a service may have no PATH, and root's must not lead astray
    """
    for tool in TOOLS:
        path = shutil.which(tool.name, path=search)
        if path is not None:
            return [path, *tool.arguments]
    return None


def reload_crash_image(search: str = SEARCH) -> str:
    """Unload and load the crash image anew; the tool takes its own lock, so none may be held.

    :return: the command that did it
    :raise NoReloadToolError: there is no such tool
    :raise CrashHotplugError: it failed
    """
    command = find_reload_tool(search)
    if command is None:
        names = " nor ".join(tool.name for tool in TOOLS)
        raise NoReloadToolError(f"the crash image cannot be reloaded: neither {names} is installed")
    shown = " ".join(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CrashHotplugError(f"{shown} did not finish: {error}") from error
    if done.returncode:
        raise CrashHotplugError(f"{shown} failed: {why_failed(done)}")
    return shown
