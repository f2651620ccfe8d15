"""``crash-hotplug lab`` as a person types it, without booting anything."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import crash_hotplug
from tests.cli.running import run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def extra() -> None:
    for module in ("qemu.qmp", "rich", "elftools"):
        pytest.importorskip(module)


def test_the_lab_is_imported_only_when_it_is_used() -> None:
    code = "import sys; from crash_hotplug.cli.main import main; main(['lab', '--help'])"
    code += "; print([name for name in sys.modules if 'lab' in name])"
    env = {**os.environ, "PYTHONPATH": str(Path(crash_hotplug.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    # The names of the sides, which import nothing, and the packages that they lie in.
    light = ["crash_hotplug.lab", "crash_hotplug.lab.distro", "crash_hotplug.lab.distro.sides"]
    assert sorted(ast.literal_eval(done.stdout.splitlines()[-1])) == ["crash_hotplug.cli.lab", *light]


def test_without_its_extra_it_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("crash_hotplug.lab", "crash_hotplug.cli.lab_"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    ran = run(capsys, "lab", "list")
    assert ran.code == 1
    assert "pip install crash-hotplug[lab]" in ran.err


@pytest.mark.usefixtures("extra")
def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "lab", "list", "--json")
    assert ran.code == 0
    assert ran.json["scenarios"]["hot-add"]["updates"] == ["nothing", "kernel", "reload", "in-place", "watch"]
    assert ran.json["kernels"]["6.1"] is None
    assert "hot-add" in run(capsys, "lab", "list").out


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "nonsense"), "there is no scenario nonsense"),
        (("debian", "--release", "potato"), "no Debian potato can be built"),
        (("debian", "--deb", "/nonexistent.deb"), "there is no package file"),
        (("debian", "--side", "with"), "needs the package file"),
        (("run", "--kernel", "2.6"), "no kernel is known as 2.6"),
        (("run", "--kernel", "/boot/vmlinuz-mine"), "its modules have to be named as well"),
        (("run", "--modules", "/lib/modules"), "--modules goes with one --kernel that is a file"),
        (("run", "-j", "0"), "at least one guest has to run at a time"),
        (("report",), "`crash-hotplug lab run` writes it"),
    ],
)
def test_what_cannot_be_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")  # nothing may be fetched here
    ran = run(capsys, "lab", *arguments)
    assert ran.code == 1
    assert words in ran.err


@pytest.mark.usefixtures("extra")
def test_no_apt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    ran = run(capsys, "lab", "fetch")
    assert ran.code == 1
    assert "this machine does not have them" in ran.err
