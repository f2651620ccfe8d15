"""Scenarios for the model and for QEMU: their format and their reader."""
