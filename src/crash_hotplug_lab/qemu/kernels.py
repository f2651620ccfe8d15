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

from crash_hotplug_lab.qemu.debian import Archive, cache_dir, unpack
from crash_hotplug_lab.qemu.errors import LabError

OWN = "own"
"""The key of a kernel given with ``--kernel VMLINUZ --modules DIR``."""


@dataclass(frozen=True)
class Source:
    """The Debian releases of a known kernel and of the guest's userland."""

    release: str
    """Debian release of the guest's userland."""
    suite: str = ""
    """Suite of the kernel, if it is another one."""


KNOWN: dict[str, Source] = {
    "5.10": Source("bullseye"),
    "6.1": Source("bookworm"),
    "6.12": Source("trixie"),
    "6.18": Source("trixie", "trixie-backports"),
    "7.2": Source("sid"),
    "7.3": Source("trixie", "trixie-backports"),
}
"""Each key is a series; the newest version in the suite is fetched, recorded and reported."""


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

    @property
    def series(self) -> tuple[int, int]:
        """Major and minor version."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found.group(1)), int(found.group(2))) if found else (0, 0)

    @property
    def has_crash_hotplug(self) -> bool:
        """Whether the kernel keeps its own elfcorehdr up to date (CONFIG_CRASH_HOTPLUG, Linux 6.6)."""
        return self.series >= (6, 6)


def fetch(key: str) -> Kernel:
    """Resolve, download and unpack a known kernel.

    :raise LabError: the key is not known, or its packages cannot be had
    """
    source = _source(key)
    archive = Archive(source.release, source.suite)
    archive.update()
    image = _newest(archive, key)
    names, queue = [], [image]
    while queue:  # the image, and from 7.x on linux-binary-* and linux-modules-* below it
        name = queue.pop()
        names.append(name)
        parts = ("linux-image-", "linux-binary-", "linux-modules-")
        queue += [d for d in archive.depends(name) if d.startswith(parts) and d not in names]
    packages = archive.download(*names, closure=False)
    version = archive.candidate(image)
    tree = cache_dir("kernels", key, version)
    unpack(packages, tree)
    kernel = _describe(key, version, tree, source.release)
    record = {name: str(value) for name, value in asdict(kernel).items()}
    _record(key).write_text(json.dumps(record, indent=1) + "\n")
    return kernel


def ready(key: str) -> Kernel | None:
    """Return a known kernel that was fetched before, or None."""
    _source(key)
    try:
        record: dict[str, str] = json.loads(_record(key).read_text())
        vmlinuz, modules = Path(record.pop("vmlinuz")), Path(record.pop("modules"))
        kernel = Kernel(vmlinuz=vmlinuz, modules=modules, **record)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kernel if kernel.vmlinuz.exists() else None


def own(vmlinuz: Path, modules: Path, userland: str = "trixie") -> Kernel:
    """Return a kernel given as a file, its release read from the bzImage header (Documentation/arch/x86/boot.rst).

    :raise LabError: the file is not an x86 bzImage, or there is no directory of modules
    """
    try:
        with vmlinuz.open("rb") as file:
            head = file.read(0x10000)
    except OSError as error:
        raise LabError(f"cannot read {vmlinuz}: {error.strerror}") from None
    if head[0x202:0x206] != b"HdrS":
        raise LabError(f"{vmlinuz} is not an x86 kernel image (bzImage)")
    if not modules.is_dir():
        raise LabError(f"{modules} is not a directory of kernel modules")
    text = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    release = head[text : text + 256].split(b"\0")[0].split(b" ")[0].decode(errors="replace")
    return Kernel(OWN, release, release, vmlinuz.resolve(), modules.resolve(), userland)


def _source(key: str) -> Source:
    if key not in KNOWN:
        raise LabError(f"no kernel is known as {key}; known are {', '.join(KNOWN)}, or give a file with --modules")
    return KNOWN[key]


def _newest(archive: Archive, key: str) -> str:
    """Return the newest image package of a series, such as linux-image-6.1.0-50-cloud-amd64 for 6.1."""
    names = [n for n in archive.names(f"linux-image-{key}.") if n.endswith("-cloud-amd64")]
    if not names:
        raise LabError(f"Debian {archive.name} holds no {key} kernel any more")
    return max(names, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def _record(key: str) -> Path:
    return cache_dir("kernels", key) / "kernel.json"


def _describe(key: str, version: str, tree: Path, userland: str) -> Kernel:
    for modules in sorted(tree.glob("usr/lib/modules/*")) + sorted(tree.glob("lib/modules/*")):
        release = modules.name
        for vmlinuz in (tree / "boot" / f"vmlinuz-{release}", modules / "vmlinuz"):
            if vmlinuz.is_file():
                return Kernel(key, version, release, vmlinuz, modules, userland)
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
