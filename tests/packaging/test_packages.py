# SPDX-License-Identifier: MIT
"""The packages as their distributions' own tools see them: lintian, rpmlint, pip."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
RPMLINT = ["rpmlint", "-c", "packaging/rpm/rpmlint.toml"]

needs_debhelper = pytest.mark.skipif(
    not (shutil.which("dpkg-buildpackage") and shutil.which("dh") and shutil.which("dh_python3")),
    reason="debhelper and dh-python are not installed",
)
needs_lintian = pytest.mark.skipif(shutil.which("lintian") is None, reason="lintian is not installed")
needs_rpm = pytest.mark.skipif(
    not (shutil.which("rpmbuild") and shutil.which("rpmlint")), reason="rpm and rpmlint are not installed"
)


def run(*command: str, **environment: str) -> str:
    """Run a command in the source tree and return its output."""
    everything = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, env=everything, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, **environment: str) -> list[Path]:
    return [ROOT / line for line in run("sh", "tools/build-package.sh", kind, **environment).splitlines()]


@pytest.fixture(scope="module")
def deb() -> Path:
    (package,) = build("deb", TZ="UTC", LC_ALL="C.UTF-8")
    return package


@pytest.fixture(scope="module")
def rpms() -> list[Path]:
    return build("rpm")


@needs_debhelper
def test_deb_is_reproducible(deb: Path) -> None:
    before = hashlib.sha256(deb.read_bytes()).hexdigest()
    (again,) = build("deb", TZ="Asia/Tokyo", LC_ALL="C", COLUMNS="40")
    assert hashlib.sha256(again.read_bytes()).hexdigest() == before


@needs_debhelper
@needs_lintian
def test_lintian_has_no_complaint(deb: Path, tmp_path: Path) -> None:
    lintian = ["lintian", "--allow-root", "--fail-on", "error,warning"]
    assert run(*lintian, str(deb)) == ""
    # A control: the same package without a file that each has to have.
    unpacked = tmp_path / "unpacked"
    run("dpkg-deb", "-R", str(deb), str(unpacked))
    (unpacked / "usr/share/doc/crash-hotplug/copyright").unlink()
    run("dpkg-deb", "--root-owner-group", "-b", str(unpacked), str(tmp_path / "control.deb"))
    control = subprocess.run([*lintian, str(tmp_path / "control.deb")], capture_output=True, text=True, check=False)
    assert "no-copyright-file" in control.stdout


@needs_rpm
def test_rpmlint_has_no_complaint(rpms: list[Path], tmp_path: Path) -> None:
    shown = run(*RPMLINT, "packaging/rpm/crash-hotplug.spec", *map(str, rpms))
    assert "2 packages and 1 specfiles checked; 0 errors, 0 warnings" in shown
    control = tmp_path / "control.spec"
    control.write_text((ROOT / "packaging/rpm/crash-hotplug.spec").read_text().replace("MIT", ""))
    bad = subprocess.run([*RPMLINT, str(control)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert bad.returncode != 0
    assert "Empty tag: License" in bad.stdout


@needs_debhelper
@needs_rpm
def test_deb_and_rpm_contain_the_same_files(deb: Path, rpms: list[Path]) -> None:
    in_deb = files_in(run("dpkg-deb", "-c", str(deb)), column=5)
    in_rpm = files_in(run("rpm", "-qplv", *(str(path) for path in rpms if path.name.endswith(".noarch.rpm"))), column=8)
    assert in_deb - in_rpm == {"/share/doc/crash-hotplug/changelog", "/share/doc/crash-hotplug/copyright"}
    assert {Path(path).name for path in in_rpm - in_deb} == {"LICENSE"}
    assert "/lib/systemd/system/crash-hotplug.service" in in_deb


@needs_debhelper
def test_deb_prerm_undoes_doctor_before_the_program_is_removed(deb: Path, tmp_path: Path) -> None:
    run("dpkg-deb", "-e", str(deb), str(tmp_path))
    prerm = (tmp_path / "prerm").read_text()
    assert 0 < prerm.index("crash-hotplug doctor --undo") < prerm.index("py3clean")
    postinst = (tmp_path / "postinst").read_text()
    assert "deb-systemd-helper enable 'crash-hotplug.service'" in postinst


def files_in(listing: str, column: int) -> set[str]:
    """Return the files of a listing, with the differences between the distributions' directories removed."""
    names = {line.split()[column].lstrip(".") for line in listing.splitlines() if not line.startswith("d")}
    names = {name.replace("/site-packages/", "/dist-packages/") for name in names if "/__pycache__/" not in name}
    names = {name.replace("/etc/sysconfig/", "/etc/default/") for name in names}
    names = {name.replace("/site-functions/", "/vendor-completions/") for name in names}
    return {re.sub(r"^/usr|\.gz$", "", name) for name in names}


def test_pip_installs_both_commands_the_schemas_and_nothing_else(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    before = {path.name for path in binaries.iterdir()}
    run(str(binaries / "pip"), "install", "--quiet", "--disable-pip-version-check", str(ROOT))
    assert {path.name for path in binaries.iterdir()} - before == {"crash-hotplug", "crash-hotplug-lab"}
    shown = run(str(binaries / "crash-hotplug"), "status", "--help", PYTHONPATH="")
    assert shown.startswith("usage: crash-hotplug status")
    packages = {path.name.split("-")[0] for path in (tmp_path / "venv").glob("lib/python3*/site-packages/*")}
    packages -= {"pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils"}
    assert packages == {"crash_hotplug", "crash_hotplug_lab"}
    share = tmp_path / "venv" / "share"
    shared = {path.relative_to(share) for path in share.rglob("*") if path.is_file()}
    assert shared == {Path("crash-hotplug/schema", path.name) for path in (ROOT / "docs/schema").glob("*.json")}
    assert sys.prefix not in shown
