# SPDX-License-Identifier: MIT
"""Tests of crash-hotplug on a model of the whole system and on real kernels under QEMU, and benchmarks."""
