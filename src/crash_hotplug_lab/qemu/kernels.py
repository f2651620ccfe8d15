# SPDX-License-Identifier: MIT
"""The kernels that the lab boots, Debian's by key or a file of the user's own, and the modules that they need.

The order in which modules are loaded comes from each module's own ``.modinfo`` (``depends=virtio,virtio_ring``):
packages that were only unpacked have no ``modules.dep``, which depmod writes when they are installed.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crash_hotplug.core.machine import kernel_version
from crash_hotplug_lab.qemu.debian import Archive, cache_dir, unpack
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.guest_architecture import ARCHITECTURES, X86_64, GuestArchitecture, Source

OWN = "own"
"""The key of a kernel given with ``--kernel VMLINUZ --modules DIR``."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that is ready to boot."""

    key: str
    version: str
    """Version of the package, or the release of a kernel given as a file."""
    release: str
    """The release that ``uname -r`` prints in the guest."""
    vmlinuz: Path
    modules: Path
    """Directory that holds the ``.ko`` files, at any depth."""
    userland: str
    """Debian release of the guest's userland."""
    arch: str = X86_64.name
    """Name of its architecture."""
    kexec: Path | None = None
    """A statically linked kexec program that loads its crash images, in place of the userland's; None for that one."""

    @property
    def architecture(self) -> GuestArchitecture:
        """Its architecture."""
        return ARCHITECTURES[self.arch]

    @property
    def source(self) -> Source:
        """Where it comes from; of a kernel given as a file nothing is known."""
        return self.architecture.kernels.get(self.key, Source(self.userland))

    @property
    def name(self) -> str:
        """The kernel's name in results: ``6.1`` or ``arm64-6.1``."""
        return self.architecture.kernel_name(self.key)

    @property
    def series_key(self) -> str:
        """The series as scenarios name it; the key where that is no series."""
        return self.source.series or self.key

    @property
    def series(self) -> tuple[int, int]:
        """Major and minor version."""
        return kernel_version(self.release) or (0, 0)

    @property
    def has_crash_hotplug(self) -> bool:
        """Whether the kernel keeps its own elfcorehdr up to date (CONFIG_CRASH_HOTPLUG)."""
        since = self.architecture.crash_hotplug_since
        return self.source.has_crash_hotplug or (since is not None and self.series >= since)

    @property
    def is_built(self) -> bool:
        """Whether the lab built the kernel itself."""
        return self.source.is_built

    @property
    def unmaps_image(self) -> bool:
        """Whether the kernel unmaps a loaded crash image, so that nothing can read it."""
        return self.series < self.architecture.unmaps_image_before

    @property
    def plugs_dimms(self) -> bool:
        """Whether the kernel takes DIMMs."""
        return self.source.plugs_dimms

    @property
    def block_size(self) -> int:
        """Bytes in a memory block of a guest with less than 64 GiB."""
        return self.source.block_size or self.architecture.block_size(self.series)


def fetch(key: str, architecture: GuestArchitecture = X86_64) -> Kernel:
    """Resolve, download and unpack a known kernel.

    :raise LabError: the key is not known, or its packages cannot be had
    """
    source = _source(key, architecture)
    if source.is_built:
        raise LabError(f"no package has kernel {key}; build it with `crash-hotplug-lab kernel build {key}`")
    archive = Archive(source.release, source.suite, architecture.debian)
    archive.update()
    image = _newest(archive, source.series or key, source.flavour or f"cloud-{architecture.debian}")
    names, queue = [], [image]
    while queue:  # the image, and from 7.x on linux-binary-* and linux-modules-* below it
        name = queue.pop()
        names.append(name)
        parts = ("linux-image-", "linux-binary-", "linux-modules-")
        queue += [d for d in archive.depends(name) if d.startswith(parts) and d not in names]
    packages = archive.download(*names, closure=False)
    version = archive.candidate(image)
    tree = cache_dir("kernels", architecture.in_cache(key), version)
    unpack(packages, tree)
    kernel = _describe(key, version, tree, source.release, architecture)
    record(kernel)
    return kernel


