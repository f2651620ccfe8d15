# SPDX-License-Identifier: MIT
"""The output and the exit codes of `status`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.running import run
from tests.trees import NAMES, copied_tree, tree


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(tree("6.1-c", 1), tmp_path / "copy")
    return tmp_path / "copy"


def test_verdict_is_in_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    good = run(capsys, "status", "--sysroot", tree("6.1-c", 0))
    bad = run(capsys, "status", "--sysroot", tree("6.1-c", 1))
    assert (good.code, bad.code) == (0, 4)
    assert good.out.splitlines()[0] == "ACCURATE: a panic now would be dumped completely"
    assert bad.out.splitlines()[0] == "NOT ACCURATE: a dump of a panic now would lack CPU 2 and 256 MiB of memory"
    assert "\033" not in good.out, "colour only on a terminal"


def test_screen_shows_cpus_memory_image_and_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "status", "--sysroot", tree("6.1-c", 2)).out
    for shown in (
        "3 online, 3 present, 8 possible; 2 described",
        "blocks of 128 MiB: 9 online, 1 offline",
        "loaded by kexec_load (kexec -c)",
        "elfcorehdr at 0x39f5d000: 7 entries, 456 of 16384 bytes",
        "6.1.0-50-cloud-amd64",
        "does not update the elfcorehdr itself",
        "room left for 284 more",
    ):
        assert shown in out
    assert len(out.splitlines()) < 24
    assert all(len(line) <= 120 for line in out.splitlines())


def test_memory_that_is_gone_is_in_the_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "status", "--sysroot", tree("6.12-s", 3)).out
    assert out.splitlines()[0].endswith("would read 256 MiB of memory that is gone")


def test_status_without_an_image_has_its_exit_code(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    (copy / "sys/kernel/kexec_crash_loaded").write_text("0\n")
    ran = run(capsys, "status", "--sysroot", copy)
    assert ran.code == 3
    assert ran.out.startswith("NO CRASH IMAGE: none is loaded; a panic now leaves no dump (192 MiB are reserved")
    assert run(capsys, "status", "--sysroot", copy, "--json").json["verdict"] == "no crash image"


def test_header_given_is_judged_instead_of_the_loaded_one(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    given = tree("6.12-s", 0) / "crash-image" / "elfcorehdr"
    ran = run(capsys, "status", "--sysroot", tree("6.12-s", 3), "--elfcorehdr", given)
    assert ran.code == 0
    assert "judging by the header" in ran.out
    report = run(capsys, "status", "--sysroot", tree("6.12-s", 3), "--elfcorehdr", given, "--json").json
    assert report["crash_image"]["judged_by_header"] is True
    loaded = run(capsys, "status", "--sysroot", tree("6.12-s", 3), "--json").json
    assert loaded["crash_image"]["judged_by_header"] is False
    (copy / "sys/kernel/kexec_crash_loaded").write_text("0\n")
    header = tree("6.1-c", 0) / "crash-image" / "elfcorehdr"
    assert run(capsys, "status", "--sysroot", copy, "--elfcorehdr", header).code == 4


def test_masked_addresses_are_cannot_tell_and_say_what_is_needed(
    capsys: pytest.CaptureFixture[str], copy: Path
) -> None:
    (copy / "proc" / "iomem").write_text("00000000-00000000 : System RAM\n")
    ran = run(capsys, "status", "--sysroot", copy)
    assert ran.code == 5
    assert ran.out.startswith("CANNOT TELL: ")
    assert "run as root" in ran.out
    report = run(capsys, "status", "--sysroot", copy, "--json").json
    assert (report["verdict"], "run as root" in report["reason"]) == ("cannot tell", True)


@pytest.mark.parametrize(
    ("content", "loaded", "shown"),
    [("1\n", True, "one is loaded"), (None, None, "it is not known whether one is loaded")],
)
def test_cannot_tell_reports_whether_an_image_is_loaded(
    capsys: pytest.CaptureFixture[str], copy: Path, content: str | None, loaded: bool | None, shown: str
) -> None:
    (copy / "proc" / "iomem").write_text("00000000-00000000 : System RAM\n")
    flag = copy / "sys/kernel/kexec_crash_loaded"
    flag.unlink() if content is None else flag.write_text(content)
    assert f"Crash image   {shown}" in run(capsys, "status", "--sysroot", copy).out
    report = run(capsys, "status", "--sysroot", copy, "--json").json
    assert (report["verdict"], report["kernel"]["image_loaded"]) == ("cannot tell", loaded)


def test_json_has_the_release_that_updates_headers_itself(capsys: pytest.CaptureFixture[str]) -> None:
    kernel = run(capsys, "status", "--sysroot", tree("6.1-c", 0), "--json").json["kernel"]
    assert (kernel["architecture"], kernel["updated_by_kernel_since"]) == ("x86_64", "6.6")
    assert "(Linux 6.6 and newer can)" in run(capsys, "status", "--sysroot", tree("6.1-c", 0)).out


def test_check_that_cannot_be_made_is_cannot_tell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(tree("6.1-c", 0), tmp_path / "copy")
    (tmp_path / "copy" / "proc" / "kcore").unlink()
    ran = run(capsys, "status", "--sysroot", tmp_path / "copy")
    assert ran.code == 5
    assert "Not checked\n  the direct-map address of RAM" in ran.out


@pytest.mark.parametrize("missing", ["proc/iomem", "sys/devices/system/cpu/present", "crash-image"])
def test_missing_files_are_cannot_tell(capsys: pytest.CaptureFixture[str], copy: Path, missing: str) -> None:
    target = copy / missing
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    assert run(capsys, "status", "--sysroot", copy).code == 5


def test_corrupt_header_fails_with_one_sentence(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    (copy / "crash-image" / "elfcorehdr").write_bytes(b"garbage" * 20)
    ran = run(capsys, "status", "--sysroot", copy)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == "crash-hotplug status: this elfcorehdr is not an ELF file: it starts with 67 61 72 62\n"
    assert run(capsys, "status", "--sysroot", copy, "--json").json["verdict"] == "failed"


def test_many_findings_are_cut_for_people_and_whole_in_json(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    lines = [f"{n << 28:x}-{(n << 28) + 0xFFFFFFF:x} : System RAM" for n in range(16, 116, 2)]
    with (copy / "proc" / "iomem").open("a") as file:
        file.write("\n".join(lines) + "\n")
    out = run(capsys, "status", "--sysroot", copy).out
    assert "Findings (51; --json lists each)\n" in out
    assert "\n  50 ranges, 12.5 GiB in all, are not described: " in out
    assert len(run(capsys, "status", "--sysroot", copy, "--json").json["findings"]) == 51


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["none", "another", "two"])
def test_command_line_without_the_right_elfcorehdr_is_not_accurate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, change: str
) -> None:
    shutil.copytree(tree(name, 0), tmp_path / "copy")
    path = tmp_path / "copy/crash-image/cmdline"
    argument = next(word for word in path.read_text().split() if word.startswith("elfcorehdr="))
    words = {"none": "", "another": "elfcorehdr=0x1000", "two": f"{argument} {argument}"}
    path.write_text(path.read_text().replace(argument, words[change]))
    ran = run(capsys, "status", "--sysroot", tmp_path / "copy")
    assert (ran.code, ran.out.splitlines()[0]) == (4, "NOT ACCURATE: a dump of a panic now has 1 defect")
    assert "elfcorehdr" in ran.out.split("Findings")[1]


def test_tree_without_the_command_line_is_cannot_tell(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(tree("6.1-c", 0), tmp_path / "copy")
    (tmp_path / "copy/crash-image/cmdline").unlink()
    ran = run(capsys, "status", "--sysroot", tmp_path / "copy")
    assert ran.code == 5
    assert "Not checked\n  whether the capture kernel finds this header: its command line cannot be read" in ran.out
    # A tree that has the header alone: the check is named, and the header judged by itself.
    (tmp_path / "copy/crash-image/image.json").unlink()
    ran = run(capsys, "status", "--sysroot", tmp_path / "copy")
    assert ran.code == 0
    assert "Not checked\n  whether the capture kernel finds this header: its command line was not given" in ran.out


def test_memory_that_hyper_v_or_xen_adds_is_missing_from_the_middle_of_a_line_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Both drivers add blocks with MHP_MERGE_RESOURCE, so no line of /proc/iomem begins at the new memory."""
    root = copied_tree("6.12-s", 1, tmp_path / "tree")
    assert run(capsys, "status", "--sysroot", root).code == 0
    iomem = root / "proc/iomem"
    text = iomem.read_text()
    merged = text.replace("100000000-10fffffff : System RAM", "100000000-117ffffff : System RAM")
    assert merged != text
    iomem.write_text(merged)
    ran = run(capsys, "status", "--sysroot", root)
    assert ran.code == 4
    assert "128 MiB at 0x110000000 is not described" in ran.out
