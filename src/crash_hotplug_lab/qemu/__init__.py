# SPDX-License-Identifier: MIT
"""Real kernels under QEMU: hot-plug through QMP, a panic, and the audit of the dump."""
