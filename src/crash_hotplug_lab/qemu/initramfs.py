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
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

import crash_hotplug
from crash_hotplug_lab.qemu.debian import Archive, cache_dir, find_program, program_in, unpack
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.guest_architecture import X86_64, GuestArchitecture
from crash_hotplug_lab.qemu.kernels import Kernel, modules_in_load_order

MODULES = ("virtio_pci", "virtio_blk")
"""Modules of the disk that takes the vmcore."""
_LAB = Path(__file__).parents[1]
_SENT = ("in_guest", "experiments", "bench", "cli")
"""Rooms of the lab with programs that run in a guest; the others stay on the host."""
_PACKAGES = ("busybox-static", "kexec-tools", "python3")
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "tkinter", "ensurepip", "pydoc_data", "__pycache__", "turtledemo"}
"""Parts of Python's standard library that no program in a guest needs."""
_TRAILER = "TRAILER!!!"


def build(kernel: Kernel, scratch: Path, modules: Iterable[str] = (), capture_modules: Iterable[str] = ()) -> Path:
    """Write the initramfs for a run of a kernel below ``scratch`` and return its path.

    It holds the userland, the kernel's modules, the kernel and the capture kernel's initrd to load, and this checkout.

    :param modules: names of modules beside those of the disk
    :param capture_modules: the same for the capture kernel
    :raise LabError: the userland was not fetched
    """
    architecture = kernel.architecture
    base = userland_archive(kernel.userland, architecture)
    if base is None:
        raise LabError(f"the userland of Debian {kernel.userland} was not fetched; run `crash-hotplug-lab fetch`")
    tree = _tree_of(kernel.userland, architecture)
    part, capture = scratch / "initramfs", scratch / "capture-root"
    needed = modules_in_load_order(kernel.modules, (*MODULES, *capture_modules))
    make_root(capture, "init", needed, find_program(tree, "busybox"))
    make_root(part, "init", modules_in_load_order(kernel.modules, (*MODULES, *modules)))
    (part / "lab/agent-port").write_text(f"/dev/{architecture.agent_port}\n")
    (part / "boot").mkdir()
    (part / "boot/capture.img").write_bytes(_compressed(capture))
    shutil.copyfile(kernel.vmlinuz, part / "boot/vmlinuz")
    if kernel.kexec is not None:
        (part / "usr/bin").mkdir(parents=True)
        shutil.copyfile(kernel.kexec, part / "usr/bin/kexec")
        (part / "usr/bin/kexec").chmod(0o755)
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
    _compile_python(kernel.userland, source)
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


def fetch_userland(release: str, architecture: GuestArchitecture = X86_64) -> None:
    """Download the userland of a Debian release and build its cpio archive.

    Only what runs is taken: the programs, the libraries that they need, and Python's standard library, compiled here
    (compiling it in an emulated guest takes minutes).  The host runs x86_64 programs only, so the release's Python for
    x86_64 compiles for every architecture: byte code depends on the version of Python alone.
    """
    if architecture is not X86_64 and userland_archive(release) is None:
        fetch_userland(release)
    archive = Archive(release, architecture=architecture.debian)
    archive.update()
    packages = archive.download(*_PACKAGES)
    tree = _tree_of(release, architecture)
    unpack(packages, tree)
    root = cache_dir("userland", architecture.in_cache(release), "root")
    shutil.rmtree(root)
    _build_root(release, architecture, root)
    versions = {p.name: p.version for p in packages}
    (root / "etc/lab-versions").write_text("".join(f"{n} {versions[n]}\n" for n in _PACKAGES))
    target = _userland(release, architecture)
    with target.with_suffix(".new").open("wb") as out:
        write_console(out)
        write_tree(root, out)
    os.replace(target.with_suffix(".new"), target)


def userland_archive(release: str, architecture: GuestArchitecture = X86_64) -> Path | None:
    """Return the cpio archive of a release's userland; None where it was not fetched."""
    path = _userland(release, architecture)
    return path if path.exists() else None


def _tree_of(release: str, architecture: GuestArchitecture = X86_64) -> Path:
    return cache_dir("userland", architecture.in_cache(release), "tree")


def _python_of(tree: Path) -> str:
    """Return the name of the Python of an unpacked tree (``python3.11``)."""
    names = [path.name for path in (tree / "usr/bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", path.name)]
    if not names:
        raise LabError(f"no Python below {tree}; run `crash-hotplug-lab fetch`")
    return max(names, key=lambda name: int(name.split(".")[1]))


def _compile_python(release: str, *directories: Path) -> None:
    """Compile the Python files in some directories with the Python of a release, the one for x86_64."""
    tree = _tree_of(release)
    # hashes that nothing checks: the time stamps of sources in an initramfs mean nothing
    command = [*program_in(tree, _python_of(tree)), "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    env = {**os.environ, "PYTHONHOME": str(tree / "usr"), "PYTHONPATH": ""}
    done = subprocess.run([*command, *map(str, directories)], env=env, capture_output=True, check=False, timeout=600)
    if done.returncode not in (0, 1):  # 1: a file that is not valid Python, such as a template
        raise LabError(f"cannot compile the guest's Python files: {done.stderr.decode(errors='replace').strip()}")


def _userland(release: str, architecture: GuestArchitecture) -> Path:
    return cache_dir("userland", architecture.in_cache(release)) / "userland.cpio"


def _build_root(release: str, architecture: GuestArchitecture, root: Path) -> None:
    tree = _tree_of(release, architecture)
    libraries = _libraries_of(tree, architecture)
    target = f"usr/lib/{architecture.triplet}"
    for directory in ("usr/bin", "usr/sbin", target, "usr/lib64", "etc", "tmp", "run", "proc", "sys"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        (root / link).symlink_to(f"usr/{link}")
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")
    python = _python_of(tree)
    shutil.copy2(libraries.pop(os.path.basename(architecture.dynamic_loader)), root / architecture.dynamic_loader)
    for name in ("busybox", "kexec", python):
        found = find_program(tree, name)
        shutil.copy2(found, root / "usr/bin" / name)
        if name != "busybox":
            _copy_libraries(found, libraries, root / target)
    (root / "usr/bin/python3").symlink_to(python)
    stdlib = root / "usr/lib" / python
    shutil.copytree(
        tree / "usr/lib" / python,
        stdlib,
        ignore=lambda _, names: _LEFT_OUT.intersection(names),
        ignore_dangling_symlinks=True,
    )
    for extension in (stdlib / "lib-dynload").glob("*.so"):
        _copy_libraries(extension, libraries, root / target)
    _compile_python(release, stdlib)


def _libraries_of(tree: Path, architecture: GuestArchitecture) -> dict[str, Path]:
    """Return the libraries of an unpacked tree by name, the dynamic loader among them."""
    directories = [tree / directory / architecture.triplet for directory in ("lib", "usr/lib")]
    return {path.name: path for directory in directories for path in directory.glob("*.so*")}


def _copy_libraries(program: Path, libraries: dict[str, Path], target: Path) -> None:
    """Copy the libraries that a program needs, and those that they need."""
    for name in _needed(program):
        if name in libraries and not (target / name).exists():
            shutil.copy2(libraries[name], target / name)
            _copy_libraries(libraries[name], libraries, target)


def _needed(program: Path) -> list[str]:
    """Return the names of the libraries that an ELF file needs itself (DT_NEEDED)."""
    with program.open("rb") as file:
        sections = [s for s in ELFFile(file).iter_sections() if isinstance(s, DynamicSection)]
        return [tag.needed for section in sections for tag in section.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]


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
