# SPDX-License-Identifier: MIT
"""Builds the kernels that no package has: arm64 kernels with kexec_file_load, and kernels with a patch.

The source is Debian's, and so are compiler and tools: packages unpacked into one tree of the cache.  The build runs in
it by chroot(2), in a user namespace.  No root is needed and nothing of the host takes part.  ccache keeps what two
kernels of one source have in common.
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
from crash_hotplug_lab.qemu.guest_architecture import ARCHITECTURES, GuestArchitecture, Source
from crash_hotplug_lab.qemu.host_tools import ToolSet
from crash_hotplug_lab.qemu.kernels import Kernel

_TOOLS = ToolSet(
    "trixie-kernel-compilers",
    (
        *{architecture.compiler for architecture in ARCHITECTURES.values()}, "ccache", "make", "flex", "bison", "bc",
        "m4", "patch", "libssl-dev", "libelf-dev", "zlib1g-dev", "dwarves", "perl", "python3", "dash", "coreutils",
        "sed", "grep", "findutils", "mawk", "diffutils", "tar", "xz-utils", "gzip",
    ),
)  # fmt: skip
_LINKS = {"usr/bin/awk": "mawk"}
"""Links that the packages would make when they are installed."""
_MERGED = ("bin", "sbin", "lib", "lib64")
"""Directories that are links into usr."""
_HERE = Path(__file__).parent
_LIMIT = 7200
_CHROOT = """
for directory in dev proc; do mount --rbind /$directory "$1/$directory" || exit; done
exec chroot "$1" /bin/sh -ec "$2"
"""
_ENVIRONMENT = """
export PATH=/usr/bin:/usr/sbin ARCH={arch} CROSS_COMPILE={cross_compile} CCACHE_DIR=/ccache
export KBUILD_BUILD_USER=lab KBUILD_BUILD_HOST=lab KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970'
"""
_CONFIGURE = """
mkdir -p /build/out
tar -xJf /usr/src/linux-source-{series}.tar.xz -C /build
cd /build/linux-source-{series}
for patch in {patches}; do patch -p1 < /build/$patch; done
make O=/build/out KCONFIG_ALLCONFIG=/build/fragment allnoconfig
"""
_COMPILE = 'make -C /build/out -j{jobs} CC="ccache ${{CROSS_COMPILE}}gcc" {target}'


def built_kernels() -> dict[str, GuestArchitecture]:
    """Return the keys of the kernels that the lab builds, each with its architecture; no two have the same key."""
    return {
        key: architecture
        for architecture in ARCHITECTURES.values()
        for key, source in architecture.kernels.items()
        if source.is_built
    }


def build(key: str, say: Callable[[str], None]) -> Kernel:
    """Build a kernel and put it into the cache, where it is found from then on.

    :param key: one of :func:`built_kernels`
    :raise LabError: the key is another one, a package cannot be had, or the build fails
    """
    known = built_kernels()
    if key not in known:
        raise LabError(f"the lab does not build a kernel {key}; it builds {', '.join(known)}")
    architecture = known[key]
    source = architecture.kernels[key]
    if not _TOOLS.ready:
        say("fetching a compiler and its tools")
        _fetch_tools()
    say(f"fetching the source of {source.series}")
    archive = Archive(source.release, source.suite)
    archive.update()
    (package,) = archive.download(f"linux-source-{source.series}", closure=False)
    unpack([package], _TOOLS.tree)
    say(f"building kernel {architecture.kernel_name(key)} (10 minutes on two processors)")
    image = _compile(key, source, architecture)
    return _keep(key, package.version, image, source.release, architecture)


def configuration(source: Source, architecture: GuestArchitecture, key: str) -> str:
    """Return the options that a kernel is built with; all others are off."""
    files = (_HERE / "kernel_config" / f"{name}.config" for name in ("common", architecture.name))
    lines = (*source.options, f'CONFIG_LOCALVERSION="-{key}"')
    return "".join(file.read_text() for file in files) + "".join(f"{line}\n" for line in lines)


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


def _compile(key: str, source: Source, architecture: GuestArchitecture) -> bytes:
    work = _TOOLS.tree / "build"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    fragment = configuration(source, architecture, key)
    (work / "fragment").write_text(fragment)
    for patch in source.patches:
        shutil.copy(_HERE / "patches" / patch, work / patch)
    log = cache_dir("kernels", architecture.in_cache(key)) / "build.log"
    log.unlink(missing_ok=True)
    _run_in_tree(_CONFIGURE.format(series=source.series, patches=" ".join(source.patches)), architecture, log)
    missing = missing_options(fragment, (work / "out/.config").read_text())
    if missing:
        raise LabError(f"the configuration of kernel {key} does not take {', '.join(missing)}")
    image = work / "out" / architecture.built_image
    _run_in_tree(_COMPILE.format(jobs=os.cpu_count() or 1, target=image.name), architecture, log)
    content = image.read_bytes()
    shutil.rmtree(work)
    return content


def _run_in_tree(script: str, architecture: GuestArchitecture, log: Path) -> None:
    """Run a shell script with the tree of the tools as its root; its output goes to the end of a file."""
    environment = _ENVIRONMENT.format(arch=architecture.name, cross_compile=architecture.cross_compile)
    arguments = ["sh", str(_TOOLS.tree), environment + script]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _CHROOT, *arguments]
    with log.open("ab") as file:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False, timeout=_LIMIT)
    if done.returncode:
        raise LabError(f"the kernel cannot be built: {why_failed(log.read_text(errors='replace'))} ({log})")


def why_failed(output: str) -> str:
    """Return the line before the first at which make gave up, without make's own words; else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    given_up = next((at for at, line in enumerate(lines) if "***" in line), len(lines))
    return lines[given_up - 1] if lines and given_up else "no output"


def _keep(key: str, version: str, image: bytes, userland: str, architecture: GuestArchitecture) -> Kernel:
    release = architecture.release_of(image)
    if release is None:
        raise LabError(f"the build of kernel {key} made no kernel image")
    tree = cache_dir("kernels", architecture.in_cache(key), version)
    vmlinuz, modules = tree / f"boot/vmlinuz-{release}", tree / f"lib/modules/{release}"
    modules.mkdir(parents=True, exist_ok=True)  # empty: everything is built in
    vmlinuz.parent.mkdir(exist_ok=True)
    vmlinuz.write_bytes(image)
    kernel = Kernel(key, version, release, vmlinuz, modules, userland, architecture.name)
    kernels.record(kernel)
    return kernel
