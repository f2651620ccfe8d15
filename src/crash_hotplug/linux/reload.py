"""A full reload of the crash image, with the tool that the distribution itself uses."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.kexec_tools import SEARCH

_SECONDS = 300
_WAKE_SECONDS = 5


class NoReloadToolError(CrashHotplugError):
    """The machine has no tool of its own that loads the crash image."""


class ReloadTool(NamedTuple):
    """A distribution's own wrapper of kexec."""

    name: str
    arguments: tuple[str, ...]


TOOLS = (
    ReloadTool("kdumpctl", ("reload",)),
    ReloadTool("kdump-config", ("reload",)),
)
"""Fedora's and Red Hat's, then Debian's."""


def find_reload_tool(search: str = SEARCH) -> list[str] | None:
    """Return the command line of the first tool that is installed, or None.

    :param search: directories, separated by colons; a service may have no PATH, and root's must not lead astray
    """
    for tool in TOOLS:
        path = shutil.which(tool.name, path=search)
        if path is not None:
            return [path, *tool.arguments]
    return None


def reload_crash_image(
    prefix: Sequence[str] = (),
    while_waiting: Callable[[], None] = lambda: None,
    search: str = SEARCH,
) -> str:
    """Unload and load the crash image anew; the tool takes its own lock, so none may be held.

    :param prefix: a command that runs the tool, such as ``systemd-run --wait``
    :param while_waiting: called every few seconds until the tool ends
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
        code, said = _run([*prefix, *command], while_waiting)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CrashHotplugError(f"{shown} did not finish: {error}") from error
    if code:
        raise CrashHotplugError(f"{shown} failed: {said[-1] if said else f'exit code {code}'}")
    return shown


def _run(command: Sequence[str], while_waiting: Callable[[], None]) -> tuple[int, list[str]]:
    """Run a command; return its exit code and the lines it wrote, the errors last."""
    # A session of its own: whoever ends us from a terminal must not end a reload half way, with no image loaded.
    pipe = subprocess.PIPE
    tool = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True)
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            said = b"\n".join(tool.communicate(timeout=_WAKE_SECONDS)).decode(errors="replace")
            return tool.returncode, [line for line in said.splitlines() if line.strip()]
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                raise
            while_waiting()
