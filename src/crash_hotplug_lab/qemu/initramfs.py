# SPDX-License-Identifier: MIT
"""The initramfs that a guest boots with: userland, modules, this checkout, and a small one for the capture kernel.

Each part is a "newc" cpio archive (Documentation/driver-api/early-userspace).  The kernel unpacks several archives one
after another, so the userland (busybox, kexec and Python of a Debian release) is built once and each run adds the rest.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import BinaryIO

import crash_hotplug
from crash_hotplug_lab.qemu.debian import Archive, cache_dir, dynamic_loader, library_path, program_in, unpack
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.kernels import Kernel, modules_in_load_order

MODULES = ("virtio_pci", "virtio_blk")
"""Modules of the disk that takes the vmcore."""
_LAB = Path(__file__).parents[1]
_SENT = ("in_guest", "experiments", "bench", "cli")
"""Rooms of the lab with programs that run in a guest; the others stay on the host."""
_PACKAGES = ("busybox-static", "kexec-tools", "python3")
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "tkinter", "ensurepip", "pydoc_data", "__pycache__", "turtledemo"}
"""Parts of Python's standard library that no program in a guest needs."""
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_TRAILER = "TRAILER!!!"


def build(kernel: Kernel, scratch: Path) -> Path:
    """Write the initramfs for a run of a kernel below ``scratch`` and return its path.

    It holds the userland, the kernel's modules, the kernel and the capture kernel's initrd to load, and this checkout.

    :raise LabError: the userland was not fetched
    """
    base = userland_archive(kernel.userland)
    if base is None:
        raise LabError(f"the userland of Debian {kernel.userland} was not fetched; run `crash-hotplug-lab fetch`")
    tree = _tree_of(kernel.userland)
    modules = modules_in_load_order(kernel.modules, MODULES)
    part, capture = scratch / "initramfs", scratch / "capture-root"
    make_root(capture, "init", modules, Path(program_in(tree, "busybox")[-1]))
    make_root(part, "init", modules)
    (part / "boot").mkdir()
    (part / "boot/capture.img").write_bytes(_compressed(capture))
    shutil.copyfile(kernel.vmlinuz, part / "boot/vmlinuz")
    for room in ("in_guest", "experiments"):
        for script in sorted((_LAB / room).glob("*.py")):
            shutil.copyfile(script, part / "lab" / script.name)
    source = part / "lab/src"
    ignored = shutil.ignore_patterns("__pycache__", "init")
    shutil.copytree(Path(crash_hotplug.__file__).parent, source / "crash_hotplug", ignore=ignored)
    for room in _SENT:
        shutil.copytree(_LAB / room, source / _LAB.name / room, ignore=ignored)
    for name in ("__init__.py", "__main__.py"):
        shutil.copyfile(_LAB / name, source / _LAB.name / name)
    _compile_python(tree, source)
    image = scratch / "initramfs.cpio"
    with image.open("wb") as out:
        with base.open("rb") as userland:
            shutil.copyfileobj(userland, out, 1 << 20)
        write_tree(part, out)
    shutil.rmtree(part)
    shutil.rmtree(capture)
    return image


def make_root(root: Path, init: str, modules: dict[str, bytes], busybox: Path | None = None) -> None:
    """Make the root directory of an initramfs: its first process, its modules, and busybox where it is given.

    :param init: name of a program of in_guest/
    :param modules: name and content of each kernel module, in the order of loading
    """
    shutil.rmtree(root, ignore_errors=True)
    (root / "lab/modules").mkdir(parents=True)
    shutil.copyfile(_LAB / "in_guest" / init, root / "init")
    (root / "init").chmod(0o755)
    (root / "lab/modules.order").write_text("".join(f"{name}\n" for name in modules))
    for name, content in modules.items():
        (root / "lab/modules" / f"{name}.ko").write_bytes(content)
    if busybox is not None:
        (root / "bin").mkdir()
        shutil.copy2(busybox, root / "bin/busybox")


def _compressed(root: Path) -> bytes:
    archive = io.BytesIO()
    write_console(archive)
    write_tree(root, archive)
    return gzip.compress(archive.getvalue(), 9, mtime=0)


