# SPDX-License-Identifier: MIT
"""Scenarios for the model and for QEMU: their format and their reader."""
