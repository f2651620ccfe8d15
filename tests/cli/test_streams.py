# SPDX-License-Identifier: MIT
"""Standard output and standard error as processes have them: full, closed, without a reader, interrupted."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from crash_hotplug.cli.main import CRASH_HOTPLUG
from crash_hotplug_lab.cli.main import CRASH_HOTPLUG_LAB
from tests.trees import tree

ROOT = Path(__file__).parent.parent.parent
TREE = str(tree("6.1-c", 0))
PRODUCT, LAB = "crash_hotplug", "crash_hotplug_lab"
REPORTS: list[tuple[str, ...]] = [
    (PRODUCT, "--version"),
    (PRODUCT, "status", "--sysroot", TREE),
    (PRODUCT, "status", "--sysroot", TREE, "--json"),
    (PRODUCT, "status", "--sysroot", "/nowhere", "--json"),
    (PRODUCT, "header", "--sysroot", TREE, "-o", "-"),
    (PRODUCT, "doctor", "--sysroot", TREE),
    (LAB, "--help"),
    (LAB, "simulate", "--json"),
    (LAB, "list", "--json"),
]
"""Each kind of output: words, JSON, an error as JSON, bytes, argparse's help."""
HELPS: list[tuple[str, ...]] = [
    *((PRODUCT, name, "--help") for name in CRASH_HOTPLUG.commands),
    *((LAB, name, "--help") for name in CRASH_HOTPLUG_LAB.commands),
]


def in_shell(redirections: str, *module_and_arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program with the redirections of a shell."""
    command = ["sh", "-c", f'exec "$0" -m "$@" {redirections}', sys.executable, *module_and_arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, timeout=60)


def in_python(code: str, redirections: str = "") -> subprocess.CompletedProcess[bytes]:
    command = ["sh", "-c", f'exec "$0" -c "$@" {redirections}', sys.executable, code]
    return subprocess.run(command, capture_output=True, env=environment(), check=False, timeout=60)


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), **changes}


@pytest.mark.parametrize("report", REPORTS + HELPS, ids=" ".join)
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_output_that_cannot_be_written_is_a_sentence_and_exit_code_1(
    report: tuple[str, ...], redirection: str, reason: str
) -> None:
    ran = in_shell(redirection, *report)
    program = report[0].replace("_", "-")
    assert (ran.returncode, ran.stderr) == (1, f"{program}: standard output cannot be written: {reason}\n")


@pytest.mark.parametrize("report", REPORTS[:2], ids=" ".join)
def test_output_that_can_be_written_is_exit_code_0(report: tuple[str, ...]) -> None:
    ran = in_shell("", *report)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout


@pytest.mark.parametrize("module", [PRODUCT, LAB])
def test_output_without_a_reader_is_quiet(module: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", module, "--help"]
    ran = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, env=environment(), check=False)
    os.close(write_end)
    assert (ran.returncode, ran.stderr) == (1, b"")


def test_closed_output_is_not_the_next_file_that_is_opened(tmp_path: Path) -> None:
    """Without a descriptor 1 the file would get that number, and a child process would write into it."""
    code = f"""
import os, subprocess
from crash_hotplug.cli.streams import protect_streams
protect_streams()
with open({str(tmp_path / "file")!r}, "w"):
    subprocess.run(["sh", "-c", "echo into the file"], close_fds=False)
"""
    in_python(code, ">&- <&- 2>&-")
    assert (tmp_path / "file").read_bytes() == b""


LOG = """
import sys
from crash_hotplug.__main__ import run
def service(_arguments):
    from crash_hotplug.cli.watch import _Log
    for _ in range(3):
        _Log().say(4, "in the log")
    print("goes on")
    return 0
run(lambda: service)
"""


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_log_that_cannot_be_written_stops_nothing(redirection: str) -> None:
    ran = in_python(LOG + "sys.stdout.flush()", redirection)
    assert (ran.returncode, ran.stdout) == (0, b"goes on\n")


def test_log_that_can_be_written_has_every_line() -> None:
    assert in_python(LOG).stderr == 3 * b"crash-hotplug watch: in the log\n"


@pytest.mark.parametrize("module", [PRODUCT, LAB])
@pytest.mark.parametrize("imported", ["crash_hotplug.cli.streams", "crash_hotplug.cli.main", "argparse", "re"])
def test_interrupt_while_modules_are_imported_is_exit_code_130(module: str, imported: str) -> None:
    code = f"""
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {imported!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
sys.modules.pop({imported!r}, None)
from {module}.__main__ import run
sys.argv[1:] = ["--help"]
run()
"""
    ran = in_python(code)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, b"", b"")


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_path_that_is_not_unicode_is_printed_with_a_backslash(tmp_path: Path, locale: str) -> None:
    header = os.fsencode(tmp_path) + b"/h\xff.elf"
    command: list[str | bytes] = [sys.executable, "-m", PRODUCT, "header", "--sysroot", TREE, "-o", header]
    ran = subprocess.run(command, capture_output=True, env=environment(LC_ALL=locale), check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"/h\\udcff.elf: 7 entries" in ran.stdout
    assert Path(os.fsdecode(header)).stat().st_size == 1024
    command = [sys.executable, "-m", PRODUCT, "audit", header + b"x"]
    ran = subprocess.run(command, capture_output=True, env=environment(LC_ALL=locale), check=False)
    assert (ran.returncode, ran.stderr.count(b"\n"), b"h\\udcff.elfx cannot be opened" in ran.stderr) == (1, 1, True)


@pytest.mark.parametrize(
    ("changes", "is_coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_verdict_has_a_colour_on_terminals_that_have_colours(changes: dict[str, str], is_coloured: bool) -> None:
    variables = {key: value for key, value in environment().items() if key != "NO_COLOR"}
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", PRODUCT, "status", "--sysroot", TREE]
    subprocess.run(command, stdout=terminal, env={**variables, **changes}, check=True)
    shown = os.read(controller, 1 << 16)
    os.close(controller)
    os.close(terminal)
    assert b"ACCURATE" in shown
    assert (b"\033[" in shown) is is_coloured


@pytest.mark.parametrize(("error", "code_of_exit"), [("BrokenPipeError", 1), ("KeyboardInterrupt", 130)])
def test_exploration_ends_in_the_middle_of_a_search(error: str, code_of_exit: int) -> None:
    """The searches of all scenarios take minutes."""
    code = f"""
import multiprocessing, sys, time
from crash_hotplug_lab.cli import explore, main
multiprocessing.set_start_method("fork")
def search(*_):
    time.sleep(300)
explore.explore = search
def show(*_):
    time.sleep(0.2)
    raise {error}
explore._show = show
sys.exit(main.main(["explore", "hot-add"]))
"""
    ran = in_python(code)
    assert (ran.returncode, ran.stderr) == (code_of_exit, b"")


def test_streams_keep_the_encoding_and_pass_bytes_through() -> None:
    code = """
import sys
from crash_hotplug.cli.streams import protect_streams
before = sys.stdout.encoding
protect_streams()
assert sys.stdout.encoding == before
sys.stdout.buffer.write(bytes(range(256)) * 100)
"""
    ran = in_python(code)
    assert (ran.returncode, ran.stdout) == (0, bytes(range(256)) * 100)
    assert len(ran.stdout) > io.DEFAULT_BUFFER_SIZE
