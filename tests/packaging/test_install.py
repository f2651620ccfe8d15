# SPDX-License-Identifier: MIT
"""The files that ``make install`` installs, from which both packages are built."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crash_hotplug import __version__
from tests.trees import tree

ROOT = Path(__file__).parent.parent.parent
PYTHON_DIRECTORY = "usr/lib/python3/dist-packages"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the root of an installed tree, made under a umask of 0077."""
    root = tmp_path_factory.mktemp("root")
    install = [sys.executable, "tools/install.py", "--destdir", str(root), "--prefix", "/usr"]
    before = os.umask(0o077)
    try:
        subprocess.run([*install, "--python-directory", f"/{PYTHON_DIRECTORY}"], cwd=ROOT, check=True)
    finally:
        os.umask(before)
    return root


def run_installed(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(root / PYTHON_DIRECTORY), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", "-m", "crash_hotplug", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_installed_command_works_without_any_other_package(installed: Path) -> None:
    assert run_installed(installed, "--version").stdout == f"crash-hotplug {__version__}\n"
    assert run_installed(installed, "status", "--sysroot", str(tree("6.1-c", 0))).returncode == 0
    assert run_installed(installed, "status", "--sysroot", str(tree("6.1-c", 1))).returncode == 4


def test_launcher_ignores_the_environment(installed: Path) -> None:
    launcher = (installed / "usr/bin/crash-hotplug").read_text()
    assert launcher.startswith("#!/usr/bin/python3 -IS\n")
    assert f'"/{PYTHON_DIRECTORY}"' in launcher


@pytest.mark.parametrize("flags", ["-IS", "-I"], ids=["launcher", "negative control"])
def test_launcher_searches_no_packages_before_its_own(installed: Path, tmp_path: Path, flags: str) -> None:
    # A virtual environment's site-packages stands for the dist-packages of /usr/local: site.py adds both.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    planted = next(tmp_path.glob("lib/python3*/site-packages")) / "crash_hotplug" / "__main__.py"
    planted.parent.mkdir()
    planted.with_name("__init__.py").touch()
    planted.write_text("def run(): print('planted')\n")
    launcher = tmp_path / "launcher"
    text = (installed / "usr/bin/crash-hotplug").read_text()
    launcher.write_text(text.replace(f"/{PYTHON_DIRECTORY}", str(installed / PYTHON_DIRECTORY)))
    given = text.splitlines()[0].partition(" ")[2] if flags == "-IS" else flags
    command = [str(tmp_path / "bin" / "python3"), "-B", given, str(launcher), "--version"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out == (f"crash-hotplug {__version__}\n" if flags == "-IS" else "planted\n")


def test_installed_files_contain_nothing_of_the_lab(installed: Path) -> None:
    assert run_installed(installed, "lab", "list").returncode == 2
    completions = (installed / "usr/share/bash-completion/completions/crash-hotplug").read_text()
    assert 'words="status ' in completions
    assert "lab" not in completions
    names = {path.name for path in installed.rglob("*")}
    assert "crash-hotplug-status.8" in names
    assert "crash-hotplug-lab.8" not in names
    assert not {name for name in names if re.match(r"(crash_hotplug_)?lab(_.*)?(\.py)?$", name)}
    assert "__pycache__" not in names


def test_installed_files_are_readable_by_all_and_only_the_command_is_executable(installed: Path) -> None:
    modes = {path: path.stat().st_mode & 0o777 for path in installed.rglob("*")}
    for path, mode in modes.items():
        runs = path.is_dir() or path.parent.name == "bin"
        assert mode == (0o755 if runs else 0o644), path


def test_version_is_the_same_in_every_package() -> None:
    changelog = (ROOT / "packaging/debian/changelog").read_text()
    assert changelog.startswith(f"crash-hotplug ({__version__}) ")
    spec = (ROOT / "packaging/rpm/crash-hotplug.spec").read_text()
    assert f"\nVersion:        {__version__}\n" in spec
    assert f" - {__version__}-1\n" in spec
