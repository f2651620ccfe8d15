# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab`` as a person types it, without booting anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crash_hotplug
from crash_hotplug_lab.cli.main import _LAB_EXTRA, CRASH_HOTPLUG_LAB, _missing_extra
from tests.cli.running import run_lab

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def extra() -> None:
    for module in ("qemu.qmp", "rich", "elftools"):
        pytest.importorskip(module)


def test_help_of_every_command_works_without_the_extras() -> None:
    hide = "import sys; [sys.modules.__setitem__(name, None) for name in ('qemu', 'rich', 'elftools', 'matplotlib')]"
    code = f"{hide}; from crash_hotplug_lab.cli.main import main; sys.exit(main(sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": str(Path(crash_hotplug.__file__).parent.parent)}
    for command in CRASH_HOTPLUG_LAB.commands:
        done = subprocess.run(
            [sys.executable, "-c", code, command, "--help"], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(f"usage: crash-hotplug-lab {command}")


def test_missing_extra_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lab = ("crash_hotplug_lab.qemu", "crash_hotplug_lab.cli.progress")
    for name in [name for name in sys.modules if name.startswith(lab)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    ran = run_lab(capsys, "fetch")
    assert ran.code == 1
    assert "the lab needs the Python package rich" in ran.err


@pytest.mark.usefixtures("extra")
def test_list_has_scenarios_and_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_lab(capsys, "list", "--json")
    assert ran.code == 0
    assert ran.json["scenarios"]["hot-add"]["updates"] == ["nothing", "kernel", "reload", "in-place", "watch"]
    assert ran.json["kernels"]["6.1"] is None
    assert ran.json["kernels"]["arm64-6.1"] is None
    assert set(ran.json["kernel_releases"]) == set(ran.json["kernels"])
    assert "hot-add" in run_lab(capsys, "list").out


@pytest.mark.usefixtures("extra")
def test_run_json_is_the_result_file_with_its_directory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crash_hotplug_lab.qemu import plan, results, session  # noqa: PLC0415 they need the extra

    async def run_none(_runs: object, directory: Path, *_others: object) -> list[results.Result]:
        done = [results.Result("hot-add", "title", "6.1", "6.1.1-1", "6.1.0", "ch", "nothing", "skip", "known")]
        results.write(done, directory, session.facts())
        return done

    monkeypatch.setattr("crash_hotplug_lab.cli.run.chosen_kernels", lambda *_arguments: [])
    monkeypatch.setattr(plan, "plan", lambda *_arguments: [])
    monkeypatch.setattr(session, "run_all", run_none)
    ran = run_lab(capsys, "run", "--json", "-o", tmp_path / "session")
    assert ran.code == 0
    written = json.loads((tmp_path / "session" / "result.json").read_text())
    assert ran.json == {**written, "directory": str(tmp_path / "session")}
    assert (tmp_path / "session" / "report.html").is_file()


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("guest", "--side", "with"), "needs the package file"),
        (("guest", "--side", "without", "--deb", "x.deb"), "the side `without` installs no package"),
        (
            ("guest", "redhat"),
            "redhat needs the sources of kdump-utils, which this project does not carry (--kdump-utils",
        ),
        (("guest", "suse", "--kdump-utils", "x"), "--kdump-utils is for `redhat`: it does not go with `suse`"),
        (("guest", "--kdump", "x"), "--kdump is for `suse`: it does not go with `debian`"),
        (("guest", "suse", "--loader", "c"), "suse has no setting for --loader"),
        (("guest", "--side", "without", "--rounds", "3"), "--rounds is about the side `locks`"),
        (("guest", "fedora"), "invalid choice: 'fedora'"),
        (("guest", "--build", "--storm"), "--build only builds the image"),
        (("guest", "--build", "-o", "d"), "--build only builds the image"),
        (("run", "--all", "hot-add"), "--all runs every scenario"),
        (("run", "--ktap", "--json"), "not allowed with"),
        (("run", "-j", "0"), "'0' is not a number from 1 on"),
        (("run", "--repeat", "-1"), "'-1' is not a number from 1 on"),
        (("run", "--kernel", "/boot/vmlinuz-mine"), "its modules have to be named as well"),
        (("run", "--modules", "/lib/modules"), "--modules goes with one --kernel that is a file"),
        (("run", "--kernel", "6.1", "--userland", "sid"), "--userland goes with a kernel that is a file"),
        (("simulate", "--snapshot", "tree"), "--snapshot saves one machine"),
        (("explore", "--jobs", "0"), "'0' is not a number from 1 on"),
        (("list", "6.1"), "unrecognized arguments"),
        (("fetch", "--arch", "sparc"), "invalid choice: 'sparc'"),
    ],
)
def test_options_that_do_not_fit_together_are_wrong_usage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # nothing may be fetched here
    ran = run_lab(capsys, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert words in ran.err


@pytest.mark.usefixtures("extra")
def test_kexec_of_ones_own_has_to_be_a_static_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # nothing may be fetched here
    dynamic = tmp_path / "kexec"
    dynamic.write_bytes(b"\x7fELF" + bytes(500) + b"\0/lib64/ld-linux-x86-64.so.2\0")
    for file, words in ((tmp_path / "none", "cannot read"), (dynamic, "is not a statically linked program")):
        ran = run_lab(capsys, "run", "--kexec", file)
        assert (ran.code, ran.out, words in ran.err) == (1, "", True)


def test_sentence_about_a_missing_extra_names_its_package() -> None:
    extra = re.search(r"^lab = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert extra is not None
    packages = re.findall(r'"([\w.-]+)', extra[1])
    assert sorted(packages) == sorted(_LAB_EXTRA.values())
    error = _missing_extra(ModuleNotFoundError(name="elftools.elf"))
    assert str(error).endswith("needs the Python package elftools; install it with: pip install pyelftools")


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nonsense"), "there is no scenario nonsense"),
        (
            ("run", "virtio-mem"),
            "only the model has the key blocks of the step add-virtio-mem vm0",
        ),
        (("simulate", "flipped-byte"), "the model cannot run flipped-byte: only QEMU has the step flip boot_params"),
        (("guest", "--release", "potato"), "no Debian potato can be built"),
        (("guest", "--deb", "/nonexistent.deb"), "there is no package file"),
        (("run", "--kernel", "2.6"), "no kernel is known as 2.6"),
        (("run", "--arch", "arm64", "--kernel", "6.18"), "no kernel is known as 6.18; known are 5.10"),
        (("report",), "`crash-hotplug-lab run` writes it"),
    ],
)
def test_wrong_choice_is_a_sentence_and_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # nothing may be fetched here
    ran = run_lab(capsys, *arguments)
    assert ran.code == 1
    assert words in ran.err


@pytest.mark.usefixtures("extra")
def test_fetch_without_apt_names_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    ran = run_lab(capsys, "fetch")
    assert ran.code == 1
    assert "this machine does not have them" in ran.err
