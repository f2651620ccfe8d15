"""udev's rules files: which of those with one name is live, as systemd-udevd finds them (udev(7))."""

from __future__ import annotations

from dataclasses import dataclass

from crash_hotplug.linux.doctor.rooted_path import NULL, exists, names, read_config, resolve
from crash_hotplug.linux.sysroot import Sysroot

ADMIN = "/etc/udev/rules.d"
"""Where an administrator's files lie; a file here hides one of the same name anywhere else."""
DIRECTORIES = (
    ADMIN,
    "/run/udev/rules.d",
    "/usr/local/lib/udev/rules.d",
    "/usr/lib/udev/rules.d",
    "/lib/udev/rules.d",
)
"""In order of precedence; the last is the fourth where /usr is merged."""
TEMPLATES = {"70-kdump.rules": "/usr/lib/kdump/70-kdump.rules"}
"""Files that a tool copies to /run/udev/rules.d when it has loaded a crash image (openSUSE's load.sh)."""


@dataclass(frozen=True)
class RulesFile:
    """The live one of the rules files with one name."""

    name: str
    path: str
    text: str
    hidden: tuple[str, ...] = ()
    """Files of the same name that it hides."""
    waiting: bool = False
    """A template: it becomes live when a crash image is loaded."""

    @property
    def is_off(self) -> bool:
        """Whether it holds no rule: empty, or a link to /dev/null."""
        return not self.text.strip()


def read_rules_files(sysroot: Sysroot) -> list[RulesFile]:
    """Return the live rules files in the order in which udev reads them: by name, whatever the directory.

    :raise CannotTellError: one may not be read
    :raise InputError: one is not what it should be
    """
    places: dict[str, list[str]] = {}
    seen: dict[str, set[str]] = {}
    for directory in DIRECTORIES:
        for name in names(sysroot, directory):
            path = f"{directory}/{name}"
            real = resolve(sysroot, path)
            # On a merged /usr the last two directories are one.
            if name.endswith(".rules") and (real == NULL or real not in seen.setdefault(name, set())):
                seen.setdefault(name, set()).add(real)
                places.setdefault(name, []).append(path)
    for name, template in TEMPLATES.items():
        if name not in places and exists(sysroot, template):
            places[name] = [template]
    return [_read(sysroot, name, places[name]) for name in sorted(places)]


def _read(sysroot: Sysroot, name: str, places: list[str]) -> RulesFile:
    text = read_config(sysroot, places[0])
    waiting = places[0] == TEMPLATES.get(name)
    return RulesFile(name, places[0], text or "", tuple(places[1:]), waiting)
