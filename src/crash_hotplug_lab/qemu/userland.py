"""The guest's userland: busybox, kexec and Python of one Debian release, as a cpio archive.

Only what runs is taken: the programs, the libraries that the release's own ld.so says they need, and Python's standard
library, compiled beforehand by that same Python (compiling it in an emulated guest takes minutes).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from crash_hotplug_lab.qemu import cpio, hosttools
from crash_hotplug_lab.qemu.cachedir import cache_dir
from crash_hotplug_lab.qemu.debian import Archive, unpack
from crash_hotplug_lab.qemu.errors import LabError

_PACKAGES = ("busybox-static", "kexec-tools", "python3")
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "tkinter", "ensurepip", "pydoc_data", "__pycache__", "turtledemo"}


def fetch(release: str) -> None:
    """Download a release's userland and build the archive from it."""
    archive = Archive(release)
    archive.update()
    packages = archive.download(*_PACKAGES)
    tree = tree_of(release)
    unpack(packages, tree)
    root = cache_dir("userland", release, "root")
    shutil.rmtree(root)
    _build_root(tree, root)
    versions = {p.name: p.version for p in packages}
    (root / "etc/lab-versions").write_text("".join(f"{n} {versions[n]}\n" for n in _PACKAGES))
    with _archive(release).with_suffix(".new").open("wb") as out:
        cpio.write_console(out)
        cpio.write_tree(root, out)
    os.replace(_archive(release).with_suffix(".new"), _archive(release))


def archive_of(release: str) -> Path | None:
    """Return the cpio archive of a release's userland, or None before it was fetched."""
    return _archive(release) if _archive(release).exists() else None


def tree_of(release: str) -> Path:
    """Return the directory where a release's packages are unpacked."""
    return cache_dir("userland", release, "tree")


def python_of(tree: Path) -> str:
    """Return the name of a tree's Python (``python3.11``)."""
    names = [path.name for path in (tree / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name)]
    if not names:
        raise LabError(f"no Python below {tree}; run `crash-hotplug-lab fetch`")
    return max(names, key=lambda name: int(name.split(".")[1]))


def compile_python(tree: Path, *directories: Path) -> None:
    """Compile the Python files in some directories with the Python of an unpacked tree, for use without time stamps."""
    command = [
        *hosttools.in_tree(tree, python_of(tree)),
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
    ]
    env = {**os.environ, "PYTHONHOME": str(tree / "usr"), "PYTHONPATH": ""}
    done = subprocess.run([*command, *map(str, directories)], env=env, capture_output=True, check=False, timeout=600)
    if done.returncode not in (0, 1):  # 1: a file that is not valid Python, such as a template
        raise LabError(f"cannot compile the guest's Python files: {done.stderr.decode(errors='replace').strip()}")


def _archive(release: str) -> Path:
    return cache_dir("userland", release) / "userland.cpio"


def _build_root(tree: Path, root: Path) -> None:
    for directory in (
        "usr/bin",
        "usr/sbin",
        "usr/lib/x86_64-linux-gnu",
        "usr/lib64",
        "etc",
        "tmp",
        "run",
        "proc",
        "sys",
    ):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        (root / link).symlink_to(f"usr/{link}")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
    python = python_of(tree)
    shutil.copy2(hosttools.loader(tree), root / "usr/lib64/ld-linux-x86-64.so.2")
    for name in ("busybox", "kexec", python):
        found = Path(hosttools.in_tree(tree, name)[-1])
        shutil.copy2(found, root / "usr/bin" / name)
        if name != "busybox":
            _copy_libraries(tree, found, root)
    (root / "usr/bin/python3").symlink_to(python)
    stdlib = root / "usr/lib" / python
    shutil.copytree(
        tree / "usr/lib" / python,
        stdlib,
        ignore=lambda _, names: _LEFT_OUT.intersection(names),
        ignore_dangling_symlinks=True,
    )
    for extension in (stdlib / "lib-dynload").glob("*.so"):
        _copy_libraries(tree, extension, root)
    compile_python(tree, stdlib)


def _copy_libraries(tree: Path, program: Path, root: Path) -> None:
    command = [str(hosttools.loader(tree)), "--library-path", hosttools.library_path(tree), "--list", str(program)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    for path in re.findall(r"=> (/\S+) ", listed):
        target = root / "usr/lib/x86_64-linux-gnu" / os.path.basename(path)
        if not target.exists():
            shutil.copy2(path, target)
