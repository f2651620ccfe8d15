# SPDX-License-Identifier: MIT
"""`snapshot` saves the files that the other commands need."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.family_trees import NAMES as FAMILIES
from tests.family_trees import build, install_makedumpfile, install_service, mount_encrypted
from tests.trees import NAMES, tree


@pytest.mark.parametrize("name", NAMES)
def test_saved_tree_has_the_same_status_as_the_machine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    for state in range(4):
        saved = tmp_path / str(state)
        assert run(capsys, "snapshot", "--sysroot", tree(name, state), "-o", saved).code == 0
        first = run(capsys, "status", "--sysroot", tree(name, state), "--json")
        assert run(capsys, "status", "--sysroot", saved, "--json") == first


def test_layout_is_that_of_the_captures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, "snapshot", "--sysroot", tree("6.12-ch", 1), "-o", tmp_path / "saved")
    original = {p.relative_to(tree("6.12-ch", 1)) for p in tree("6.12-ch", 1).rglob("*") if p.is_file()}
    saved = {p.relative_to(tmp_path / "saved") for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert saved == original
    for path in ("proc/iomem", "proc/kallsyms", "proc/kcore", "crash-image/elfcorehdr", "crash-image/boot_params"):
        assert (tmp_path / "saved" / path).read_bytes() == (tree("6.12-ch", 1) / path).read_bytes(), path


def test_archive_has_one_directory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    archive = tmp_path / "case-1.tar.gz"
    ran = run(capsys, "snapshot", "--sysroot", tree("6.1-c", 1), "-o", archive)
    assert (ran.code, ran.out) == (0, f"saved 36 files in {archive}\n")
    with tarfile.open(archive) as packed:
        assert {name.split("/")[0] for name in packed.getnames()} == {"case-1"}
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(tmp_path / "out")], check=True)
    assert run(capsys, "status", "--sysroot", tmp_path / "out" / "case-1").code == 4


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_saved_files_are_private(capsys: pytest.CaptureFixture[str], tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        run(capsys, "snapshot", "--sysroot", tree("6.1-c", 1), "-o", tmp_path / "saved")
        run(capsys, "snapshot", "--sysroot", tree("6.1-c", 1), "-o", tmp_path / "saved.tgz")
    finally:
        os.umask(previous)
    for path in [tmp_path / "saved", *(tmp_path / "saved").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "saved.tgz").stat().st_mode) == 0o600
    with tarfile.open(tmp_path / "saved.tgz") as packed:
        for member in packed:
            assert member.mode == (0o700 if member.isdir() else 0o600), member.name
        assert [member.name for member in packed if member.isdir()] == ["saved"]


def test_directory_in_use_is_not_touched(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    ran = run(capsys, "snapshot", "--sysroot", tree("6.1-c", 1), "-o", tmp_path)
    assert ran.code == 1
    assert "is not empty" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_masked_addresses_save_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "proc").mkdir(parents=True)
    (source / "proc" / "iomem").write_text("00000000-00000000 : System RAM\n")
    ran = run(capsys, "snapshot", "--sysroot", source, "-o", tmp_path / "saved")
    assert (ran.code, (tmp_path / "saved").exists()) == (5, False)
    assert "run as root" in ran.err


def test_files_that_could_not_be_saved_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    run(capsys, "snapshot", "--sysroot", tree("6.1-c", 0), "-o", source)
    (source / "crash-image" / "elfcorehdr").unlink()
    ran = run(capsys, "snapshot", "--sysroot", source, "-o", tmp_path / "saved", "--json")
    assert ran.code == 5
    assert "has no elfcorehdr" in ran.json["missing"][0]


SETTINGS = {
    "debian": "etc/default/kdump-tools",
    "ubuntu": "etc/default/kdump-tools",
    "alt": "etc/sysconfig/kdump-tools",
    "redhat": "etc/sysconfig/kdump",
    "opensuse": "etc/sysconfig/kdump",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("fixed", [False, True])
def test_saved_tree_has_the_same_diagnosis_as_the_machine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str, fixed: bool
) -> None:
    tree_ = install_service(build(tmp_path / "tree", family), active=fixed)
    install_makedumpfile(mount_encrypted(tree_, {"/": "/dev/mapper/vg-root"}), "1.7.5")
    (tree_ / "proc/sys/kernel/osrelease").write_text("7.3.4\n")
    settings = tree_ / SETTINGS[family]
    directories = "KDUMP_COREDIR=/srv/dumps\nKDUMP_SAVEDIR=/srv/dumps\n"
    settings.write_text(f"{settings.read_text()}FTP_PASSWORD=secret\n{directories}")
    if family == "redhat":
        (tree_ / "etc/kdump.conf").write_text("path /srv/dumps\n")
    if fixed:
        run(capsys, "doctor", "--sysroot", tree_, "--fix")
    assert run(capsys, "snapshot", "--sysroot", tree_, "-o", tmp_path / "saved").code == 0
    first = run(capsys, "doctor", "--sysroot", tree_, "--json").json
    saved = run(capsys, "doctor", "--sysroot", tmp_path / "saved", "--json").json
    assert saved["next_hotplug"] == first["next_hotplug"]
    assert saved["verdict"] == first["verdict"]
    for before, after in zip(first["facts"], saved["facts"]):
        for report in (before, after):  # what stays out of a snapshot: lines of files, and what a file hides
            report["sentence"] = re.sub(r"( \([^()]*line \d+\)| \(hides .*\)|: written by .*)$", "", report["sentence"])
    assert saved["facts"] == first["facts"]
    assert next(fact["sentence"] for fact in first["facts"] if fact["topic"] == "Dump") == "makedumpfile 1.7.5"
    on_luks = "/srv/dumps, which takes the dump, is on the encrypted volume luks-0123"
    assert on_luks in [fact["sentence"] for fact in first["facts"]]
    assert not any(b"secret" in p.read_bytes() for p in (tmp_path / "saved").rglob("*") if p.is_file())


def test_snapshot_names_the_files_of_doctor_that_it_lacks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree_ = build(tmp_path / "tree", "redhat")
    rules = tree_ / "usr/lib/udev/rules.d/98-kexec.rules"
    rules.unlink()
    rules.mkdir()
    ran = run(capsys, "snapshot", "--sysroot", tree_, "-o", tmp_path / "saved")
    assert (ran.code, "98-kexec.rules" in ran.err) == (5, True)
