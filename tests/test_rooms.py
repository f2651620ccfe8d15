# SPDX-License-Identifier: MIT
"""The rooms of the house: which package may import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
STANDARD_LIBRARY_ONLY = sorted((SOURCE / "crash_hotplug").rglob("*.py"))
ROOMS = {
    "core": ("crash_hotplug.core",),
    "linux": ("crash_hotplug.core", "crash_hotplug.linux", "crash_hotplug"),
}
"""The packages of the product that a room may import; the command line may import all of them."""
NO_IO = ("os", "subprocess", "socket", "ctypes", "fcntl", "mmap", "pathlib", "shutil", "tempfile", "time")


def imported_by(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


@pytest.mark.parametrize("path", STANDARD_LIBRARY_ONLY, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_product_imports_itself_and_the_standard_library_only(path: Path) -> None:
    import sys  # noqa: PLC0415

    if sys.version_info < (3, 10):
        pytest.skip("sys.stdlib_module_names came with Python 3.10")
    roots = {name.split(".")[0] for name in imported_by(path)}
    assert roots <= {*sys.stdlib_module_names, "crash_hotplug"}


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_the_rooms_below(room: str) -> None:
    for path in (SOURCE / "crash_hotplug" / room).rglob("*.py"):
        for name in imported_by(path):
            if name.startswith("crash_hotplug"):
                assert name == "crash_hotplug" or name.startswith(ROOMS[room]), f"{path} imports {name}"


def test_core_does_no_input_or_output() -> None:
    for path in (SOURCE / "crash_hotplug/core").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported_by(path)} & {*NO_IO}, path
