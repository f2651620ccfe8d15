"""Load a crash image through kexec-tools, which makes the segments that kexec_load(2) takes."""

from __future__ import annotations

import shutil
import subprocess

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.failed_program import why_failed
from crash_hotplug.linux.kexec_state import read_kexec_state
from crash_hotplug.linux.sysroot import Sysroot

SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where root's tools are looked for: a service may have no PATH, and root's must not lead astray."""
_SECONDS = 300


def find_kexec(search: str = SEARCH) -> str | None:
    """Return the path of ``kexec``, or None where it is not installed."""
    return shutil.which("kexec", path=search)


def load_with_kexec_tools(
    program: str, kernel: str, initrd: str | None, cmdline: str, hotplug_size: int | None
) -> list[str]:
    """Load a crash image with ``kexec -p -c``; what the program and the kernel know of hot-plug is asked for.

    :param hotplug_size: bytes of room for the elfcorehdr, for a kexec that has ``--hotplug-size`` (no release has)
    :return: the options that were given
    :raise CrashHotplugError: it failed; kexec-tools looks at the files before the former image is dropped
    """
    known = _run([program, "--help"]).stdout
    options = ["-p", "-c"]
    # kexec-tools 2.0.29 and Linux 6.6: the kernel may then update the header by itself.
    if "--hotplug " in known and read_kexec_state(Sysroot()).elfcorehdr_size is not None:
        options.append("--hotplug")
    if "--hotplug-size" in known and hotplug_size is not None:
        options.append(f"--hotplug-size={hotplug_size}")
    files = [] if initrd is None else [f"--initrd={initrd}"]
    done = _run([program, *options, kernel, *files, f"--append={cmdline}"])
    if done.returncode:
        raise CrashHotplugError(f"kexec {' '.join(options)} failed: {why_failed(done)}")
    return options


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CrashHotplugError(f"{command[0]} did not finish: {error}") from error
