# SPDX-License-Identifier: MIT
"""The supported architectures."""

from __future__ import annotations

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.arch.arm64 import ARM64
from crash_hotplug.core.arch.x86_64 import X86_64

SUPPORTED = {architecture.machine_number: architecture for architecture in (X86_64, ARM64)}
"""The supported architectures by ``e_machine``."""
NAMES = ", ".join(architecture.name for architecture in SUPPORTED.values())
"""Their names, for messages."""
_OTHER_MACHINES = ("alpha", "arm", "i386", "i486", "i586", "i686", "ia64", "loongarch", "m68k", "mips", "parisc", "ppc",
                   "riscv", "s390", "sh4", "sparc")  # fmt: skip
"""How ``uname -m`` begins on Linux's other architectures."""
_OTHER_NAMES = {3: "i386", 8: "MIPS", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm", 243: "riscv", 258: "loongarch"}


def architecture_of(machine_number: int) -> Architecture | None:
    """Return the architecture with this ``e_machine``, or None where it is not supported."""
    return SUPPORTED.get(machine_number)


def architecture_named(name: str) -> Architecture | None:
    """Return the architecture for which ``uname -m`` prints *name*, or None where it is not supported."""
    return next((architecture for architecture in SUPPORTED.values() if architecture.name == name), None)


def is_other_machine(name: str) -> bool:
    """Whether ``uname -m`` prints *name* on an architecture that is not supported."""
    return name.startswith(_OTHER_MACHINES)


def machine_name(machine_number: int) -> str:
    """Return a name for *machine_number* that a person knows, for messages."""
    known = SUPPORTED.get(machine_number)
    name = known.name if known else _OTHER_NAMES.get(machine_number, "unknown")
    return f"{name} (e_machine {machine_number})"