def record(kernel: Kernel) -> None:
    """Write where a kernel of the cache is, for :func:`ready`."""
    content = {name: str(value) for name, value in asdict(kernel).items() if value is not None}
    _record(kernel.key, kernel.architecture).write_text(json.dumps(content, indent=1) + "\n")


def ready(key: str, architecture: GuestArchitecture = X86_64) -> Kernel | None:
    """Return a known kernel that was fetched before, or None."""
    _source(key, architecture)
    try:
        content: dict[str, Any] = json.loads(_record(key, architecture).read_text())
        vmlinuz, modules = Path(content.pop("vmlinuz")), Path(content.pop("modules"))
        kernel = Kernel(vmlinuz=vmlinuz, modules=modules, **content)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kernel if kernel.vmlinuz.exists() else None


def own(vmlinuz: Path, modules: Path, userland: str = "trixie", architecture: GuestArchitecture = X86_64) -> Kernel:
    """Return a kernel given as a file, its release read from the image.

    :raise LabError: the file is not a kernel image of the architecture, or there is no directory of modules
    """
    try:
        image = vmlinuz.read_bytes()
    except OSError as error:
        raise LabError(f"cannot read {vmlinuz}: {error.strerror}") from None
    release = architecture.release_of(image)
    if release is None:
        raise LabError(f"{vmlinuz} is not an {architecture.image_name}")
    if not modules.is_dir():
        raise LabError(f"{modules} is not a directory of kernel modules")
    return Kernel(OWN, release, release, vmlinuz.resolve(), modules.resolve(), userland, architecture.name)


def _source(key: str, architecture: GuestArchitecture) -> Source:
    known = architecture.kernels
    if key not in known:
        raise LabError(f"no kernel is known as {key}; known are {', '.join(known)}, or give a file with --modules")
    return known[key]


def _newest(archive: Archive, series: str, flavour: str) -> str:
    """Return the newest image package of a series, such as linux-image-6.1.0-50-cloud-amd64 for 6.1."""
    names = [n for n in archive.names(f"linux-image-{series}.") if n.endswith(f"-{flavour}")]
    if not names:
        raise LabError(f"Debian {archive.name} holds no {series} kernel any more")
    return max(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def _record(key: str, architecture: GuestArchitecture) -> Path:
    return cache_dir("kernels", architecture.in_cache(key)) / "kernel.json"


def _describe(key: str, version: str, tree: Path, userland: str, architecture: GuestArchitecture) -> Kernel:
    for modules in sorted(tree.glob("usr/lib/modules/*")) + sorted(tree.glob("lib/modules/*")):
        release = modules.name
        for vmlinuz in (tree / "boot" / f"vmlinuz-{release}", modules / "vmlinuz"):
            if vmlinuz.is_file():
                return Kernel(key, version, release, vmlinuz, modules, userland, architecture.name)
    raise LabError(f"the packages of kernel {key} ({version}) hold no vmlinuz where it was expected")


def modules_in_load_order(modules: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Return name and uncompressed content of the wanted modules and of their dependencies, in the order of loading.

    Modules that are not below the directory are taken to be built into the kernel and are left out.

    :raise LabError: a module is compressed in a way that cannot be read here
    """
    files = {_module_name(path): path for path in modules.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in order or name not in files:
            return
        content = _read_module(files[name])
        for needed in _depends(content):
            visit(needed)
        order[name] = content

    for name in wanted:
        visit(name)
    return order


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _depends(content: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    return [name.replace("-", "_") for name in found.group(1).decode().split(",") if name] if found else []


def _read_module(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix == ".ko":
        return raw
    if path.suffix == ".xz":
        return lzma.decompress(raw)
    if path.suffix == ".gz":
        return gzip.decompress(raw)
    try:
        return subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        raise LabError(f"cannot uncompress the module {path.name}; zstd is needed for it") from None
