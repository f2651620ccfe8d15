# SPDX-License-Identifier: MIT
"""The commands on an archive: of `snapshot`, of a machine's tree, and of the real sos with the plugin."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.family_trees import NAMES as FAMILIES
from tests.family_trees import build, install_service
from tests.trees import NAMES, tree, vmcore_head

ROOT = Path(__file__).parent.parent.parent
SYSTEM_PYTHON = "/usr/bin/python3"
"""sos is a package of the distribution."""
RUN_SOS = """
import os, sys
import sos.report.plugins
from sos import SoS
try:
    from sos.policies.distros import LinuxPolicy
    from sos.policies.distros.debian import DebianPolicy
except ImportError:  # sos 4.0
    from sos.policies import LinuxPolicy
    from sos.policies.debian import DebianPolicy
sos.report.plugins.__path__.append(sys.argv[1])
LinuxPolicy.PATH = DebianPolicy.PATH = os.environ["PATH"]
SoS(sys.argv[2:]).execute()
"""
"""The plugin and the program are those of the work tree."""


def pack(directory: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(directory, "case")
    return archive


@pytest.mark.parametrize("name", NAMES)
def test_archive_of_snapshot_is_read_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    machine, saved = tree(name, 1), tmp_path / "case.tar.gz"
    run(capsys, "snapshot", "--sysroot", machine, "-o", saved)
    for command in (["status"], ["audit", vmcore_head(name)], ["header", "-o", tmp_path / "elfcorehdr"]):
        of_machine = run(capsys, *command, "--sysroot", machine, "--json")
        assert run(capsys, *command, "--sysroot", saved, "--json") == of_machine, command


@pytest.mark.parametrize("family", FAMILIES)
def test_doctor_reads_the_same_from_an_archive(capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str) -> None:
    root = build(tmp_path / "root", family)
    install_service(root)
    saved = pack(root, tmp_path / "case.tgz")
    of_tree = run(capsys, "doctor", "--sysroot", root, "--json")
    assert run(capsys, "doctor", "--sysroot", saved, "--json") == of_tree
    run(capsys, "snapshot", "--sysroot", saved, "-o", tmp_path / "again.tgz")
    run(capsys, "snapshot", "--sysroot", root, "-o", tmp_path / "again")
    of_snapshot = run(capsys, "doctor", "--sysroot", tmp_path / "again", "--json")
    assert run(capsys, "doctor", "--sysroot", tmp_path / "again.tgz", "--json") == of_snapshot


@pytest.mark.parametrize("option", [["--fix"], ["--undo"], ["--fix", "--dry-run"]])
def test_doctor_changes_no_archive(capsys: pytest.CaptureFixture[str], tmp_path: Path, option: list[str]) -> None:
    root = build(tmp_path / "root", FAMILIES[0])
    install_service(root)
    saved = pack(root, tmp_path / "case.tgz")
    before = saved.read_bytes()
    ran = run(capsys, "doctor", *option, "--sysroot", saved)
    assert ran.code == 1
    assert f"{saved} is an archive: no file in it can be changed" in ran.err
    assert saved.read_bytes() == before


def test_archive_with_a_missing_file_cannot_tell_and_names_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(tree("6.1-c", 1), tmp_path / "root"))
    (root / "proc" / "iomem").unlink()
    saved = pack(root, tmp_path / "case.tgz")
    ran = run(capsys, "status", "--sysroot", saved)
    assert (ran.code, "Traceback" in ran.err) == (5, False)
    assert f"{saved}:/proc/iomem does not exist" in ran.out + ran.err


def test_truncated_archive_is_bad_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = pack(tree("6.1-c", 1), tmp_path / "case.tgz")
    saved.write_bytes(saved.read_bytes()[:-100])
    ran = run(capsys, "status", "--sysroot", saved)
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)
    assert "is truncated or damaged" in ran.err


def test_snapshot_keeps_the_record_of_load(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = Path(shutil.copytree(tree("6.1-c", 1), tmp_path / "root"))
    (root / "run" / "crash-hotplug").mkdir(parents=True)
    (root / "run" / "crash-hotplug" / "loaded.json").write_text('{"strategy": "reload"}')
    run(capsys, "snapshot", "--sysroot", root, "-o", tmp_path / "saved")
    assert (tmp_path / "saved/run/crash-hotplug/loaded.json").read_text() == '{"strategy": "reload"}'


def has_sos() -> bool:
    asked = [SYSTEM_PYTHON, "-c", "import sos.report"]
    return os.geteuid() == 0 and subprocess.run(asked, capture_output=True, check=False, cwd="/").returncode == 0


@pytest.mark.skipif(not has_sos(), reason="needs root and the distribution's sos (Debian: apt install sosreport)")
def test_report_of_the_real_sos_is_read_as_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program, out, machine = tmp_path / "bin/crash-hotplug", tmp_path / "out", tree("6.1-c", 1)
    program.parent.mkdir()
    out.mkdir()
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT}/src exec {sys.executable} -m crash_hotplug "$@" --sysroot {machine}\n'
    )
    program.chmod(0o755)
    options = ["report", "--batch", "--only-plugins", "crash_hotplug", "--tmp-dir", str(out)]
    subprocess.run(
        [SYSTEM_PYTHON, "-c", RUN_SOS, str(ROOT / "packaging/sos"), *options],
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"},
        check=True,
        capture_output=True,
        timeout=300,
        cwd=tmp_path,
    )
    [report] = out.glob("sosreport-*.tar.xz")
    for command in ("status", "doctor"):
        of_machine = run(capsys, command, "--sysroot", machine, "--json")
        assert run(capsys, command, "--sysroot", report, "--json") == of_machine
    with tarfile.open(report) as packed:
        packed.extractall(tmp_path / "unpacked")
    [directory] = (tmp_path / "unpacked").iterdir()
    assert run(capsys, "status", "--sysroot", directory).code == 4
    outputs = {path.name for path in (directory / "sos_commands/crash_hotplug").iterdir()}
    assert outputs == {"snapshot", "snapshot.log", "crash-hotplug_status_--json", "crash-hotplug_doctor_--json"}
