# SPDX-License-Identifier: MIT
"""makedumpfile's version in its program, and the kernels for which a version is too old."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from crash_hotplug.core.doctor.makedumpfile import Version, find_shortcomings, find_version

FOUR_KIB = {"CONFIG_ARM64_4K_PAGES", "CONFIG_ARM64_VA_BITS_52"}


def program(version: str) -> bytes:
    return b"\x7fELF\0usage\0makedumpfile: version " + version.encode() + b" (released on 20 Apr 2026)\n\0more"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (program("1.7.9"), Version((1, 7, 9), False)),
        (program("1.7.9++"), Version((1, 7, 9), True)),
        (program("2.0"), Version((2, 0), False)),
        (b"", None),
        (program("1.7.9")[:40], None),
        (program("x"), None),
        (b"version 1.7.9 (released on", None),
    ],
)
def test_version_is_read_from_the_program(data: bytes, expected: Version | None) -> None:
    assert find_version(data) == expected
    assert expected is None or str(expected) in data.decode("latin-1")


def test_version_of_the_installed_program_is_what_it_prints() -> None:
    installed = shutil.which("makedumpfile")
    if installed is None:
        pytest.skip("makedumpfile is not installed")
    said = subprocess.run([installed, "-v"], capture_output=True, text=True, check=False)
    version = find_version(Path(installed).read_bytes())
    assert version is not None
    assert f"version {version} (" in said.stdout + said.stderr


@pytest.mark.parametrize(
    ("version", "release", "options", "commits"),
    [
        ("1.7.9", "7.0.12-generic", set(), []),
        ("1.7.9", "7.1.0", set(), ["f50c015"]),
        ("1.7.9", "8.0-rc1", set(), ["f50c015"]),
        ("1.7.9++", "7.1.0", set(), []),
        ("1.8.0", "7.1.0", FOUR_KIB, []),
        ("1.7.5", "6.9.0", set(), []),
        ("1.7.5", "6.10.3-1-default", set(), ["bad2a7c"]),
        ("1.7.6", "6.12.0-55.el10.x86_64", set(), []),
        ("1.7.5", "7.3.4", FOUR_KIB, ["bad2a7c", "f50c015", "b7587f1"]),
        ("1.7.8", "6.12.0", FOUR_KIB, ["b7587f1"]),
        ("1.7.8", "6.12.0", {"CONFIG_ARM64_VA_BITS_52"}, []),
        ("1.7.8", "6.8.0", FOUR_KIB, []),
        ("1.7.1", "no release", FOUR_KIB, []),
    ],
)
def test_shortcomings_depend_on_version_kernel_and_page_size(
    version: str, release: str, options: set[str], commits: list[str]
) -> None:
    found = find_version(program(version))
    assert found is not None
    assert [lack.commit for lack in find_shortcomings(found, release, options.__contains__)] == commits
