# SPDX-License-Identifier: MIT
"""The linters are tests: mypy --strict, ruff, codespell, SPDX lines, and the links between documents."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
"""A link to a file, with the file as its group; links within a page have none."""


@pytest.mark.parametrize(
    "command",
    [
        ("mypy",),
        # pytest itself is written for Python 3.10 and newer, so the tests are not checked for 3.9 as the package is.
        ("mypy", "--python-version", "3.10", "tests", "tools"),
        ("ruff", "check"),
        ("ruff", "format", "--check"),
        ("codespell_lib",),
    ],
    ids=" ".join,
)
def test_linter_has_no_complaint(command: tuple[str, ...]) -> None:
    pytest.importorskip(command[0])
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="this is no git work tree")
def test_source_files_have_their_spdx_line() -> None:
    check = [sys.executable, "tools/spdx.py", "--check"]
    result = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_spdx_line_follows_the_interpreter_and_is_found_again() -> None:
    spdx = runpy.run_path(str(ROOT / "tools/spdx.py"))
    line: bytes = spdx["LINE"]
    assert spdx["with_line"](b"import os\n") == line + b"import os\n"
    assert spdx["with_line"](b"#!/bin/sh\nset -eu\n") == b"#!/bin/sh\n" + line + b"set -eu\n"
    assert spdx["has_line"](spdx["with_line"](b"#!/bin/sh\nset -eu\n"))
    assert not spdx["has_line"](b"#!/bin/sh\nset -eu\n" + line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_document_lead_to_files(document: Path) -> None:
    text = re.sub(r"<!--.*?-->", "", document.read_text(), flags=re.DOTALL)
    targets = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    assert [target for target in targets if not (document.parent / target).exists()] == []
