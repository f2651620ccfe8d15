"""Scenarios, which the model and QEMU both run: their format and their reader."""
