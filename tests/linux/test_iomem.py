# SPDX-License-Identifier: MIT
"""/proc/iomem as the kernel writes it, masked, and broken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux.iomem import parse_iomem, read_iomem
from crash_hotplug.linux.sysroot import Sysroot

TEXT = """\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-3ffd5fff : System RAM
  01000000-01bfffff : Kernel code
  2e000000-39ffffff : Crash kernel
100000000-107ffffff : System RAM (kmem)
180000000-1ffffffff : 0000:00:05.0
  180000000-1ffffffff : virtio4
    188000000-18fffffff : System RAM (virtio_mem)
200000000-207ffffff : Persistent Memory
"""


class ChangingSysroot(Sysroot):
    """A live machine whose /proc/iomem shows one text after the other, the last one for ever."""

    texts: tuple[str, ...] = ()
    reads = 0

    @property
    def is_live(self) -> bool:
        return True

    def read_text(self, path: str, limit: int = 0) -> str | None:
        text = self.texts[min(self.reads, len(self.texts) - 1)]
        self.reads += 1
        return text


def long_iomem(blocks: int) -> str:
    return "\n".join(f"{at << 28:x}-{(at << 28) + 0xFFF_FFFF:x} : System RAM" for at in range(1, 2 * blocks, 2))


def test_ram_in_a_region_of_a_cxl_window_is_ram() -> None:
    window = """\
cd0000000-cdfffffff : CXL Window 0
  cd0000000-cdfffffff : region0
    cd0000000-cdfffffff : dax0.0
      cd0000000-cd7ffffff : System RAM (kmem)
"""
    iomem = parse_iomem(TEXT + window)
    assert iomem.ram.exclude(parse_iomem(TEXT).ram) == RangeList([(0xCD0000000, 0xCD8000000)])
    assert iomem.virtio_mem == parse_iomem(TEXT).virtio_mem


def test_iomem_of_several_pages_is_read_until_two_readings_agree() -> None:
    sysroot = ChangingSysroot()
    sysroot.texts = (long_iomem(150), long_iomem(160), long_iomem(170))
    assert len(read_iomem(sysroot).ram) == 170
    assert sysroot.reads == 4
    short = ChangingSysroot()
    short.texts = (long_iomem(10), long_iomem(20))
    assert (len(read_iomem(short).ram), short.reads) == (10, 1)


def test_iomem_that_changes_for_ever_is_cannot_tell() -> None:
    sysroot = ChangingSysroot()
    sysroot.texts = tuple(long_iomem(150 + n) for n in range(40))
    with pytest.raises(CannotTellError, match="changed again and again"):
        read_iomem(sysroot)


def test_system_ram_at_any_depth_and_of_any_kind() -> None:
    iomem = parse_iomem(TEXT)
    assert iomem.ram == RangeList(
        [(0x1000, 0x9FC00), (0x100000, 0x3FFD6000), (1 << 32, 0x1_0800_0000), (0x1_8800_0000, 0x1_9000_0000)]
    )
    assert iomem.crashkernel == RangeList([(0x2E00_0000, 0x3A00_0000)])
    assert iomem.kernel_code_phys == 0x100_0000


def test_ram_of_virtio_mem_is_known_as_such() -> None:
    assert parse_iomem(TEXT).virtio_mem == RangeList([(0x1_8800_0000, 0x1_9000_0000)])


def test_crashkernel_may_have_two_ranges() -> None:
    text = "00000000-0fffffff : System RAM\n  01000000-01ffffff : Crash kernel\n  08000000-08ffffff : Crash kernel\n"
    assert len(parse_iomem(text).crashkernel) == 2


def test_masked_addresses_are_an_error_and_not_an_empty_machine() -> None:
    masked = "00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n"
    with pytest.raises(CannotTellError, match="hides them without CAP_SYS_ADMIN; run as root"):
        parse_iomem(masked)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("garbage", "line 1, is not of the form"),
        ("00000000-00000fff : Reserved\n00002000-00001000 : System RAM", "line 2: the range ends before it starts"),
        ("00000000-00000fff : Reserved", "lists no System RAM"),
        ("", "lists no System RAM"),
        ("-1-5 : System RAM", "line 1, is not"),
        ("0-fffffffffffffffff : System RAM", "line 1, is not"),
    ],
)
def test_broken_text_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_iomem(text)


def test_ram_up_to_the_end_of_the_address_space() -> None:
    assert parse_iomem("0-ffffffffffffffff : System RAM").ram.size == 1 << 64


@given(
    st.text(st.characters(max_codepoint=127)) | st.from_regex(r"( *[0-9a-f]{1,20}-[0-9a-f]{1,20} : System RAM\n){1,9}")
)
def test_iomem_parser_accepts_or_refuses_any_text(text: str) -> None:
    try:
        assert parse_iomem(text).ram
    except CrashHotplugError as error:
        assert "/proc/iomem" in str(error)


def test_one_address_that_is_not_0_shows_that_none_is_masked() -> None:
    text = "00001000-0009fbff : System RAM\n00000000-00000000 : PCI Bus 0000:00\n"
    assert parse_iomem(text).ram == RangeList([(0x1000, 0x9FC00)])


def test_kernel_code_is_the_first_line_of_that_name() -> None:
    text = "00001000-3fffffff : System RAM\n  01000000-01bfffff : Kernel code\n  05000000-05bfffff : Kernel code\n"
    assert parse_iomem(text).kernel_code_phys == 0x100_0000
