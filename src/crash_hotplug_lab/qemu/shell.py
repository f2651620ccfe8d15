"""A guest with a shell on the terminal, to look around in."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from crash_hotplug_lab.qemu import initramfs
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.machine import Machine

HELLO = """\
Kernel {release}.  `kexec -p -s /boot/vmlinuz --initrd=/boot/capture.img --reuse-cmdline` loads a crash image,
`python3 -m crash_hotplug status` judges it, `poweroff -f` ends the guest; so does Ctrl-a x.
"""
"""What to tell the person first; ``release`` is the kernel's."""


def run(kernel: Kernel) -> int:
    """Boot a guest whose console is this terminal; return QEMU's exit code when it has ended."""
    with tempfile.TemporaryDirectory(prefix="crash-hotplug-") as scratch:
        directory = Path(scratch)
        machine = Machine(kernel, initramfs.build(kernel, directory), directory)
        machine.make_disk()
        return subprocess.run(machine.command(shell=True), check=False).returncode
