# SPDX-License-Identifier: MIT
"""The conditions under which the image of a Debian guest is built again; nothing is built here."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug_lab.distro import image as images
from crash_hotplug_lab.distro.family import RED_HAT, Sources
from crash_hotplug_lab.distro.image import DebianImage


def test_image_of_another_recipe_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = DebianImage("bookworm")
    assert not image.ready
    image.disk.write_bytes(b"")
    assert not image.ready
    image.disk.with_name("recipe").write_text(image.recipe())
    assert image.ready
    monkeypatch.setattr(images, "_PACKAGES", ("systemd",))
    assert not image.ready


def test_image_of_other_sources_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = (Sources((("kdumpctl", content, True),)) for content in (b"one", b"two"))
    image = DebianImage("bookworm", RED_HAT, first)
    image.disk.write_bytes(b"")
    image.disk.with_name("recipe").write_text(image.recipe())
    assert image.ready
    assert not DebianImage("bookworm", RED_HAT, second).ready
    assert not DebianImage("bookworm").ready
