# SPDX-License-Identifier: MIT
"""Trees of whole machines for `doctor`: a family's files (tests/families/) over a captured kernel (tests/captures/)."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from tests.trees import tree

FAMILIES = Path(__file__).parent / "families"
NAMES = ("debian", "ubuntu", "alt", "redhat", "opensuse")
UNAWARE = "6.1-c"
"""A kernel that never updates the header."""
AWARE = "6.12-s"
"""A kernel that does, with crash_hotplug 1 for both."""
SERVICE = "crash-hotplug.service"


def build(directory: Path, family: str, kernel: str = UNAWARE) -> Path:
    """Copy a family's files and a captured kernel into a new tree, systemd running, the image loaded."""
    shutil.copytree(tree(kernel, 0), directory)
    shutil.copytree(FAMILIES / family, directory, dirs_exist_ok=True)
    (directory / "run" / "systemd" / "units").mkdir(parents=True)
    (directory / "run" / "systemd" / "system").mkdir()
    unit = "kdump-tools.service" if family in ("debian", "ubuntu", "alt") else "kdump.service"
    activate(directory, unit)
    if family == "opensuse":  # load.sh does it when it has loaded the image
        rules = directory / "run" / "udev" / "rules.d"
        rules.mkdir(parents=True)
        shutil.copy(directory / "usr/lib/kdump/70-kdump.rules", rules)
    return directory


def install_service(directory: Path, active: bool = False) -> Path:
    """Put the service's unit into a tree, and enable and start it."""
    unit = directory / "usr" / "lib" / "systemd" / "system" / SERVICE
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text("[Service]\nExecStart=/usr/bin/crash-hotplug watch\n")
    if active:
        wants = directory / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True)
        (wants / SERVICE).symlink_to(f"/usr/lib/systemd/system/{SERVICE}")
        activate(directory, SERVICE)
    return directory


def activate(directory: Path, unit: str) -> None:
    """Make the link that systemd keeps while a unit is active."""
    (directory / "run/systemd/units" / f"invocation:{unit}").symlink_to("0123456789abcdef0123456789abcdef")


def photograph(directory: Path) -> dict[str, object]:
    """Return everything that a tree holds: directories, links, contents, modes, owners."""
    found: dict[str, object] = {}
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(parent) / name
            status = path.lstat()
            held: object = None
            if path.is_symlink():
                held = os.readlink(path)
            elif path.is_file():
                held = path.read_bytes()
            key = str(path.relative_to(directory))
            found[key] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, held)
    return found


def install_makedumpfile(directory: Path, version: str, place: str = "usr/bin") -> Path:
    """Put a program with makedumpfile's version string into a tree."""
    program = directory / place / "makedumpfile"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_bytes(b"\x7fELF\0makedumpfile: version %s (released on 1 Jan 2026)\n\0" % version.encode())
    return directory


def mount_encrypted(directory: Path, mounts: dict[str, str]) -> Path:
    """Write the mounts of a machine with LVM on LUKS: dm-1, vg-root, over dm-0, the encrypted luks-0123, over vda2.

    :param mounts: the device by mount point
    """
    devices = directory / "sys/class/block"
    for device, name, uuid, below in (
        ("dm-0", "luks-0123", "CRYPT-LUKS2-0123-luks-0123", "vda2"),
        ("dm-1", "vg-root", "LVM-4567", "dm-0"),
    ):
        (devices / device / "dm").mkdir(parents=True)
        (devices / device / "dm/name").write_text(f"{name}\n")
        (devices / device / "dm/uuid").write_text(f"{uuid}\n")
        (devices / device / "slaves" / below).mkdir(parents=True)
    lines = (
        f"{30 + number} 1 254:{number} / {point.replace(' ', chr(92) + '040')} rw,relatime shared:1 - xfs {source} rw\n"
        for number, (point, source) in enumerate(mounts.items())
    )
    (directory / "proc/self").mkdir(parents=True, exist_ok=True)
    (directory / "proc/self/mountinfo").write_text("".join(lines))
    return directory
