"""What a guest boots with: one initramfs for the tested kernel, and inside it a small one for the capture kernel."""

from __future__ import annotations

import gzip
import io
import shutil
from pathlib import Path

import crash_hotplug
from crash_hotplug_lab.qemu import cpio, hosttools, kmod, userland
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.kernels import Kernel

MODULES = ("virtio_pci", "virtio_blk")
"""What brings the vmcore to the host's disk."""
_LAB = Path(__file__).parents[1]
_GUEST = _LAB / "in_guest"
_SENT = ("in_guest", "experiments", "bench", "cli")
"""Rooms of the lab that have programs which run in a guest; the rest stays on the host."""


def build(kernel: Kernel, scratch: Path) -> Path:
    """Write the initramfs for a run of a kernel below ``scratch`` and return its path.

    It holds the userland, the kernel's modules, the kernel and the capture kernel's initrd to load, and this checkout.

    :raise LabError: when the userland was not fetched.
    """
    base = userland.archive_of(kernel.userland)
    if base is None:
        raise LabError(f"the userland of Debian {kernel.userland} was not fetched; run `crash-hotplug-lab fetch`")
    part = scratch / "initramfs"
    shutil.rmtree(part, ignore_errors=True)
    modules = kmod.load_order(kernel.modules, MODULES)
    _small(part, modules)
    tree = userland.tree_of(kernel.userland)
    busybox = Path(hosttools.in_tree(tree, "busybox")[-1])
    capture = scratch / "capture-root"
    shutil.rmtree(capture, ignore_errors=True)
    _small(capture, modules)
    (capture / "bin").mkdir()
    shutil.copy2(busybox, capture / "bin/busybox")
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
    userland.compile_python(tree, source)
    image = scratch / "initramfs.cpio"
    with image.open("wb") as out:
        with base.open("rb") as userland_archive:
            shutil.copyfileobj(userland_archive, out, 1 << 20)
        cpio.write_tree(part, out)
    shutil.rmtree(part)
    shutil.rmtree(capture)
    return image


def _small(root: Path, modules: dict[str, bytes]) -> None:
    (root / "lab/modules").mkdir(parents=True)
    shutil.copyfile(_GUEST / "init", root / "init")
    (root / "init").chmod(0o755)
    (root / "lab/modules.order").write_text("".join(f"{name}\n" for name in modules))
    for name, content in modules.items():
        (root / "lab/modules" / f"{name}.ko").write_bytes(content)


def _compressed(root: Path) -> bytes:
    archive = io.BytesIO()
    cpio.write_console(archive)
    cpio.write_tree(root, archive)
    return gzip.compress(archive.getvalue(), 9, mtime=0)
