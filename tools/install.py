# SPDX-License-Identifier: MIT
"""Put everything where it belongs on a machine: the one list behind ``make install``, the .deb and the .rpm.

``python3 tools/install.py --destdir DIR --prefix /usr --python-directory /usr/lib/python3/dist-packages``

What a server runs is installed: not the lab, which is a package of its own.  Man pages and completions are
written by the installed tree itself, so they say what is in it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

LAUNCHER = """\
#!{interpreter} -IS
import sys

sys.path.append("{directory}")

from crash_hotplug.__main__ import run

run()
"""
"""-I: nothing of the environment and of the user's own packages is run as root.

-S: no package of /usr/local hides one of ours, and no .pth file of another package is run.
"""

COPIED = {
    "packaging/systemd/*.service": "lib/systemd/system",
    "packaging/prometheus/*": "share/doc/crash-hotplug/prometheus",
    "packaging/grafana/*": "share/doc/crash-hotplug/grafana",
    "packaging/sos/*.py": "share/crash-hotplug/sos",
    "packaging/selinux/*": "share/crash-hotplug/selinux",
    "packaging/apparmor/*": "share/crash-hotplug/apparmor",
    "docs/*.*": "share/doc/crash-hotplug/docs",
    "docs/evidence/*": "share/doc/crash-hotplug/docs/evidence",
    "docs/schema/*": "share/crash-hotplug/schema",
    "*.md": "share/doc/crash-hotplug",
}
"""Which files of the source go where, under the prefix."""

COMPLETIONS = {
    "crash-hotplug": "share/bash-completion/completions",
    "_crash-hotplug": "share/zsh/site-functions",
    "crash-hotplug.fish": "share/fish/vendor_completions.d",
}
"""Where each shell looks for its completions, under the prefix."""


def install(destdir: str, prefix: str, python_directory: str, interpreter: str, settings_file: str | None) -> None:
    """Install everything below *destdir*; the others are absolute paths on the machine it is made for.

    :param interpreter: a Python of version 3.9 or newer
    :param settings_file: where the settings of the service go; None where there is none
    """
    root = Path(f"{destdir}/{prefix}")
    package = Path(f"{destdir}/{python_directory}") / "crash_hotplug"
    shutil.rmtree(package, ignore_errors=True)
    _copy_tree(ROOT / "src" / "crash_hotplug", package)
    _write(root / "bin" / "crash-hotplug", LAUNCHER.format(interpreter=interpreter, directory=python_directory), 0o755)
    if settings_file is not None:
        _write(Path(f"{destdir}/{settings_file}"), (ROOT / "packaging/systemd/crash-hotplug.settings").read_bytes())
    for pattern, directory in COPIED.items():
        for path in sorted(ROOT.glob(pattern)):
            _write(root / directory / path.name, _for_prefix(path, prefix))
    pages = root / "share/man/man8"
    _generate(package, "man_page", pages)
    generated = root / "completions"
    _generate(package, "completion", generated)
    for name, directory in COMPLETIONS.items():
        _write(root / directory / name, (generated / name).read_bytes())
    shutil.rmtree(generated)


def _for_prefix(path: Path, prefix: str) -> bytes:
    """Return the file's content; a unit is told where the program is."""
    content = path.read_bytes()
    return content.replace(b"/usr/bin/", f"{prefix}/bin/".encode()) if path.suffix == ".service" else content


def _copy_tree(source: Path, target: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source, target, ignore=ignore, copy_function=shutil.copyfile)
    for path in [target, *target.rglob("*")]:
        os.utime(path)  # now: packages are made reproducible by setting back what is newer than their changelog
        path.chmod(0o755 if path.is_dir() else 0o644)


def _write(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)


def _generate(package: Path, module: str, directory: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "80"}
    command = [sys.executable, "-m", f"crash_hotplug.cli.{module}", str(directory)]
    subprocess.run(command, env=environment, check=True)


def main() -> None:
    """Read the command line and install."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--destdir", default="", metavar="DIR", help="put before every path (for packages)")
    parser.add_argument("--prefix", default="/usr/local", metavar="DIR", help="(/usr/local)")
    parser.add_argument("--python-directory", metavar="DIR", help="of the Python package (PREFIX/lib/crash-hotplug)")
    parser.add_argument("--interpreter", default="/usr/bin/python3", metavar="FILE", help="(/usr/bin/python3)")
    parser.add_argument("--settings-file", metavar="FILE", help="of the service: not installed without this option")
    chosen = parser.parse_args()
    os.umask(0o022)
    python_directory = chosen.python_directory or f"{chosen.prefix}/lib/crash-hotplug"
    install(chosen.destdir, chosen.prefix, python_directory, chosen.interpreter, chosen.settings_file)


if __name__ == "__main__":
    main()
