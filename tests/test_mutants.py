# SPDX-License-Identifier: MIT
"""The lists of faults fit the source, and a sample of them is noticed: another one every day."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("what", ["--check", "--sample=16"])
def test_faults_of_the_lists(what: str) -> None:
    command = [sys.executable, "tools/mutants.py", what]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
