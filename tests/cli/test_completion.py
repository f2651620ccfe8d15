# SPDX-License-Identifier: MIT
"""Completion in real shells on a terminal: TAB is typed, and the completed command line is run."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from crash_hotplug.cli import completion
from crash_hotplug.cli.command_tree import Value, read_commands

# A function replaces the command: it prints the words that it was given, between brackets.
SAY = "crash-hotplug() { printf 'ran:'; printf '[%s]' \"$@\"; echo; }"
SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        f"bind 'set enable-bracketed-paste off'; source DIR/crash-hotplug; {SAY}",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        f"unsetopt zle_bracketed_paste; fpath=(DIR $fpath); autoload -U compinit; compinit -u -D; {SAY}",
    ),
}
TYPED = {
    "a command": ("sta\t", "[status]"),
    "an option": ("status --js\t", "[status][--json]"),
    "a choice": ("update --strategy in-p\t", "[update][--strategy][in-place]"),
    "a choice after =": ("update --strategy=in-p\t", "[update][--strategy=in-place]"),
    "a file": ("audit vmc\t", "[audit][vmcore-0]"),
    # zsh takes the slash away again when Enter follows.
    "a directory": ("status --sysroot sav\t", "[status][--sysroot][saved"),
}
NOT_COMPLETED = {
    "an option of another command": ("status --strat\t", "[status][--strat]"),
    "a file where a directory belongs": ("status --sysroot vmc\t", "[status][--sysroot][vmc]"),
    "a command after a command": ("status upd\t", "[status][upd]"),
    "an option of an unknown command": ("nonsense --js\t", "[nonsense][--js]"),
}
needs_fish = pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("completion")
    completion.main(str(directory))
    return directory


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "vmcore-0").touch()
    (tmp_path / "saved").mkdir()
    return tmp_path


def type_into(shell: str, scripts: Path, place: Path, typed: str) -> str:
    """Type one command line into the shell; return its output."""
    command, setup = SHELLS[shell]
    keys = f"{setup.replace('DIR', str(scripts))}\n"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(place)
        os.execvpe(command[0], command, {**os.environ, "HOME": str(place), "TERM": "dumb", "PS1": "$ "})
    shown = b""
    try:
        # Each line is sent after the one before has run: a shell discards keys while it starts.
        for number, line in enumerate((keys, f"crash-hotplug {typed}\n")):
            os.write(terminal, line.encode() + f"echo at:$(({number} + 10))\n".encode())
            shown += _read_until(terminal, f"at:{number + 10}".encode())
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    return shown.decode(errors="replace").replace("\r", "")


def _read_until(terminal: int, end: bytes) -> bytes:
    shown = b""
    while end not in shown:
        readable, _, _ = select.select([terminal], [], [], 60)
        assert readable, f"the shell went silent after {shown!r}"
        shown += os.read(terminal, 65536)
    return shown


@pytest.mark.parametrize("typed", [*TYPED, *NOT_COMPLETED])
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_on_a_terminal(shell: str, typed: str, scripts: Path, place: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    keys, words = {**TYPED, **NOT_COMPLETED}[typed]
    shown = type_into(shell, scripts, place, keys)
    assert f"ran:{words}" in shown
    assert "not found" not in shown


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("crash-hotplug sta", ["status"]),
        ("crash-hotplug status --sysr", ["--sysroot"]),
        ("crash-hotplug update --strategy in-p", ["in-place"]),
        ("crash-hotplug update --strategy=in-p", ["--strategy=in-place"]),
        ("crash-hotplug audit vmc", ["vmcore-0"]),
        ("crash-hotplug status --sysroot sav", ["saved/"]),
        ("crash-hotplug status --sysroot vmc", []),
        ("crash-hotplug status --strat", []),
        ("crash-hotplug status upd", []),
        ("crash-hotplug load --init", ["--initrd"]),
    ],
)
@needs_fish
def test_fish_offers_the_candidates(line: str, candidates: list[str], scripts: Path, place: Path) -> None:
    command = f"source {scripts}/crash-hotplug.fish; complete -C '{line}'"
    shown = subprocess.run(["fish", "-N", "-c", command], cwd=place, capture_output=True, text=True, check=True)
    assert [offered.split("\t")[0] for offered in shown.stdout.splitlines()] == candidates
    assert shown.stderr == ""


def test_scripts_have_every_option_of_every_command() -> None:
    commands = read_commands()
    for script in (completion.bash(*commands), completion.zsh(*commands)):
        for command in commands:
            assert all(name in script for option in command.options for name in option.names)
    arguments = [argument for command in commands for argument in (*command.options, *command.positionals)]
    assert {argument.value for argument in arguments} == {*Value}