def fetch_userland(release: str) -> None:
    """Download the userland of a Debian release and build its cpio archive.

    Only what runs is taken: the programs, the libraries that the release's own ld.so lists for them, and Python's
    standard library, compiled by that same Python (compiling it in an emulated guest takes minutes).
    """
    archive = Archive(release)
    archive.update()
    packages = archive.download(*_PACKAGES)
    tree = _tree_of(release)
    unpack(packages, tree)
    root = cache_dir("userland", release, "root")
    shutil.rmtree(root)
    _build_root(tree, root)
    versions = {p.name: p.version for p in packages}
    (root / "etc/lab-versions").write_text("".join(f"{n} {versions[n]}\n" for n in _PACKAGES))
    with _userland(release).with_suffix(".new").open("wb") as out:
        write_console(out)
        write_tree(root, out)
    os.replace(_userland(release).with_suffix(".new"), _userland(release))


def userland_archive(release: str) -> Path | None:
    """Return the cpio archive of a release's userland; None where it was not fetched."""
    return _userland(release) if _userland(release).exists() else None


def _tree_of(release: str) -> Path:
    return cache_dir("userland", release, "tree")


def _python_of(tree: Path) -> str:
    """Return the name of the Python of an unpacked tree (``python3.11``)."""
    names = [path.name for path in (tree / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name)]
    if not names:
        raise LabError(f"no Python below {tree}; run `crash-hotplug-lab fetch`")
    return max(names, key=lambda name: int(name.split(".")[1]))


def _compile_python(tree: Path, *directories: Path) -> None:
    """Compile the Python files in some directories with the Python of an unpacked tree."""
    # hashes that nothing checks: the time stamps of sources in an initramfs mean nothing
    command = [*program_in(tree, _python_of(tree)), "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    env = {**os.environ, "PYTHONHOME": str(tree / "usr"), "PYTHONPATH": ""}
    done = subprocess.run([*command, *map(str, directories)], env=env, capture_output=True, check=False, timeout=600)
    if done.returncode not in (0, 1):  # 1: a file that is not valid Python, such as a template
        raise LabError(f"cannot compile the guest's Python files: {done.stderr.decode(errors='replace').strip()}")


def _userland(release: str) -> Path:
    return cache_dir("userland", release) / "userland.cpio"


def _build_root(tree: Path, root: Path) -> None:
    for directory in ("usr/bin", "usr/sbin", _LIBRARIES, "usr/lib64", "etc", "tmp", "run", "proc", "sys"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        (root / link).symlink_to(f"usr/{link}")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
    python = _python_of(tree)
    shutil.copy2(dynamic_loader(tree), root / "usr/lib64/ld-linux-x86-64.so.2")
    for name in ("busybox", "kexec", python):
        found = Path(program_in(tree, name)[-1])
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
    _compile_python(tree, stdlib)


def _copy_libraries(tree: Path, program: Path, root: Path) -> None:
    command = [str(dynamic_loader(tree)), "--library-path", library_path(tree), "--list", str(program)]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    for path in re.findall(r"=> (/\S+) ", listed):
        target = root / _LIBRARIES / os.path.basename(path)
        if not target.exists():
            shutil.copy2(path, target)


def write_tree(tree: Path, out: BinaryIO) -> None:
    """Write a directory, with its links and modes, as one cpio archive owned by root."""
    number = 1
    for directory, names, files in os.walk(tree):
        names.sort()
        for name in sorted(files) + names:
            path = Path(directory, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path).encode()
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            else:
                content = b""
            _write_member(out, number, str(path.relative_to(tree)), status.st_mode, content)
            number += 1
    _write_end(out)


def write_console(out: BinaryIO) -> None:
    """Write a cpio archive with only ``/dev/console``, without which the first process has no output."""
    _write_member(out, 1, "dev", stat.S_IFDIR | 0o755, b"")
    _write_member(out, 2, "dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))
    _write_end(out)


def _write_end(out: BinaryIO) -> None:
    _write_member(out, 0, _TRAILER, 0, b"")
    out.write(bytes(-out.tell() % 512))


def _write_member(
    out: BinaryIO, number: int, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
) -> None:
    raw = name.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    out.write(head + bytes(-len(head) % 4))
    out.write(content + bytes(-len(content) % 4))
