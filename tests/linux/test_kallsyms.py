# SPDX-License-Identifier: MIT
"""Kernel symbols: out of the table in memory, and out of the text of /proc/kallsyms."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.kallsyms import Symbol
from crash_hotplug.linux import kallsyms, sysroot
from crash_hotplug.linux.kallsyms import read_symbols, search_table, search_text, symbol_lines
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import Sysroot
from tests.core.kallsyms_table import FakeTable
from tests.linux.fake_kcore import TEXT_VIRT, write_kcore
from tests.trees import LiveTree

KEXEC_CRASH_IMAGE = TEXT_VIRT + 0x70_0000
TABLE_VIRT = TEXT_VIRT + 0x10_0000
VMCOREINFO_PHYS = 0x5000


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys" / "kernel").mkdir(parents=True)
    monkeypatch.setattr(kallsyms, "_live", {})
    return tmp_path


def write_table(root: Path) -> None:
    """Write a kernel's memory with a table and with the vmcoreinfo that tells its place."""
    symbols = {"T_stext": TEXT_VIRT, "T_text": TEXT_VIRT, "Bkexec_crash_image": KEXEC_CRASH_IMAGE}
    fake = FakeTable(symbols, virt=TABLE_VIRT)
    text = "".join(f"SYMBOL({name})={virt:x}\n" for name, virt in fake.places.items())
    note = bytes(12) + b"VMCOREINFO\0\0" + text.encode()
    write_kcore(root / "proc" / "kcore", {VMCOREINFO_PHYS: note}, {TABLE_VIRT: bytes(fake.memory)})
    (root / "sys" / "kernel" / "vmcoreinfo").write_text(f"0x{VMCOREINFO_PHYS:016x} 1000\n")


def write_text(root: Path, text: str) -> Sysroot:
    (root / "proc" / "kallsyms").write_text(text)
    return Sysroot(str(root))


def test_live_symbols_come_from_the_table_and_the_text_has_the_others(root: Path) -> None:
    write_table(root)
    write_text(root, "0000000000000000 B kexec_crash_image\nffffffff82000000 B crash_notes\n")
    live = LiveTree(str(root))
    assert read_symbols(live, ("kexec_crash_image",)) == {"kexec_crash_image": KEXEC_CRASH_IMAGE}
    assert read_symbols(live) == {
        "_stext": TEXT_VIRT,
        "_text": TEXT_VIRT,
        "kexec_crash_image": KEXEC_CRASH_IMAGE,
        "crash_notes": 0xFFFF_FFFF_8200_0000,
    }
    (root / "proc" / "kallsyms").unlink()
    assert read_symbols(live, ("crash_notes", "_end")) == {"crash_notes": 0xFFFF_FFFF_8200_0000}


def test_hidden_symbols_are_looked_for_again(root: Path) -> None:
    write_text(root, "0000000000000000 B kexec_crash_image\n")
    live = LiveTree(str(root))
    assert read_symbols(live, ("kexec_crash_image",)) == {}
    write_text(root, "ffffffff82000000 B kexec_crash_image\n")
    assert read_symbols(live, ("kexec_crash_image",)) == {"kexec_crash_image": 0xFFFF_FFFF_8200_0000}


def test_text_is_not_read_where_the_table_has_every_symbol(root: Path) -> None:
    write_table(root)
    (root / "proc" / "kallsyms").mkdir()  # reading it would be an error
    assert set(read_symbols(LiveTree(str(root)), ("_text", "kexec_crash_image"))) == {"_text", "kexec_crash_image"}
    with pytest.raises(CannotTellError, match="kallsyms is hidden"):
        read_symbols(LiveTree(str(root)), ("_end",))


@pytest.mark.parametrize("missing", ["proc/kcore", "sys/kernel/vmcoreinfo"])
def test_table_that_cannot_be_read_has_no_symbols(root: Path, missing: str) -> None:
    write_table(root)
    assert search_table(Sysroot(str(root)), ("kexec_crash_image", "_end")) == {
        "kexec_crash_image": Symbol(KEXEC_CRASH_IMAGE, "B")
    }
    (root / missing).unlink()
    assert search_table(Sysroot(str(root)), ("kexec_crash_image",)) == {}


def test_table_read_while_the_layout_of_kcore_changed_is_not_believed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(root)
    monkeypatch.setattr(Kcore, "has_moved", lambda _kcore: True)
    assert search_table(Sysroot(str(root)), ("kexec_crash_image",)) == {}


def test_text_of_modules_and_longer_names_is_passed_over(root: Path) -> None:
    lines = (
        "ffffffffc0000000 b crash_notes\t[module]\n"
        "ffffffff81000000 T my_crash_notes\n"
        "ffffffff81000010 T crash_notes_more\n"
        "ffffffff81000020 B crash_notes\n"
        "ffffffff81000030 b crash_notes\n"
    )
    assert read_symbols(write_text(root, lines)) == {"crash_notes": 0xFFFF_FFFF_8100_0020}


@pytest.mark.parametrize(
    "line", ["0000000000000000 B _end", "xyz B _end", "B _end", "ffffffff8100002000 B _end", "ffffffff81000020 BB _end"]
)
def test_text_without_an_address_has_no_symbol(root: Path, line: str) -> None:
    assert read_symbols(write_text(root, f"{line}\n")) == {}


def test_snapshot_lines_are_those_of_the_kernel_by_address(root: Path) -> None:
    lines = "ffffffff81000000 T _text\nffffffff82000000 D phys_base\nffffffff83000000 B _end\n"
    assert symbol_lines(write_text(root, "ffffffff81000008 t other\n" + lines)) == lines.encode()


@given(before=st.integers(0, 40), between=st.integers(0, 40), size=st.integers(1, 40))
@settings(deadline=None)
def test_text_is_searched_across_the_parts_in_which_it_is_read(
    tmp_path_factory: pytest.TempPathFactory, before: int, between: int, size: int
) -> None:
    root = tmp_path_factory.mktemp("tree")
    (root / "proc").mkdir()
    other = "ffffffff81000008 t other\n"
    tree = write_text(root, f"{other * before}ffffffff82000000 D phys_base\n{other * between}ffffffff83000000 B _end\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysroot, "_PART", size)
        assert search_text(tree, ("_end", "phys_base", "_text")) == {
            "phys_base": Symbol(0xFFFF_FFFF_8200_0000, "D"),
            "_end": Symbol(0xFFFF_FFFF_8300_0000, "B"),
        }
