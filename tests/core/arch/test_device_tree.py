# SPDX-License-Identifier: MIT
"""The device tree of a capture kernel: captured ones, and bytes that are none."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.arch.architecture import RamTold
from crash_hotplug.core.arch.device_tree import DeviceTree, find_device_tree, parse_chosen
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import Kimage, Segment
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.ranges import Range, RangeList
from tests.trees import ARM64_NAMES, arm64_tree

PHYS = {"arm64-6.1-c": 0x67BB_3000, "arm64-6.12-c": 0x6547_F000, "arm64-6.12f-s": 0x7BE0_0000}
HEADER = {"arm64-6.1-c": 0x75FF_F000, "arm64-6.12-c": 0x735F_F000, "arm64-6.12f-s": 0x7BFF_0000}
SIZE = {"arm64-6.1-c": 0x400, "arm64-6.12-c": 0x400, "arm64-6.12f-s": 0x1000}
PLACE = Range(0x7000_0000, 0x7008_0000)


def device_tree(name: str = "arm64-6.12-c") -> DeviceTree:
    return DeviceTree((arm64_tree(name, 0) / "crash-image" / "dtb").read_bytes(), PHYS[name])


@pytest.mark.parametrize("name", ARM64_NAMES)
def test_device_tree_tells_command_line_header_ram_and_loader(name: str) -> None:
    tree = device_tree(name)
    assert tree.cmdline == (arm64_tree(name, 0) / "crash-image" / "cmdline").read_text().strip()
    assert tree.elfcorehdr_phys == HEADER[name]
    assert tree.elfcorehdr_room(HEADER[name], 0x1000, []) == SIZE[name]
    assert tree.ram.size == (256 << 20) - SIZE[name]
    assert all(
        tree.ram.union([(HEADER[name], HEADER[name] + SIZE[name])]).covers(RangeList([r])) for r in tree.needed_ram
    )
    assert tree.loader is (Loader.KERNEL if name.endswith("-s") else Loader.KEXEC_TOOLS)
    assert tree.why_elfcorehdr_not_found(HEADER[name], 680) is None


def test_room_at_another_address_is_not_known() -> None:
    assert device_tree().elfcorehdr_room(HEADER["arm64-6.12-c"] + 0x1000, 0x1000, []) is None


@pytest.mark.parametrize(
    ("phys", "size", "why"),
    [
        (0x735F_E000, 680, "look for its elfcorehdr at 0x735ff000, but the image has it at 0x735fe000"),
        (0x735F_F000, 0x401, "gives its elfcorehdr 1024 bytes, but the header has 1025"),
        (0x735F_F000, 0x400, None),
        (None, 680, None),
    ],
)
def test_header_that_the_device_tree_does_not_name_is_not_found(phys: int | None, size: int, why: str | None) -> None:
    found = device_tree().why_elfcorehdr_not_found(phys, size)
    assert (found is None) if why is None else (why in str(found))


def renamed(old: bytes, new: bytes) -> DeviceTree:
    tree = device_tree()
    blob = tree.blob or b""
    assert blob.count(old) == 1
    return tree._replace(blob=blob.replace(old, new.ljust(len(old), b"\0")))


def test_device_tree_without_linux_elfcorehdr_names_no_header() -> None:
    tree = renamed(b"linux,elfcorehdr\0", b"linux,elfcorehxx\0")
    assert "has no linux,elfcorehdr" in str(tree.why_elfcorehdr_not_found(0x735F_F000, 680))
    assert "was not found" in str(tree.why_cannot_move())
    with pytest.raises(CannotTellError, match="was not found"):
        tree.with_elfcorehdr_at(tree.blob or b"", tree.phys or 0, PLACE)


def with_properties(*names: bytes) -> DeviceTree:
    """Return a tree in which the properties with 16 bytes of value have these names; their values are 1, 2, ..."""
    strings = b"#size-cells\0#address-cells\0linux,elfcorehdr\0linux,usable-memory-range\0linux,dmcryptkeys\0"
    properties = b"".join(
        struct.pack(">IIIQQ", 3, 16, strings.index(name), 0x7000_0000 + (number << 20), 0x1000)
        for number, name in enumerate(names)
    )
    root = b"".join(struct.pack(">IIII", 3, 4, at, 2) for at in (0, 12))
    body = (
        struct.pack(">II", 1, 0) + root + struct.pack(">I8s", 1, b"chosen") + properties + struct.pack(">III", 2, 2, 9)
    )
    header = struct.pack(">10I", 0xD00DFEED, 56 + len(body + strings), 56, 56 + len(body), 40, 17, 16, 0, 0, 0)
    return DeviceTree(header + bytes(16) + body + strings, 0x1000)


def test_luks_keys_are_those_that_the_kernel_names() -> None:
    assert device_tree().luks_keys is None
    assert with_properties(b"linux,dmcryptkeys").luks_keys == "linux,dmcryptkeys"


def test_first_of_two_properties_counts() -> None:
    """fdt_getprop() of libfdt returns the first one."""
    tree = with_properties(b"linux,elfcorehdr", b"linux,elfcorehdr", b"linux,usable-memory-range")
    assert tree.elfcorehdr_phys == 0x7000_0000
    segment = tree.blob or b""
    moved = tree._replace(blob=tree.with_elfcorehdr_at(segment, tree.phys or 0, PLACE))
    assert moved.elfcorehdr_phys == PLACE.start


def test_first_of_two_chosen_nodes_counts() -> None:
    tree = with_properties(b"linux,elfcorehdr")
    blob = tree.blob or b""
    second = struct.pack(">I8s", 1, b"chosen") + struct.pack(">IIIQQ", 3, 16, 44, 0x6000_0000, 0x1000)
    end = blob.index(struct.pack(">III", 2, 2, 9)) + 4
    longer = bytearray(blob[:end] + second + struct.pack(">I", 2) + blob[end:])
    for at in (4, 12):  # totalsize, offset of the strings
        longer[at : at + 4] = (int.from_bytes(longer[at : at + 4], "big") + len(second) + 4).to_bytes(4, "big")
    found = DeviceTree(bytes(longer), 0x1000)
    assert (found.elfcorehdr_phys, found.ram_told) == (0x7000_0000, RamTold.UNREADABLE)


@pytest.mark.parametrize(("header", "ram", "why"), [(0, 1, "could not read it"), (0, 0, None)])
def test_header_outside_of_the_capture_kernels_ram_is_not_found(header: int, ram: int, why: str | None) -> None:
    names = [b"linux,elfcorehdr", b"linux,usable-memory-range"]
    tree = with_properties(*names)
    blob = (tree.blob or b"").replace(struct.pack(">Q", 0x7010_0000), struct.pack(">Q", 0x7000_0000 + (ram << 20)))
    found = DeviceTree(blob, 0x1000).why_elfcorehdr_not_found(0x7000_0000 + (header << 20), 680)
    assert (found is None) if why is None else (why in str(found))


def test_elfcorehdr_argument_beside_the_property_is_refused() -> None:
    tree = renamed(b"acpi_no_memhotplug", b"elfcorehdr=1024K")
    assert "has elfcorehdr=, beside" in str(tree.why_elfcorehdr_not_found(0x735F_F000, 680))


@pytest.mark.parametrize("name", ARM64_NAMES)
def test_moved_header_has_its_place_in_the_property_and_its_reservation(name: str) -> None:
    tree = device_tree(name)
    segment = (tree.blob or b"").ljust(4096, b"\xaa")
    changed = tree.with_elfcorehdr_at(segment, tree.phys or 0, PLACE)
    moved = tree._replace(blob=changed[: len(tree.blob or b"")])
    assert moved.elfcorehdr_phys == PLACE.start
    assert moved.elfcorehdr_room(PLACE.start, None, []) == PLACE.size
    whole = tree.ram.union([(HEADER[name], HEADER[name] + SIZE[name])])
    assert (moved.cmdline, moved.ram, len(changed)) == (tree.cmdline, whole.exclude(RangeList([PLACE])), len(segment))
    differing = [at for at in range(len(segment)) if changed[at] != segment[at]]
    # The kernel's loader reserves the header's place (/memreserve/) as well.
    assert (struct.pack(">Q", HEADER[name]) in changed, len(differing) <= 16 * (2 if name.endswith("-s") else 1)) == (
        False,
        True,
    )


def test_device_tree_that_changed_since_it_was_read_is_not_changed() -> None:
    tree = device_tree()
    with pytest.raises(CannotTellError, match="does not read the same twice"):
        tree.with_elfcorehdr_at(bytes(4096), tree.phys or 0, PLACE)


@pytest.mark.parametrize("cut", range(0, 676, 13))
def test_truncated_device_tree_has_no_chosen_node(cut: int) -> None:
    assert parse_chosen((device_tree().blob or b"")[:cut]) is None


@given(at=st.integers(0, 675), value=st.integers(0, 255))
def test_mutated_device_tree_gives_an_answer(at: int, value: int) -> None:
    blob = bytearray(device_tree().blob or b"")
    blob[at] = value
    tree = DeviceTree(bytes(blob), 0x1000)
    tree.why_elfcorehdr_not_found(0x735F_F000, 680)
    assert tree.ram.size >= 0
    assert tree.cmdline is None or tree.loader is not None
    if tree.why_cannot_move() is None:
        assert len(tree.with_elfcorehdr_at(bytes(blob), 0x1000, PLACE)) == len(blob)


@given(blob=st.binary(max_size=400))
def test_any_bytes_give_an_answer(blob: bytes) -> None:
    assert parse_chosen(b"\xd0\x0d\xfe\xed" + blob) is None or blob


def test_device_tree_is_found_among_the_segments() -> None:
    blob = device_tree().blob or b""
    memory = {0x1000: b"\x7fELF".ljust(4096, b"\0"), 0x2000: blob.ljust(4096, b"\0"), 0x3000: bytes(4096)}
    kimage = Kimage(0x3000, tuple(Segment(phys, 4096, 4096) for phys in memory))
    assert find_device_tree(kimage, lambda phys, length: memory[phys][:length]) == DeviceTree(blob, 0x2000)
    memory[0x3000] = memory[0x2000]
    with pytest.raises(CannotTellError, match="more than one device tree"):
        find_device_tree(kimage, lambda phys, length: memory[phys][:length])
    memory[0x2000] = memory[0x3000] = bytes(4096)
    assert find_device_tree(kimage, lambda phys, length: memory[phys][:length]) is None


def test_name_that_no_zero_ends_makes_no_device_tree() -> None:
    blob = device_tree().blob or b""
    assert parse_chosen(blob) is not None
    assert blob.endswith(b"linux,initrd-end\0")
    assert parse_chosen(blob[:-1] + b"x") is None


def test_device_tree_that_claims_more_bytes_than_there_are_is_none() -> None:
    """All that is read of it is there."""
    blob = bytearray(device_tree().blob or b"")
    blob[4:8] = (len(blob) + 4).to_bytes(4, "big")
    assert parse_chosen(bytes(blob)) is None
    assert parse_chosen(bytes(blob) + bytes(4)) is not None
