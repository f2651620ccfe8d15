# SPDX-License-Identifier: MIT
"""Builds the kernels that no package has: arm64 kernels with kexec_file_load, which Debian's do not have.

The source is Debian's, and so are compiler and tools: packages unpacked into one tree of the cache.  The build runs in
it by chroot(2), in a user namespace.  No root is needed and nothing of the host takes part.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable

from crash_hotplug_lab.qemu import kernels
from crash_hotplug_lab.qemu.debian import Archive, cache_dir, unpack
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.guest_architecture import ARM64, Source
from crash_hotplug_lab.qemu.host_tools import ToolSet
from crash_hotplug_lab.qemu.kernels import Kernel

_TOOLS = ToolSet(
    "trixie-kernel-build",
    (
        "gcc-14-aarch64-linux-gnu", "gcc", "make", "flex", "bison", "bc", "m4", "libssl-dev", "libelf-dev", "perl",
        "dash", "coreutils", "sed", "grep", "findutils", "mawk", "diffutils", "tar", "xz-utils", "gzip",
    ),
)  # fmt: skip
_LINKS = {"usr/bin/awk": "mawk", "usr/bin/aarch64-linux-gnu-gcc": "aarch64-linux-gnu-gcc-14"}
"""Links that the packages would make when they are installed."""
_MERGED = ("bin", "sbin", "lib", "lib64")
"""Directories that are links into usr."""
_FRAGMENT = Path(__file__).with_name("arm64.config")
_LIMIT = 7200
_CHROOT = """
for directory in dev proc; do mount --rbind /$directory "$1/$directory" || exit; done
exec chroot "$1" /bin/sh -ec "$2"
"""
_ENVIRONMENT = """
export PATH=/usr/bin:/usr/sbin ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-
export KBUILD_BUILD_USER=lab KBUILD_BUILD_HOST=lab KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970'
"""
_CONFIGURE = """
mkdir -p /build/out
tar -xJf /usr/src/linux-source-{series}.tar.xz -C /build
make -C /build/linux-source-{series} O=/build/out KCONFIG_ALLCONFIG=/build/fragment allnoconfig
"""
_COMPILE = "make -C /build/out -j{jobs} Image"


def build(key: str, say: Callable[[str], None]) -> Kernel:
    """Build a kernel and put it into the cache, where it is found from then on.

    :param key: a key of ARM64.kernels whose source says that the lab builds it
    :raise LabError: the key is another one, a package cannot be had, or the build fails
    """
    source = ARM64.kernels.get(key)
    if source is None or not source.is_built:
        known = ", ".join(key for key, source in ARM64.kernels.items() if source.is_built)
        raise LabError(f"the lab does not build a kernel {key}; it builds {known}")
    if not _TOOLS.ready:
        say("fetching a compiler and its tools")
        _fetch_tools()
    say(f"fetching the source of {source.series}")
    archive = Archive(source.release)
    archive.update()
    (package,) = archive.download(f"linux-source-{source.series}", closure=False)
    unpack([package], _TOOLS.tree)
    say(f"building kernel {ARM64.kernel_name(key)} (10 minutes on two processors)")
    image = _compile(key, source)
    return _keep(key, package.version, image, source.release)


def missing_options(fragment: str, configuration: str) -> list[str]:
    """Return the lines of a fragment that a configuration does not have, such as those with unmet dependencies."""
    there = set(configuration.splitlines())
    return [line for line in fragment.splitlines() if line.startswith("CONFIG_") and line not in there]


def _fetch_tools() -> None:
    tree = _TOOLS.tree
    for name in ("dev", "proc", "tmp"):
        (tree / name).mkdir(exist_ok=True)
    for name in _MERGED:
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (tree / name).is_symlink():
            (tree / name).symlink_to(f"usr/{name}")
    _TOOLS.fetch()
    for link, target in _LINKS.items():
        if not (tree / link).is_symlink():
            (tree / link).symlink_to(target)


def _compile(key: str, source: Source) -> bytes:
    work = _TOOLS.tree / "build"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    lines = (*source.options, f'CONFIG_LOCALVERSION="-{key}"', "")
    fragment = _FRAGMENT.read_text() + "\n".join(lines)
    (work / "fragment").write_text(fragment)
    log = cache_dir("kernels", ARM64.in_cache(key)) / "build.log"
    log.unlink(missing_ok=True)
    _run_in_tree(_CONFIGURE.format(series=source.series), log)
    missing = missing_options(fragment, (work / "out/.config").read_text())
    if missing:
        raise LabError(f"the configuration of kernel {key} does not take {', '.join(missing)}")
    _run_in_tree(_COMPILE.format(jobs=os.cpu_count() or 1), log)
    image = (work / "out/arch/arm64/boot/Image").read_bytes()
    shutil.rmtree(work)
    return image


def _run_in_tree(script: str, log: Path) -> None:
    """Run a shell script with the tree of the tools as its root; its output goes to the end of a file."""
    arguments = ["sh", str(_TOOLS.tree), _ENVIRONMENT + script]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _CHROOT, *arguments]
    with log.open("ab") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False, timeout=_LIMIT)
    if done.returncode:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise LabError(f"the kernel cannot be built: {said[-1] if said else 'no output'} ({log})")


def _keep(key: str, version: str, image: bytes, userland: str) -> Kernel:
    release = ARM64.release_of(image)
    if release is None:
        raise LabError(f"the build of kernel {key} made no kernel image")
    tree = cache_dir("kernels", ARM64.in_cache(key), version)
    vmlinuz, modules = tree / f"boot/vmlinuz-{release}", tree / f"lib/modules/{release}"
    modules.mkdir(parents=True, exist_ok=True)  # empty: everything is built in
    vmlinuz.parent.mkdir(exist_ok=True)
    vmlinuz.write_bytes(image)
    kernel = Kernel(key, version, release, vmlinuz, modules, userland, ARM64.name)
    kernels.record(kernel)
    return kernel
