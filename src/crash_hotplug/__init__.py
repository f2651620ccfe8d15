# SPDX-License-Identifier: MIT
"""crash-hotplug: keeps the loaded kdump crash image accurate while CPUs and memory come and go."""

__version__ = "0.1.0"
