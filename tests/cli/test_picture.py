# SPDX-License-Identifier: MIT
"""``status --picture`` and ``audit --picture``: the file, and the output beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from crash_hotplug.cli.picture import printable_picture
from crash_hotplug.core.picture.states import Picture
from tests.cli.running import run
from tests.core.dump.saved_dumps import SavedDump, saved_dump
from tests.machines import machine
from tests.trees import arm64_tree, copied_tree, tree, vmcore_head

SVG = "{http://www.w3.org/2000/svg}"


def texts(path: Path) -> list[str]:
    drawing = ET.fromstring(path.read_text())
    return ["".join(element.itertext()) for element in drawing.iter() if element.tag in (f"{SVG}text", f"{SVG}title")]


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "dump"
    path.write_bytes(saved_dump(machine(), 2).to_bytes())
    return path


@pytest.mark.parametrize("tree_of", [tree("6.1-c", 1), tree("6.12-s", 3), arm64_tree("arm64-6.1-c", 1)])
@pytest.mark.parametrize("option", [(), ("--json",)])
def test_status_prints_the_same_with_a_picture_whose_title_is_the_verdict(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tree_of: Path, option: tuple[str, ...]
) -> None:
    picture = tmp_path / "now.svg"
    without = run(capsys, "status", "--sysroot", tree_of, *option)
    assert run(capsys, "status", "--sysroot", tree_of, *option, "--picture", picture) == without
    title = texts(picture)[0]
    if not option:
        assert title == without.out.splitlines()[0]
    assert title.startswith("NOT ACCURATE: a dump of a panic now would ")
    assert picture.stat().st_mode & 0o777 == 0o600


def test_status_of_a_saved_tree_shows_missing_memory_and_cpu(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = tmp_path / "now.svg"
    assert run(capsys, "status", "--sysroot", tree("6.1-c", 1), "--picture", picture).code == 4
    shown = texts(picture)
    assert shown[shown.index("0x000100000000 - 0x000110000000") :][:3] == [
        "0x000100000000 - 0x000110000000",
        "256 MiB",
        "missing",
    ]
    assert "missing: there and not described: no dump has it (256 MiB in 1 range)" in shown
    assert "crash-hotplug status, x86_64, kernel 6.1.0-50-cloud-amd64" in shown


def test_status_without_an_image_draws_the_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved, picture = copied_tree("6.1-c", 0, tmp_path / "tree"), tmp_path / "now.svg"
    (saved / "sys/kernel/kexec_crash_loaded").write_text("0\n")
    ran = run(capsys, "status", "--sysroot", saved, "--picture", picture)
    assert ran.code == 3
    assert texts(picture)[0] == ran.out.splitlines()[0]
    assert "No header was compared with the machine." in texts(picture)


def test_release_of_a_hostile_tree_is_escaped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved, picture = copied_tree("6.1-c", 0, tmp_path / "tree"), tmp_path / "now.svg"
    (saved / "proc/sys/kernel/osrelease").write_text("6.1<script>&\n")
    run(capsys, "status", "--sysroot", saved, "--picture", picture)
    assert "crash-hotplug status, x86_64, kernel 6.1<script>&" in texts(picture)


def test_name_of_a_hostile_dump_is_escaped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dump: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    dump.rename("<b>\ufffe\x01")
    run(capsys, "audit", "<b>\ufffe\x01", "--picture", "dump.svg")
    assert "crash-hotplug audit <b>\\ufffe\\x01: x86_64, kernel 6.1.0-test" in texts(tmp_path / "dump.svg")


def test_audit_shows_holes_left_out_pages_and_with_a_tree_what_is_missing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dump: Path
) -> None:
    picture = tmp_path / "dump.svg"
    ran = run(capsys, "audit", dump, "--picture", picture)
    assert (ran.code, ran.out) == (0, run(capsys, "audit", dump).out)
    shown = texts(picture)
    assert shown[0] == ran.out.splitlines()[0]
    assert {"hole: not described", "saved 40 KiB, left out 767.0 MiB"} <= {*shown}
    arguments = ("audit", vmcore_head("6.1-c"), "--sysroot", tree("6.1-c", 1), "--picture", picture)
    assert run(capsys, *arguments, "--json").json["verdict"] == "not accurate"
    assert {"missing", "crashkernel", "2 CPUs"} <= {*texts(picture)}


def test_audit_draws_one_dump_and_the_parts_of_a_split_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dump: Path
) -> None:
    picture = tmp_path / "dump.svg"
    two = run(capsys, "audit", dump, vmcore_head("6.1-c"), "--picture", picture)
    assert (two.code, two.out) == (2, "")
    assert "--picture draws one dump, and 2 are given" in two.err
    assert not picture.exists()
    whole: SavedDump = saved_dump(machine(), 2)
    parts = []
    for number, part in enumerate(((0, 131072), (131072, whole.max_mapnr))):
        parts.append(tmp_path / f"part{number}")
        parts[-1].write_bytes(replace(whole, part=part).to_bytes())
    split = run(capsys, "audit", *parts, "--picture", picture)
    assert split.code == 0
    assert texts(picture)[0] == split.out.splitlines()[0]


@pytest.mark.parametrize(("name", "code"), [("-", 2), ("", 2), (".", 1), ("missing/now.svg", 1)])
def test_picture_that_cannot_be_written_is_one_sentence_and_no_report(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dump: Path,
    name: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (("status", "--sysroot", tree("6.1-c", 1)), ("audit", dump)):
        ran = run(capsys, *command, "--picture", name)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (code, "", 1)
        assert "picture" in ran.err if code == 2 else "cannot be written" in ran.err or "regular file" in ran.err


def test_link_is_not_followed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "now.svg").symlink_to(target)
    ran = run(capsys, "status", "--sysroot", tree("6.1-c", 0), "--picture", tmp_path / "now.svg")
    assert (ran.code, target.read_text()) == (1, "kept")


def test_every_text_of_a_picture_is_escaped() -> None:
    hostile, escaped = "a\x1b[31m\ufffe\ud800", "a\\x1b[31m\\ufffe\\ud800"
    picture = printable_picture(Picture(hostile, hostile, others=(hostile,), remark=hostile))
    assert picture == Picture(escaped, escaped, others=(escaped,), remark=escaped)


def test_picture_that_cannot_be_written_is_refused_before_a_dump_is_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran = run(capsys, "audit", tmp_path / "no-dump", "--picture", tmp_path)
    assert ran.code == 1
    assert "exists and is not a regular file" in ran.err
