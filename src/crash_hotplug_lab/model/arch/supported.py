# SPDX-License-Identifier: MIT
"""The architectures of model machines."""

from __future__ import annotations

from crash_hotplug_lab.model.arch.arm64 import ARM64
from crash_hotplug_lab.model.arch.x86_64 import X86_64

ARCHITECTURES = {arch.name: arch for arch in (X86_64, ARM64)}
"""The architectures by name; the first is the default."""
