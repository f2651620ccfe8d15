# SPDX-License-Identifier: MIT
"""The documentation builds without a warning, and its examples print what the pages show.

In a fenced block of ``console`` after the comment ``<!-- tested -->``, each line that begins with ``$`` is run here.
The lines that follow are its output, in which ``...`` stands for any text or lines.  The examples of a page share a
shell and a directory.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from crash_hotplug.cli.command_tree import read_commands
from crash_hotplug.core.decision import Outcome, Report
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.service.watch_record import Look, WatchRecord
from tests import family_trees
from tests.cli.running import run

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^<!-- tested -->\n```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAMS = {"crash-hotplug": "crash_hotplug", "crash-hotplug-lab": "crash_hotplug_lab"}
END = "--- end of example ---"


class Example(NamedTuple):
    """A command and the output that its page shows."""

    command: str
    shown: str


def examples(text: str) -> Iterator[Example]:
    """Yield the examples of a page that are run."""
    for block in BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield Example(command, shown)


def outputs(commands: list[str], directory: Path) -> list[str]:
    """Run commands in one shell, as a newcomer types them; return the output of each, errors included."""
    programs = directory / "programs"
    programs.mkdir()
    for name, package in PROGRAMS.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT / "src"}" exec "{sys.executable}" -m {package} "$@"\n')
        program.chmod(0o755)
    python = programs / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name in ("src", "tests"):
        (directory / name).symlink_to(ROOT / name)
    lines = [f"{command}\n(code=$?; echo '{END}'; exit $code)" for command in commands]
    environment = {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "COLUMNS": "80"}
    environment["TMPDIR"] = str(directory)
    shell = ["bash", "-c", "\n".join(lines)]
    ran = subprocess.run(shell, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True, check=False)  # fmt: skip
    return ran.stdout.split(f"{END}\n")[:-1]


def matches(shown: str, printed: str) -> bool:
    """Whether a command printed what its page shows; ``...`` is any text of a line, or any lines."""
    lines = shown.splitlines(keepends=True)
    parts = ["(?:.*\n)*" if line == "...\n" else re.escape(line).replace(r"\.\.\.", ".*") for line in lines]
    return re.fullmatch("".join(parts), printed) is not None


PAGES_WITH_EXAMPLES = [page for page in PAGES if any(examples(page.read_text()))]


@pytest.mark.parametrize("page", PAGES_WITH_EXAMPLES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_examples_print_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    wanted = list(examples(page.read_text()))
    printed = outputs([example.command for example in wanted], tmp_path)
    for example, got in zip(wanted, printed):
        assert matches(example.shown, got), f"$ {example.command}\n{example.shown}--- printed:\n{got}"
    assert len(printed) == len(wanted)


def test_pages_for_newcomers_have_examples() -> None:
    names = {page.name for page in PAGES_WITH_EXAMPLES}
    assert names >= {"start.md", "guide-support.md", "guide-kernel.md", "exit-codes.md"}


def test_example_is_found_with_its_output_where_the_page_says_so() -> None:
    block = "```console\n$ true\n$ echo a\na\nb\n```\n"
    assert list(examples(f"Text.\n\n<!-- tested -->\n{block}")) == [Example("true", ""), Example("echo a", "a\nb\n")]
    assert list(examples(f"Text.\n\n{block}")) == []


@pytest.mark.parametrize(("page", "family"), [("debian", "debian"), ("rhel", "redhat"), ("suse", "opensuse")])
def test_guide_quotes_doctor(page: str, family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = ""
    for kernel in (family_trees.UNAWARE, family_trees.AWARE):
        tree = family_trees.build(tmp_path / kernel, family, kernel)
        printed += run(capsys, "doctor", "--sysroot", tree).out
        family_trees.install_service(tree, active=True)
        for arguments in ([], ["--fix"], []):
            printed += run(capsys, "doctor", *arguments, "--sysroot", tree).out
    quoted = re.findall(
        r"^(?:HANDLED|NOT HANDLED|changed|  crash-hotplug doctor).*", (ROOT / f"docs/guide-{page}.md").read_text(), re.M
    )
    assert len(quoted) >= 3
    assert [line for line in quoted if line not in printed.splitlines()] == []


def test_metrics_page_lists_each_metric_that_the_service_writes() -> None:
    record = WatchRecord("1.0", started=1000.0)
    whole = Report(Outcome.UNCHANGED, "")
    updated = Look(Verdict.ACCURATE, "", "in-place", Outcome.UPDATED, "", 0.1, room_left=5, verification=whole)
    record.add(updated, "event", 1001.0, 0.5)
    written = set(re.findall(r"# TYPE (\w+) (\w+)", record.metrics()))
    page = (ROOT / "docs/metrics.md").read_text()
    assert set(re.findall(r"^\| `(\w+)[`{].*?\| (\w+) \|", page, re.MULTILINE)) == written


def test_commands_page_lists_every_command() -> None:
    build_docs = runpy.run_path(str(ROOT / "tools/build_docs.py"))
    page = (ROOT / "docs/commands.md").read_text()
    programs = (build_docs["CRASH_HOTPLUG"], build_docs["CRASH_HOTPLUG_LAB"])
    names = {f"{program.name} {command}" for program in programs for command in program.commands}
    assert set(re.findall(r"^\| `(crash-hotplug[^`]*)` \|", page, re.MULTILINE)) == names


def test_page_of_each_command_has_every_option() -> None:
    build_docs = runpy.run_path(str(ROOT / "tools/build_docs.py"))
    for program in (build_docs["CRASH_HOTPLUG"], build_docs["CRASH_HOTPLUG_LAB"]):
        for command in read_commands(program)[1:]:
            page = build_docs["markdown"](build_docs["command_page"](command))
            terms = set(re.findall(r"^`(.*)`\n: ", page, re.MULTILINE))
            assert terms == {argument.invocation for argument in (*command.options, *command.positionals)}


def test_site_has_links_that_lead_to_its_own_pages() -> None:
    build_docs = runpy.run_path(str(ROOT / "tools/build_docs.py"))
    pages = {name: build_docs["stage_page"](build_docs["PurePosixPath"](name)) for name in
             ("docs/watch.md", "docs/evidence/watch.md", "SECURITY.md")}  # fmt: skip
    assert "](security.md)" in pages["docs/watch.md"]
    assert "](../watch.md)" in pages["docs/evidence/watch.md"]
    assert "](index.md)" in pages["docs/evidence/watch.md"]
    assert "](in-place.md)" in pages["SECURITY.md"]


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason="Sphinx with furo and myst-parser is not installed (the docs extra)")
    command = [sys.executable, "tools/build_docs.py", str(tmp_path / "docs")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    for name in ("index", "start", "commands", "commands/crash-hotplug-status", "evidence/index", "contributing"):
        assert (tmp_path / "docs" / f"{name}.html").exists(), name
