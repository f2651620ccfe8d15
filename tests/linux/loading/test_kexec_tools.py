# SPDX-License-Identifier: MIT
"""kexec-tools, replaced by a script: its options depend on its version and on the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.loading.capture_kernel import CaptureKernel, LoaderCalls, Strategy, load_capture_kernel
from crash_hotplug.linux.sysroot import Sysroot
from tests.trees import tree


def load(program: str, files: CaptureKernel, hotplug_size: int | None = None, capture: str = "6.1-c") -> str:
    calls = LoaderCalls(find_kexec=lambda: program)
    return load_capture_kernel(files, Strategy.KEXEC_TOOLS, hotplug_size, calls, Sysroot(str(tree(capture, 0))))


def kexec(directory: Path, options: str, script: str) -> str:
    path = directory / "kexec"
    path.write_text(f'#!/bin/sh\n[ "$1" = --help ] && {{ echo "{options}"; exit 0; }}\n{script}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("options", "capture", "given"),
    [
        ("", "6.1-c", ["-p", "-c"]),
        (" --hotplug            Do in-kernel update", "6.1-c", ["-p", "-c"]),
        ("", "6.12-s", ["-p", "-c"]),
        (" --hotplug            Do in-kernel update", "6.12-s", ["-p", "-c", "--hotplug"]),
        (" --hotplug-size=SIZE  Reserve", "6.1-c", ["-p", "-c", "--hotplug-size=4096"]),
    ],
)
def test_kexec_options(tmp_path: Path, options: str, capture: str, given: list[str]) -> None:
    program = kexec(tmp_path, options, f'printf "%s\\n" "$@" > {tmp_path}/ran')
    assert load(program, CaptureKernel("/k", "/i", "a b"), 4096, capture) == f"kexec {' '.join(given)}"
    assert (tmp_path / "ran").read_text().splitlines() == [*given, "/k", "--initrd=/i", "--append=a b"]


def test_kexec_failure_is_reported_with_its_output(tmp_path: Path) -> None:
    program = kexec(tmp_path, "", "echo one; echo Cannot load /k >&2; exit 255")
    with pytest.raises(CrashHotplugError, match=r"kexec -p -c failed: Cannot load /k"):
        load(program, CaptureKernel("/k", None, ""))
    with pytest.raises(CrashHotplugError, match="did not finish"):
        load(str(tmp_path / "missing"), CaptureKernel("/k", None, ""))
