"""A full reload for the watch service: ``crash-hotplug update --strategy reload`` in a process of its own.

The service's unit is a sandbox, in which neither kdumpctl nor kdump-config could work; systemd-run leaves it.  And the
service has to stay awake, for its watchdog.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import crash_hotplug
from crash_hotplug.core.handler import Outcome, Report
from crash_hotplug.linux.loading.update_once import LOOK

_HERE = str(Path(crash_hotplug.__file__).parents[1])
_START = "import sys; sys.path.append(sys.argv.pop(1)); from crash_hotplug.__main__ import run; run()"
_COMMAND = (sys.executable, "-I", "-c", _START, _HERE, "update", "--strategy", "reload", "--json")
"""This very program, wherever it is installed: systemd-run passes no PYTHONPATH on."""
_SECONDS = 330
"""A little longer than the reload itself may take (linux/loading/reload.py)."""
_WAKE_SECONDS = 5


def reload_outside(
    reason: str, while_waiting: Callable[[], None] = lambda: None, command: Sequence[str] = _COMMAND
) -> Report:
    """Reload the crash image and say why.

    :param while_waiting: called every few seconds until it is done
    """
    try:
        # A session of its own: whoever ends the service must not end a reload half way, with no image loaded.
        process = subprocess.Popen(
            [*outside_this_unit(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return Report(LOOK, Outcome.FAILED, f"{reason}; the reload did not start: {error.strerror}")
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            out, err = process.communicate(timeout=_WAKE_SECONDS)
            return _report(reason, process.returncode, out, err)
        except subprocess.TimeoutExpired:
            if time.monotonic() >= deadline:
                return Report(LOOK, Outcome.FAILED, f"{reason}; the reload did not end within {_SECONDS} s")
            while_waiting()


def outside_this_unit(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return what runs a command outside the sandbox of the systemd unit that this process is in, if it is in one."""
    runner = shutil.which("systemd-run", path="/usr/bin:/bin")
    if runner is None or "INVOCATION_ID" not in environ:
        return []
    return [runner, "--quiet", "--wait", "--collect", "--pipe", "--"]


def _report(reason: str, code: int, out: bytes, err: bytes) -> Report:
    try:
        said = json.loads(out)
        outcome, sentence = Outcome(said["outcome"]), str(said["reason"])
    except (ValueError, KeyError, TypeError):
        lines = err.decode(errors="replace").split("\n")
        sentence = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
        outcome, sentence = Outcome.FAILED, f"the reload failed: {sentence}"
    if outcome is Outcome.RELOADED:
        return Report(LOOK, outcome, f"{sentence}: {reason}")
    return Report(LOOK, outcome, f"{reason}; {sentence}")
