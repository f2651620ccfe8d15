"""The running kernel's build configuration, where the distribution installs it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.doctor.rooted_path import read_config
from crash_hotplug.linux.sysroot import Sysroot


@dataclass(frozen=True)
class KernelConfig:
    """A configuration file that was found."""

    path: str
    text: str

    def has(self, option: str) -> bool:
        """Whether an option such as ``CONFIG_KEXEC`` is built in."""
        return re.search(rf"^{option}=y$", self.text, re.MULTILINE) is not None


def read_kernel_config(sysroot: Sysroot, release: str | None) -> KernelConfig | None:
    """Return the configuration of the kernel with this release; None where it is not to be had.

    :raise InputError: the file is not what it should be
    """
    if release is None or not re.fullmatch(r"[\w.+~-]{1,128}", release):
        return None
    for path in (
        f"/boot/config-{release}",
        f"/usr/lib/modules/{release}/config",
        f"/lib/modules/{release}/config",
    ):
        try:
            text = read_config(sysroot, path)
        except CannotTellError:
            continue
        if text:
            return KernelConfig(path, text)
    return None
