"""systemd's units as files tell them: where one is, its drop-ins, whether it is enabled, masked, active."""

from __future__ import annotations

from dataclasses import dataclass

from crash_hotplug.linux.doctor.rooted_path import NULL, exists, names, read_config, resolve
from crash_hotplug.linux.sysroot import Sysroot

DIRECTORIES = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
"""In order of precedence (systemd.unit(5))."""
ACTIVE = "/run/systemd/units"
"""systemd keeps a link ``invocation:UNIT`` here for as long as the unit is active."""


@dataclass(frozen=True)
class Unit:
    """What the files say of one unit."""

    name: str
    path: str | None
    """The live unit file; None where it is not installed."""
    is_masked: bool
    enabled_by: str | None
    """The link that starts it at boot."""
    is_active: bool | None
    """None where systemd does not run, or a saved tree does not tell."""
    texts: tuple[str, ...] = ()
    """The unit file and its drop-ins, in the order in which systemd reads them."""
    drop_ins: tuple[str, ...] = ()

    @property
    def is_installed(self) -> bool:
        """Whether there is such a unit that may be started."""
        return self.path is not None and not self.is_masked


def read_unit(sysroot: Sysroot, name: str) -> Unit:
    """Read what the files say of a unit.

    :raise CannotTellError: a file may not be read
    :raise InputError: a file is not what it should be
    """
    paths = [f"{directory}/{name}" for directory in DIRECTORIES]
    path = next((path for path in paths if exists(sysroot, path)), None)
    texts = []
    masked = False
    if path is not None:
        text = read_config(sysroot, path) or ""
        masked = resolve(sysroot, path) == NULL or not text  # an empty file masks as well (systemd.unit(5))
        texts.append(text)
    drop_ins = _drop_ins(sysroot, name)
    texts += [read_config(sysroot, drop_in) or "" for drop_in in drop_ins]
    return Unit(name, path, masked, _enabled_by(sysroot, name), is_active(sysroot, name), tuple(texts), tuple(drop_ins))


def is_active(sysroot: Sysroot, name: str) -> bool | None:
    """Whether systemd says that the unit is active; None where it does not say."""
    if exists(sysroot, f"{ACTIVE}/invocation:{name}"):
        return True
    # sd_booted(3) looks for the directory too.
    return False if exists(sysroot, ACTIVE) and exists(sysroot, "/run/systemd/system") else None


def _drop_ins(sysroot: Sysroot, name: str) -> list[str]:
    """Return UNIT.d/*.conf and service.d/*.conf: by name, the first directory's where two have one name."""
    kind = name.rpartition(".")[2]
    found: dict[str, str] = {}
    for drop_in_directory in (f"{name}.d", f"{kind}.d"):
        for directory in DIRECTORIES:
            for conf in names(sysroot, f"{directory}/{drop_in_directory}"):
                if conf.endswith(".conf"):
                    found.setdefault(conf, f"{directory}/{drop_in_directory}/{conf}")
    return [found[conf] for conf in sorted(found)]


def _enabled_by(sysroot: Sysroot, name: str) -> str | None:
    for directory in DIRECTORIES:
        for wants in names(sysroot, directory):
            if wants.endswith((".wants", ".requires")) and exists(sysroot, f"{directory}/{wants}/{name}"):
                return f"{directory}/{wants}/{name}"
    return None
