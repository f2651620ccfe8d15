# SPDX-License-Identifier: MIT
"""The table of layouts of struct kimage, compared with the BTF in the images of the lab's kernels."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash_hotplug.core.btf import struct_members
from crash_hotplug.core.image import KNOWN_LAYOUTS, KimageLayout, layout_from_members
from crash_hotplug_lab.qemu import kernels
from crash_hotplug_lab.qemu.guest_architecture import X86_64

_BTF_START = struct.pack("<HBBI", 0xEB9F, 1, 0, 24)
_TOOLS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}


def vmlinux_of(vmlinuz: Path) -> bytes:
    """Decompress the payload of a bzImage (Documentation/arch/x86/boot.rst)."""
    image = vmlinuz.read_bytes()
    setup = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[setup + offset : setup + offset + length]
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompress(payload, wbits=31)
    payload = payload[:-4]  # the decompressed size
    if payload.startswith(b"\xfd7zXZ"):
        return lzma.decompress(payload)
    tool = _TOOLS.get(payload[:4])
    if tool is None or shutil.which(tool) is None:
        pytest.skip(f"{vmlinuz.name} cannot be decompressed ({tool or 'the tool for it'} is missing)")
    return subprocess.run([tool, "-d", "-c"], input=payload, stdout=subprocess.PIPE, check=True).stdout


def all_btf(vmlinux: bytes) -> Iterator[bytes]:
    """Find what looks like BTF."""
    at = vmlinux.find(_BTF_START)
    while at >= 0:
        types_at, types, strings_at, strings = struct.unpack_from("<IIII", vmlinux, at + len(_BTF_START))
        if types_at == 0 and strings_at == types:
            yield vmlinux[at : at + 24 + types + strings]
        at = vmlinux.find(_BTF_START, at + 1)


@pytest.mark.parametrize("key", X86_64.kernels)
def test_table_of_layouts_has_that_of_each_fetched_kernel(key: str) -> None:
    kernel = kernels.ready(key)
    if kernel is None:
        pytest.skip(f"kernel {key} is not fetched")
    found = [struct_members(btf, "kimage", KimageLayout._fields) for btf in all_btf(vmlinux_of(kernel.vmlinuz))]
    members = next((members for members in found if members is not None), None)
    if members is None:
        pytest.skip(f"kernel {kernel.release} has no BTF")
    assert layout_from_members(members) == KNOWN_LAYOUTS["segment_cma" in members]
