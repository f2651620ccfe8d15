# SPDX-License-Identifier: MIT
"""Files that configure a machine, found as systemd and udev find them: rules files, units, the kernel's configuration.

Both look for a file name in several directories: the file in the first of them hides those in the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.doctor.rooted_files import exists, read_config, resolve
from crash_hotplug.linux.sysroot import Sysroot

_BASES = ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
RULES_DIRECTORIES = tuple(f"{base}/udev/rules.d" for base in _BASES)
"""In order of precedence (udev(7))."""
UNIT_DIRECTORIES = tuple(f"{base}/systemd/system" for base in _BASES)
"""In order of precedence (systemd.unit(5))."""
ADMIN_RULES = RULES_DIRECTORIES[0]
"""The administrator's rules files."""
TEMPLATES = {"70-kdump.rules": "/usr/lib/kdump/70-kdump.rules"}
"""Rules files that a tool copies to /run/udev/rules.d after it has loaded a crash image (openSUSE's load.sh)."""
ACTIVE = "/run/systemd/units"
"""Directory in which systemd keeps a link ``invocation:UNIT`` while the unit is active."""


def _find(sysroot: Sysroot, directories: Iterable[str], suffix: str) -> dict[str, list[str]]:
    """Return by file name the paths of that name: the live file, then those that it hides."""
    found: dict[str, list[str]] = {}
    seen = set()
    for directory in directories:
        real = resolve(sysroot, directory)
        if real not in seen:  # on a merged /usr, /lib is /usr/lib
            seen.add(real)
            for name in sysroot.names(real):
                if name.endswith(suffix):
                    found.setdefault(name, []).append(f"{directory}/{name}")
    return found


@dataclass(frozen=True)
class RulesFile:
    """The live rules file of one name."""

    name: str
    path: str
    text: str
    hidden: tuple[str, ...] = ()
    """Files of the same name that it hides."""

    @property
    def is_off(self) -> bool:
        """Whether it holds no rule: it is empty, or a link to /dev/null."""
        return not self.text.strip()

    @property
    def is_template(self) -> bool:
        """Whether it becomes live only when a crash image is loaded."""
        return self.path == TEMPLATES.get(self.name)


def read_rules_files(sysroot: Sysroot) -> list[RulesFile]:
    """Return the live rules files in the order in which udev reads them: by name, whatever the directory.

    :raise CannotTellError: a file may not be read
    :raise InputError: a file is invalid
    """
    found = _find(sysroot, RULES_DIRECTORIES, ".rules")
    for name, template in TEMPLATES.items():
        if name not in found and exists(sysroot, template):
            found[name] = [template]
    return [
        RulesFile(name, path, read_config(sysroot, path) or "", tuple(hidden))
        for name, (path, *hidden) in sorted(found.items())
    ]


@dataclass(frozen=True)
class Unit:
    """A systemd unit as its files describe it."""

    name: str
    path: str | None
    """The live unit file; None where the unit is not installed."""
    texts: Mapping[str, str]
    """By path: the unit file and its drop-ins, in the order in which systemd reads them."""
    enabled_by: str | None
    """The link that starts it at boot."""
    is_active: bool | None
    """None where systemd does not run, or a saved tree does not record it."""

    @property
    def is_masked(self) -> bool:
        """Whether its file is empty or a link to /dev/null (systemd.unit(5))."""
        return self.path is not None and not self.texts[self.path]

    @property
    def is_installed(self) -> bool:
        """Whether the unit may be started."""
        return self.path is not None and not self.is_masked


def read_unit(sysroot: Sysroot, name: str) -> Unit:
    """Read the files of a unit.

    :raise CannotTellError: a file may not be read
    :raise InputError: a file is invalid
    """
    paths = (f"{directory}/{name}" for directory in UNIT_DIRECTORIES)
    path = next((path for path in paths if exists(sysroot, path)), None)
    kind = name.rpartition(".")[2]
    drop_ins = _find(sysroot, [f"{base}/{of}.d" for of in (name, kind) for base in UNIT_DIRECTORIES], ".conf")
    read = [*([] if path is None else [path]), *(places[0] for _name, places in sorted(drop_ins.items()))]
    texts = {path: read_config(sysroot, path) or "" for path in read}
    return Unit(name, path, texts, _enabled_by(sysroot, name), is_active(sysroot, name))


def is_active(sysroot: Sysroot, name: str) -> bool | None:
    """Return whether a unit is active; None where systemd does not run, or a saved tree does not record it."""
    if exists(sysroot, f"{ACTIVE}/invocation:{name}"):
        return True
    # /run/systemd/system exists where systemd runs (sd_booted(3)).
    return False if exists(sysroot, ACTIVE) and exists(sysroot, "/run/systemd/system") else None


def _enabled_by(sysroot: Sysroot, name: str) -> str | None:
    for directory in UNIT_DIRECTORIES:
        for wants in sysroot.names(resolve(sysroot, directory)):
            if wants.endswith((".wants", ".requires")) and exists(sysroot, f"{directory}/{wants}/{name}"):
                return f"{directory}/{wants}/{name}"
    return None


@dataclass(frozen=True)
class KernelConfig:
    """The build configuration of the running kernel."""

    path: str
    text: str

    def has(self, option: str) -> bool:
        """Whether an option such as ``CONFIG_KEXEC`` is built in."""
        return re.search(rf"^{option}=y$", self.text, re.MULTILINE) is not None


def read_kernel_config(sysroot: Sysroot, release: str | None) -> KernelConfig | None:
    """Return the configuration that the distribution installed for this release; None where it is not found.

    :raise InputError: the file is invalid
    """
    if release is None or not re.fullmatch(r"[\w.+~-]{1,128}", release):
        return None
    for path in (
        f"/boot/config-{release}",
        f"/usr/lib/modules/{release}/config",
        f"/lib/modules/{release}/config",
    ):
        try:
            text = read_config(sysroot, path)
        except CannotTellError:
            continue
        if text:
            return KernelConfig(path, text)
    return None
