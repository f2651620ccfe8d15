"""When a Debian guest's image has to be built anew; nothing is built here."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug_lab.distro import distro_image
from crash_hotplug_lab.distro.distro_image import DebianImage


def test_an_image_from_another_recipe_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    image = DebianImage("bookworm")
    assert not image.ready
    image.disk.write_bytes(b"")
    assert not image.ready
    image.disk.with_name("recipe").write_text(distro_image.recipe())
    assert image.ready
    monkeypatch.setattr(distro_image, "_PACKAGES", ("systemd",))
    assert not image.ready
