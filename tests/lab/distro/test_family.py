# SPDX-License-Identifier: MIT
"""The sources of a family's tools, given as a directory or as a tar file."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug_lab.distro.family import RED_HAT, SUSE, read_sources


def sources(directory: Path) -> Path:
    top = directory / "kdump-utils-1234567"
    (top / "dracut/99kdumpbase").mkdir(parents=True)
    (top / "kdumpctl").write_text("#!/bin/bash\n")
    (top / "kdumpctl").chmod(0o755)
    (top / "dracut/99kdumpbase/kdump.sh").write_text("a module\n")
    return top


@pytest.mark.parametrize("form", ["directory", "parent", "tar"])
def test_sources_of_each_form_are_the_same(tmp_path: Path, form: str) -> None:
    top = sources(tmp_path / "published")
    given = {"directory": top, "parent": top.parent, "tar": tmp_path / "kdump-utils.tar.gz"}[form]
    if form == "tar":
        with tarfile.open(given, "w:gz") as tar:
            tar.add(top, top.name)
    assert read_sources(RED_HAT, given).files == (
        ("dracut/99kdumpbase/kdump.sh", b"a module\n", False),
        ("kdumpctl", b"#!/bin/bash\n", True),
    )


def test_sources_of_another_project_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not hold the sources of kdump: it has no file init/load\.sh"):
        read_sources(SUSE, sources(tmp_path))


@pytest.mark.parametrize("content", [None, b"no tar file"])
def test_sources_that_cannot_be_read_are_reported(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "sources.tar.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"the sources .* cannot be read"):
        read_sources(RED_HAT, path)


def test_member_that_leads_out_of_the_tar_file_is_left_out(tmp_path: Path) -> None:
    top, path = sources(tmp_path), tmp_path / "sources.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(top / "kdumpctl", "./kdumpctl")
        tar.add(top / "kdumpctl", "../escaped")
    assert [name for name, _, _ in read_sources(RED_HAT, path).files] == ["kdumpctl"]
