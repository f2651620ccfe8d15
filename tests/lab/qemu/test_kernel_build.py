# SPDX-License-Identifier: MIT
"""The kernels that the lab builds: what is refused, and where a kernel is found afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug_lab.qemu import kernel_build, kernels
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.guest_architecture import ARCHITECTURES, ARM64


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_kernel_of_a_package_is_not_built() -> None:
    with pytest.raises(
        LabError, match=r"the lab does not build a kernel 6\.12; it builds 7\.2b, 7\.2p, 7\.2n, 6\.1f, 6\.12f"
    ):
        kernel_build.build("6.12", print)


def test_built_kernel_is_not_fetched() -> None:
    with pytest.raises(LabError, match=r"build it with `crash-hotplug-lab kernel build 6\.12f`"):
        kernels.fetch("6.12f", ARM64)


def test_option_that_the_source_does_not_set_is_named() -> None:
    fragment = "# the crash image\nCONFIG_KEXEC=y\nCONFIG_KEXEC_FILE=y\n"
    assert kernel_build.missing_options(fragment, "CONFIG_KEXEC=y\n# CONFIG_KEXEC_FILE is not set\n") == [
        "CONFIG_KEXEC_FILE=y"
    ]
    assert kernel_build.missing_options(fragment, fragment) == []


def test_build_that_fails_is_reported_by_what_made_make_give_up() -> None:
    output = (
        "  CC a.o\nenv: 'python3': No such file\nmake[4]: *** [Makefile:156: defs.h] Error 127\n  LD b.o\nmake: *** 2\n"
    )
    assert kernel_build.why_failed(output) == "env: 'python3': No such file"
    assert kernel_build.why_failed("tar: broken\n\n") == "tar: broken"
    assert kernel_build.why_failed("") == "no output"


def test_configuration_has_kexec_file_load_and_takes_dimms() -> None:
    fragment = kernel_build.configuration(ARM64.kernels["6.12f"], ARM64, "6.12f")
    for option in ("KEXEC_FILE", "PROC_VMCORE", "ACPI_HOTPLUG_MEMORY", "MEMORY_HOTREMOVE", "PROC_KCORE"):
        assert f"CONFIG_{option}=y\n" in fragment


def test_every_architecture_has_its_part_of_the_configuration() -> None:
    for key, architecture in kernel_build.built_kernels().items():
        lines = kernel_build.configuration(architecture.kernels[key], architecture, key).splitlines()
        options = [line.partition("=")[0] for line in lines if line.startswith("CONFIG_")]
        assert len(options) == len(set(options)), key
        assert f'CONFIG_LOCALVERSION="-{key}"' in lines
        assert "CONFIG_KEXEC_FILE" in options


def test_every_patch_is_there_and_a_kernel_is_built_with_it() -> None:
    named = {patch for arch in ARCHITECTURES.values() for source in arch.kernels.values() for patch in source.patches}
    assert named == {path.name for path in (Path(kernel_build.__file__).parent / "patches").iterdir()}


def test_two_built_kernels_have_two_keys() -> None:
    """`kernel build KEY` names no architecture."""
    keys = [key for arch in ARCHITECTURES.values() for key, source in arch.kernels.items() if source.is_built]
    assert len(keys) == len(kernel_build.built_kernels())


def test_kernel_with_large_pages_has_larger_memory_blocks(tmp_path: Path) -> None:
    found = {key: kernels.Kernel(key, "1", "6.12.1", tmp_path, tmp_path, "trixie", "arm64") for key in ARM64.kernels}
    assert [found[key].block_size >> 20 for key in ("6.12", "6.12f", "6.12-64kf")] == [128, 128, 512]
    assert "CONFIG_ARM64_64K_PAGES=y" in ARM64.kernels["6.12-64kf"].options


def test_built_kernel_is_found_in_the_cache() -> None:
    image = bytearray(0x1000)
    image[0x38:0x3C] = b"ARM\x64"
    image[0x800:0x900] = b"Linux version 6.12.1-6.12f (lab@lab) #1".ljust(0x100, b"\0")
    built = kernel_build._keep("6.12f", "6.12.1-1", bytes(image), "trixie", ARM64)
    assert kernels.ready("6.12f", ARM64) == built
    assert (built.release, built.name, built.is_built, built.series_key) == (
        "6.12.1-6.12f",
        "arm64-6.12f",
        True,
        "6.12",
    )
    with pytest.raises(LabError, match="made no kernel image"):
        kernel_build._keep("6.1f", "6.1.1-1", b"nothing", "bookworm", ARM64)
