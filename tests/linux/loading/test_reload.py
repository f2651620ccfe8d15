"""A full reload by the distribution's own tool, for which scripts stand in here."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.loading.reload import find_reload_tool, reload_crash_image


def tool(directory: Path, name: str, script: str) -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("name", "word"), [("kdumpctl", "reload"), ("kdump-config", "try-reload")])
def test_the_tool_that_is_there_is_run(tmp_path: Path, name: str, word: str) -> None:
    path = tool(tmp_path, name, f'echo "$@" > {tmp_path}/ran')
    assert find_reload_tool(str(tmp_path)) == [path, word]
    assert reload_crash_image(search=str(tmp_path)) == f"{path} {word}"
    assert (tmp_path / "ran").read_text() == f"{word}\n"


def test_no_tool(tmp_path: Path) -> None:
    assert find_reload_tool(str(tmp_path)) is None
    with pytest.raises(CrashHotplugError, match="neither kdumpctl nor kdump-config is installed"):
        reload_crash_image(search=str(tmp_path))


@pytest.mark.parametrize(
    ("script", "said"), [("echo one; echo two >&2; exit 3", "failed: two"), ("exit 7", "exit code 7")]
)
def test_a_tool_that_fails(tmp_path: Path, script: str, said: str) -> None:
    tool(tmp_path, "kdumpctl", script)
    with pytest.raises(CrashHotplugError, match=said):
        reload_crash_image(search=str(tmp_path))
