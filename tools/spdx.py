# SPDX-License-Identifier: MIT
"""Add the SPDX licence line to every source file that lacks it; with ``--check``, list those files and exit with 1.

``python3 tools/spdx.py [--check]``.  The line is the first of a file, or the second where the first names an
interpreter.  Files saved from real machines, or written after a distribution's, stay as they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINE = b"# SPDX-License-Identifier: MIT\n"
SUFFIXES = (".py", ".sh", ".toml", ".yml", ".service", ".spec")
"""Kinds of files in which a line that starts with ``#`` is a comment; scripts and makefiles are recognised besides."""
NOT_OURS = ("tests/captures/", "tests/families/")


def source_files() -> list[Path]:
    """Return every source file that git tracks or would add.

    :raise CalledProcessError: this is no git work tree
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    files = sorted({ROOT / name for name in listed if name and not name.startswith(NOT_OURS)})
    return [path for path in files if path.is_file() and _is_source(path)]


def _is_source(path: Path) -> bool:
    if path.suffix in SUFFIXES or path.name == "Makefile":
        return True
    return path.suffix == "" and path.read_bytes().startswith(b"#!")


def has_line(content: bytes) -> bool:
    """Whether one of the first two lines is the SPDX line."""
    return LINE in content.splitlines(keepends=True)[:2]


def with_line(content: bytes) -> bytes:
    """Return *content* with the SPDX line in its place."""
    if content.startswith(b"#!"):
        interpreter, newline, rest = content.partition(b"\n")
        return interpreter + newline + LINE + rest
    return LINE + content


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a file lacks the line")
    check = parser.parse_args().check
    lacking = [path for path in source_files() if not has_line(path.read_bytes())]
    for path in lacking:
        print(f"{path.relative_to(ROOT)} {'lacks' if check else 'got'} the line")
        if not check:
            path.write_bytes(with_line(path.read_bytes()))
    return 1 if check and lacking else 0


if __name__ == "__main__":
    sys.exit(main())
