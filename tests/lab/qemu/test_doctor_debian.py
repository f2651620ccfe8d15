# SPDX-License-Identifier: MIT
"""`doctor` on Debian's own kdump-tools and udev packages, downloaded and unpacked: their rules, settings and units."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from crash_hotplug_lab.qemu.debian import Archive, unpack
from crash_hotplug_lab.qemu.errors import LabError
from tests.cli.running import run
from tests.family_trees import SERVICE, UNAWARE, install_service, photograph
from tests.lab.qemu.fetching import one_at_a_time
from tests.trees import tree

pytestmark = pytest.mark.lab
HANDLED = "HANDLED: CPUs and memory: udev reloads the whole image"
SANDBOX = "fails silently: systemd-udevd's sandbox does not let it load an image"


def debian_tree(directory: Path, suite: str) -> Path:
    """Unpack a release's packages over a captured kernel, as their installation scripts would leave them."""
    shutil.copytree(tree(UNAWARE, 0), directory)
    try:
        with one_at_a_time():
            archive = Archive(suite)
            if not archive.updated:
                archive.update()
            packages = [archive.download(name, closure=False) for name in ("kdump-tools", "udev")]
        for package in packages:
            unpack(package, directory)
    except LabError as error:
        pytest.skip(str(error))
    (directory / "etc/default").mkdir(parents=True, exist_ok=True)
    shutil.copy(directory / "usr/share/kdump-tools/kdump-tools.conf", directory / "etc/default/kdump-tools")
    return install_service(directory)


@pytest.mark.parametrize(
    ("suite", "code", "said"),
    [("bullseye", 0, HANDLED), ("bookworm", 4, SANDBOX), ("trixie", 4, SANDBOX)],
)
def test_debians_own_rules_settings_and_sandbox(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suite: str, code: int, said: str
) -> None:
    root = debian_tree(tmp_path / suite, suite)
    before = photograph(root)
    ran = run(capsys, "doctor", "--sysroot", root)
    assert ran.code == code
    assert said in ran.out.splitlines()[0]
    assert "reloads on cpu add, cpu online, cpu remove, memory online, memory offline" in " ".join(ran.out.split())
    assert run(capsys, "doctor", "--sysroot", root, "--fix").code == 0
    out = " ".join(run(capsys, "doctor", "--sysroot", root).out.split())
    assert "starts no reload: written by crash-hotplug doctor --fix" in out
    settings = (root / "etc/default/kdump-tools").read_text().splitlines()[-1]
    assert settings.startswith('KDUMP_CMDLINE_APPEND="reset_devices systemd.unit=kdump-tools-dump.service ')
    assert settings.endswith(' acpi_no_memhotplug"')
    assert run(capsys, "doctor", "--sysroot", root, "--undo").code == 0
    assert photograph(root) == before
    assert SERVICE in ran.out
