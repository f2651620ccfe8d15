# SPDX-License-Identifier: MIT
"""The root directory of a Debian guest, made from packages: the properties that dpkg and the guest rely on."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from crash_hotplug_lab.distro.root_tar import RootTar
from crash_hotplug_lab.qemu.debian import Package

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")

CONTROL = """\
Package: {name}
Version: 1.0
Architecture: amd64
Multi-Arch: {multi}
Maintainer: Nobody <nobody@example.invalid>
Description: a package for a test
 of two lines
"""


def make_package(directory: Path, name: str, multi: str, files: dict[str, str]) -> Package:
    """Build a package with files, one of them a link, and a maintainer script."""
    tree = directory / name
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(content)
    (tree / "bin").mkdir(exist_ok=True)
    (tree / "bin/other").symlink_to("tool")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(CONTROL.format(name=name, multi=multi))
    (tree / "DEBIAN/conffiles").write_text("".join(f"/{path}\n" for path in files if path.startswith("etc/")))
    script = tree / "DEBIAN/postinst"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    deb = directory / f"{name}.deb"
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", str(tree), str(deb)], check=True, capture_output=True)
    return Package(name, "1.0", deb)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with one file of its own and two packages, unpacked."""
    one = make_package(tmp_path, "one", "same", {"bin/tool": "a tool\n", "etc/one.conf": "by the package\n"})
    two = make_package(tmp_path, "two", "no", {"usr/share/two": "2\n", "etc/own": "by the package\n"})
    with RootTar(tmp_path / "root.tar") as tar:
        tar.file("etc/own", b"by the lab\n")
        tar.package(one)
        tar.package(two)
    return tmp_path / "root.tar"


def read(root: Path, name: str) -> str:
    with tarfile.open(root) as tar:
        file = tar.extractfile(f"./{name}")
        assert file is not None
        return file.read().decode()


def test_files_in_bin_of_packages_lie_in_usr_bin(root: Path) -> None:
    with tarfile.open(root) as tar:
        assert tar.getmember("./bin").linkname == "usr/bin"
        assert tar.getmember("./usr/bin/other").linkname == "tool"
        assert read(root, "usr/bin/tool") == "a tool\n"


def test_members_belong_to_root_and_come_once_after_their_directory(root: Path) -> None:
    with tarfile.open(root) as tar:
        members = tar.getmembers()
    names = [m.name for m in members]
    assert len(names) == len(set(names))
    assert {(m.uid, m.gid) for m in members} == {(0, 0)}
    for place, name in enumerate(names):
        parent = name.rpartition("/")[0]
        assert parent == "." or parent in names[:place]


def test_files_of_the_lab_are_kept_over_those_of_packages(root: Path) -> None:
    assert read(root, "etc/own") == "by the lab\n"


def test_dpkg_database_is_read_by_dpkg_query(root: Path, tmp_path: Path) -> None:
    admin = tmp_path / "unpacked"
    with tarfile.open(root) as tar:
        tar.extractall(admin, members=[m for m in tar if m.name.startswith("./var")])
    command = ["dpkg-query", f"--admindir={admin}/var/lib/dpkg", "-W"]
    shown = subprocess.run(
        [*command, "-f", "${Package} ${Version} ${db:Status-Status}\n"], check=True, capture_output=True, text=True
    )
    assert shown.stdout == "one 1.0 unpacked\ntwo 1.0 unpacked\n"
    listed = subprocess.run([*command[:-1], "-L", "one"], check=True, capture_output=True, text=True)
    assert "/bin/tool" in listed.stdout.split()
    assert "/etc/one.conf" in read(root, "var/lib/dpkg/status")
    assert read(root, "var/lib/dpkg/info/one:amd64.postinst").startswith("#!/bin/sh")
