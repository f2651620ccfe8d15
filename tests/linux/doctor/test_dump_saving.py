# SPDX-License-Identifier: MIT
"""How the dump will be saved: makedumpfile in a tree, each family's directory, and the encrypted volume below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.linux.doctor.config_files import KernelConfig
from crash_hotplug.linux.doctor.dump_saving import DumpSaving, read_dump_saving
from crash_hotplug.linux.doctor.kdump_family import read_kdump_settings
from crash_hotplug.linux.sysroot import Sysroot
from tests.family_trees import build, install_makedumpfile, mount_encrypted

ROOT = "/dev/mapper/vg-root"


def saving(root: Path, release: str = "7.3.4") -> DumpSaving:
    sysroot = Sysroot(str(root))
    return read_dump_saving(sysroot, read_kdump_settings(sysroot), release, None)


def test_version_is_read_where_the_distribution_installs_the_program(tmp_path: Path) -> None:
    root = build(tmp_path / "tree", "debian")
    assert (saving(root).program, saving(root).version) == (None, None)
    install_makedumpfile(root, "1.7.6", "usr/bin")
    assert (saving(root).program, str(saving(root).version)) == ("/usr/bin/makedumpfile", "1.7.6")
    install_makedumpfile(root, "1.7.9", "usr/sbin")
    assert (saving(root).program, str(saving(root).version)) == ("/usr/sbin/makedumpfile", "1.7.9")
    assert [lack.commit for lack in saving(root).shortcomings] == ["f50c015"]
    assert saving(root, "6.12.0").shortcomings == []


def test_options_of_the_kernel_decide_about_arm64(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    install_makedumpfile(tmp_path, "1.7.8")
    config = KernelConfig("/boot/config", "CONFIG_ARM64_4K_PAGES=y\nCONFIG_ARM64_VA_BITS_52=y\n")
    found = read_dump_saving(Sysroot(str(tmp_path)), None, "6.12.0", config)
    assert [lack.commit for lack in found.shortcomings] == ["b7587f1"]
    assert found.directory is None
    assert read_dump_saving(Sysroot(str(tmp_path)), None, None, config).shortcomings == []


def test_program_that_is_no_file_or_too_large_has_no_known_version(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "usr/bin/makedumpfile").mkdir(parents=True)
    assert (saving(tmp_path).program, saving(tmp_path).version) == ("/usr/bin/makedumpfile", None)
    (tmp_path / "usr/bin/makedumpfile").rmdir()
    with (tmp_path / "usr/bin/makedumpfile").open("wb") as file:
        file.truncate((16 << 20) + 1)
    assert saving(tmp_path).version is None


@pytest.mark.parametrize(
    ("family", "path", "line", "expected"),
    [
        ("debian", "etc/default/kdump-tools", "", "/var/crash"),
        ("debian", "etc/default/kdump-tools", 'KDUMP_COREDIR="/srv/dumps"', "/srv/dumps"),
        ("debian", "etc/default/kdump-tools", 'KDUMP_COREDIR="$(hostname)"', None),
        ("debian", "etc/default/kdump-tools", 'SSH="kdump@there"', None),
        ("debian", "etc/default/kdump-tools", "NFS=there:/dumps", None),
        ("redhat", "etc/kdump.conf", "", "/var/crash"),
        ("redhat", "etc/kdump.conf", "#ssh user@there", "/var/crash"),
        ("redhat", "etc/kdump.conf", "ext4 UUID=0123", None),
        ("redhat", "etc/kdump.conf", "nfs there:/dumps", None),
        ("opensuse", "etc/sysconfig/kdump", "", "/var/crash"),
        ("opensuse", "etc/sysconfig/kdump", 'KDUMP_SAVEDIR="file:///srv"', "/srv"),
        ("opensuse", "etc/sysconfig/kdump", 'KDUMP_SAVEDIR="nfs://there/dumps"', None),
    ],
)
def test_directory_of_the_dump(tmp_path: Path, family: str, path: str, line: str, expected: str | None) -> None:
    root = build(tmp_path / "tree", family)
    with (root / path).open("a") as file:
        file.write(f"{line}\n")
    assert saving(root).directory == expected


def test_red_hat_path_is_read_from_kdump_conf(tmp_path: Path) -> None:
    root = build(tmp_path / "tree", "redhat")
    (root / "etc/kdump.conf").write_text("path /dumps\n")
    assert saving(root).directory == "/dumps"
    (root / "etc/kdump.conf").unlink()
    assert saving(root).directory == "/var/crash"


def test_encrypted_volume_below_the_directory_is_found(tmp_path: Path) -> None:
    """LVM on LUKS: the file system's device is dm-1 over dm-0, and dm-0 is encrypted."""
    root = mount_encrypted(build(tmp_path / "tree", "redhat"), {"/": ROOT, "/boot": "/dev/vda1"})
    assert saving(root).encrypted == "luks-0123"
    (root / "sys/class/block/dm-0/dm/uuid").write_text("LVM-0123\n")
    assert saving(root).encrypted is None


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ({"/": ROOT, "/var": "/dev/vda1"}, None),
        ({"/": "/dev/vda1", "/var/crash": ROOT}, "luks-0123"),
        ({"/": "/dev/vda1", "/var/cra": ROOT, "/var/crashes": ROOT}, None),
        ({"/": "/dev/vda1", "/var": ROOT, "/var ": "/dev/vda1"}, "luks-0123"),
        ({"/": "/dev/mapper/gone"}, None),
        ({"/": "there:/nfs"}, None),
        ({}, None),
    ],
)
def test_mount_point_of_the_directory_decides(tmp_path: Path, mounts: dict[str, str], expected: str | None) -> None:
    assert saving(mount_encrypted(build(tmp_path / "tree", "redhat"), mounts)).encrypted == expected


def test_devices_that_name_each_other_and_damaged_files_end(tmp_path: Path) -> None:
    root = mount_encrypted(build(tmp_path / "tree", "redhat"), {"/": ROOT})
    (root / "sys/class/block/dm-0/dm/uuid").write_text("LVM-0\n")
    (root / "sys/class/block/dm-0/slaves/dm-1").mkdir()
    assert saving(root).encrypted is None
    (root / "proc/self/mountinfo").write_bytes(b"\xff - \n1 2 3\n - \n")
    assert saving(root).encrypted is None
    (root / "proc/self/mountinfo").write_bytes(b"1 " * (1 << 20))
    assert saving(root).encrypted is None
