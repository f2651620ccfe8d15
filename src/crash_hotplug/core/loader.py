# SPDX-License-Identifier: MIT
"""The two loaders of a crash image."""

from __future__ import annotations

from enum import Enum


class Loader(Enum):
    """The loader of an image, which determines the form of its header: see docs/elfcorehdr.md."""

    KERNEL = "kernel"
    """``kexec_file_load``, and any header after an update inside the kernel: low memory is left out."""
    KEXEC_TOOLS = "kexec-tools"
    """``kexec_load``: low memory is described by a PT_LOAD that points to the backup region."""
