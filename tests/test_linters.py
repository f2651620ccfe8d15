"""The linters are tests: mypy --strict and ruff."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [
        ("mypy",),
        # pytest itself is written for Python 3.10 and newer, so the tests are not checked for 3.9 as the package is.
        ("mypy", "--python-version", "3.10", "tests", "tools"),
        ("ruff", "check"),
        ("ruff", "format", "--check"),
    ],
    ids=" ".join,
)
def test_linter_has_no_complaint(command: tuple[str, ...]) -> None:
    pytest.importorskip(command[0])
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
