# SPDX-License-Identifier: MIT
"""Whether the capture kernel has the driver of the machine's virtio-mem devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.linux.doctor.config_files import KernelConfig
from crash_hotplug.linux.doctor.kdump_family import read_kdump_settings
from crash_hotplug.linux.doctor.virtio_mem import DEVICES, VirtioMem, read_virtio_mem
from crash_hotplug.linux.sysroot import Sysroot
from tests.cli.running import run
from tests.family_trees import build, install_service
from tests.linux.doctor.test_initramfs import MODULE, archive

RELEASE = "6.1.0-50-cloud-amd64"
PLACES = {
    "debian": f"/var/lib/kdump/initrd.img-{RELEASE}",
    "redhat": f"/boot/initramfs-{RELEASE}kdump.img",
    "opensuse": "/var/lib/kdump/initrd",
}
WAY_OUT = {
    "debian": f"echo virtio_mem >> /etc/initramfs-tools/modules && /etc/kernel/postinst.d/kdump-tools {RELEASE} && "
    "kdump-config reload",
    "redhat": "echo extra_modules virtio_mem >> /etc/kdump.conf && kdumpctl restart",
    "opensuse": "echo 'add_drivers+=\" virtio_mem \"' > /etc/dracut.conf.d/virtio_mem.conf && mkdumprd -f && "
    "systemctl restart kdump.service",
}


def machine(tmp_path: Path, family: str, *names: str) -> Path:
    """Build the tree of a machine with a virtio-mem device and an initramfs, which has files of these names."""
    tree = build(tmp_path / "tree", family)
    (tree / DEVICES[1:] / "virtio1").mkdir(parents=True)
    (tree / "proc/sys/kernel/osrelease").write_text(f"{RELEASE}\n")
    if names:
        place = tree / PLACES[family][1:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(archive(*names))
    return tree


def read(tree: Path, config: KernelConfig | None = None) -> VirtioMem | None:
    sysroot = Sysroot(str(tree))
    return read_virtio_mem(sysroot, config, read_kdump_settings(sysroot), RELEASE)


@pytest.mark.parametrize("family", PLACES)
def test_driver_is_looked_for_in_the_initramfs_of_each_family(tmp_path: Path, family: str) -> None:
    assert read(machine(tmp_path / "with", family, MODULE)) == VirtioMem(["virtio1"], PLACES[family], True, "")
    assert read(machine(tmp_path / "without", family, "init")) == VirtioMem(["virtio1"], PLACES[family], False, "")


def test_machine_without_a_device_has_nothing_to_read(tmp_path: Path) -> None:
    assert read(build(tmp_path / "tree", "debian")) is None


def test_driver_may_be_built_into_the_kernel(tmp_path: Path) -> None:
    config = KernelConfig("/boot/config", "CONFIG_VIRTIO_MEM=y\n")
    found = read(machine(tmp_path, "debian", "init"), config)
    assert found is not None
    assert (found.has_driver, found.reason) == (True, "built into the kernel (/boot/config)")
    as_module = read(machine(tmp_path / "m", "debian", "init"), KernelConfig("/boot/config", "CONFIG_VIRTIO_MEM=m\n"))
    assert as_module is not None
    assert as_module.has_driver is False


def test_driver_is_not_known_without_a_readable_initramfs(tmp_path: Path) -> None:
    missing = read(machine(tmp_path / "a", "debian"))
    assert missing == VirtioMem(["virtio1"], None, None, f"there is no {PLACES['debian']}")
    tree = machine(tmp_path / "b", "redhat", "init")
    (tree / PLACES["redhat"][1:]).write_text("text")
    broken = read(tree)
    assert broken is not None
    assert broken.has_driver is None
    assert "is not an initramfs that can be read" in broken.reason


@pytest.mark.parametrize("family", PLACES)
def test_doctor_says_how_to_add_a_missing_driver(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str
) -> None:
    without = install_service(machine(tmp_path / "without", family, "init"), active=True)
    ran = run(capsys, "doctor", "--sysroot", without)
    assert "the capture kernel lacks the driver virtio_mem" in ran.out
    assert f"  {WAY_OUT[family]}    (the capture kernel lacks virtio_mem)" in ran.out
    there = run(capsys, "doctor", "--sysroot", install_service(machine(tmp_path / "with", family, MODULE), active=True))
    assert "the capture kernel has the driver virtio_mem" in there.out
    assert "(the capture kernel lacks virtio_mem)" not in there.out


def test_doctor_says_that_the_driver_is_not_known(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = run(capsys, "doctor", "--sysroot", machine(tmp_path, "debian"))
    assert "whether the capture kernel has the driver virtio_mem is not known: there is no" in ran.out
    assert "lacks virtio_mem" not in ran.out


def test_saved_tree_keeps_the_devices_and_not_the_initramfs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = machine(tmp_path, "debian", MODULE)
    run(capsys, "snapshot", "--sysroot", tree, "-o", tmp_path / "saved")
    found = read(tmp_path / "saved")
    assert found == VirtioMem(["virtio1"], None, None, f"there is no {PLACES['debian']}")
