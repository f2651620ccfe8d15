"""A machine that boots a full Debian from a disk, otherwise the lab's machine in every word of its command line."""

from __future__ import annotations

from pathlib import Path

from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.machine import Machine

SYSTEM = "/sbin/init"
CONFIGURE = "/usr/lib/crash-hotplug-lab/configure"
"""What the first boot runs instead."""
MEMORY = 1536 << 20
_CRASHKERNEL = "320M"
"""Debian's capture kernel with kdump-tools' own initrd fits into it, systemd and all."""


class DebianMachine(Machine):
    """A running QEMU with a full Debian on its disk; it ends when the guest resets, as the capture kernel does."""

    def __init__(self, kernel: Kernel, initramfs: Path, disk: Path, out: Path, init: str = SYSTEM,
                 memory: int = MEMORY) -> None:  # fmt: skip
        """Take the kernel, the small initramfs that mounts the disk, and the disk, which is written to."""
        super().__init__(kernel, initramfs, out, memory, max_memory=64 << 30)
        self.kernel = kernel
        self.dump = disk
        self._init = init

    def make_disk(self) -> None:
        """Leave the disk as it is."""

    def _append(self, shell: bool) -> str:
        # hot-added memory comes online by itself, as an administrator who hot-plugs has to set it up on Debian
        return (
            f"console=ttyS0 quiet panic=1 root=/dev/vda rw crashkernel={_CRASHKERNEL} memhp_default_state=online "
            f"init={self._init}"
        )
