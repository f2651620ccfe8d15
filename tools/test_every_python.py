"""Run the tests on every supported Python that the machine has, each in a virtual environment of its own.

``python3 tools/test_every_python.py [PYTEST ARGUMENT...]``; the Python that runs this is left out, ``make test`` has
used it already.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SUPPORTED = [(3, minor) for minor in range(9, 14)]
PACKAGES = ["pytest", "hypothesis", "pyelftools", "pytest-benchmark", "tomli; python_version < '3.11'"]
ROOT = Path(__file__).parent.parent


def interpreters() -> Iterator[tuple[str, str]]:
    """Yield version and path of each supported Python but this one: from PATH, else from pyenv."""
    for major, minor in SUPPORTED:
        version = f"{major}.{minor}"
        candidates = [shutil.which(f"python{version}"), *map(str, pyenv_pythons(version))]
        for path in candidates:
            if path is not None and (major, minor) != sys.version_info[:2] and answers(path, version):
                yield version, path
                break


def pyenv_pythons(version: str) -> list[Path]:
    """Return pyenv's interpreters of that version; they need not be on PATH."""
    return sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python3"))


def answers(path: str, version: str) -> bool:
    """Whether the program is a Python of that version (a pyenv shim may be there and not work)."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    shown = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return shown.stdout.strip() == version


def environment(version: str, path: str) -> Path | None:
    """Make (once) and return the virtual environment's Python; None where it cannot be made."""
    directory = ROOT / f".venv-{version}"
    python = directory / "bin" / "python"
    stamp = directory / "ready"
    if not stamp.exists():
        made = subprocess.run([path, "-m", "venv", "--clear", str(directory)], check=False).returncode == 0
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        if not made or subprocess.run(pip, check=False).returncode != 0:
            return None
        stamp.touch()
    return python


def main() -> int:
    """Run the tests everywhere; return 1 where one failed."""
    failed = []
    for version, path in interpreters():
        python = environment(version, path)
        if python is None:
            print(f"Python {version}: no virtual environment could be made, skipped", flush=True)
            continue
        print(f"Python {version}:", flush=True)
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(version)
    if failed:
        print(f"failed on Python {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
