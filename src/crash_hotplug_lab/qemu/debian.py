"""Packages of any Debian release, downloaded and unpacked, never installed.

apt itself resolves, downloads and verifies; it is only given a sources list, lists and archives of our own, and an
empty dpkg status so that it neither sees nor touches what the machine has installed.  No root needed.  The mirror is
the one that the machine's own apt sources name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from crash_hotplug_lab.qemu.cachedir import cache_dir
from crash_hotplug_lab.qemu.errors import LabError

MIRROR_VARIABLE = "CRASH_HOTPLUG_LAB_MIRROR"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Package:
    """One downloaded package."""

    name: str
    version: str
    deb: Path


def machine_mirror() -> str:
    """Return the address of the Debian archive that this machine's apt uses.

    :raise LabError: when there is no apt, or it has no Debian archive among its sources.
    """
    given = os.environ.get(MIRROR_VARIABLE)
    if given:
        return given
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise LabError("the lab downloads its kernels with apt-get and dpkg-deb, and this machine does not have them")
    listing = _run(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(COMPONENT)|$(SUITE)|$(REPO_URI)",
                    "Created-By: Packages"])  # fmt: skip
    for line in listing.splitlines():
        origin, component, suite, uri = line.split("|", 3)
        if origin in ("Debian", "") and component == "main" and "security" not in suite + uri and "-" not in suite:
            return uri.rstrip("/")
    raise LabError(f"this machine's apt sources name no Debian archive; set {MIRROR_VARIABLE} to the address of one")


class Archive:
    """The packages of one release (``bookworm``) and, where named, a second suite beside it (``trixie-backports``)."""

    def __init__(self, release: str, extra_suite: str = "") -> None:
        """Name the suites; nothing is read or downloaded yet."""
        self.release = release
        self.name = extra_suite or release
        self._suites = [release, *([extra_suite] if extra_suite else [])]
        self._dir = cache_dir("apt", self.name)

    def update(self) -> None:
        """Download the suites' package lists.

        :raise LabError: when the mirror cannot be reached or does not hold the suite.
        """
        mirror = machine_mirror()
        for sub in ("lists/partial", "archives/partial"):
            (self._dir / sub).mkdir(parents=True, exist_ok=True)
        (self._dir / "status").touch()
        signed = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""
        (self._dir / "sources.list").write_text("".join(f"deb {signed}{mirror} {s} main\n" for s in self._suites))
        try:
            self._apt("apt-get", "-qq", "-o", "APT::Update::Error-Mode=any", "update")
        except LabError as error:
            raise LabError(f"cannot read the package lists of Debian {self.name}: {error}") from None

    @property
    def updated(self) -> bool:
        """Whether package lists are there."""
        return any((self._dir / "lists").glob("*_Packages*"))

    def candidate(self, package: str) -> str:
        """Return the version of a package that this archive would give.

        :raise LabError: when it has none.
        """
        policy = self._apt("apt-cache", "policy", package)
        match = re.search(r"Candidate: (\S+)", policy)
        if not match or match.group(1) == "(none)":
            raise LabError(f"Debian {self.name} has no package {package}")
        return match.group(1)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the packages that begin with a prefix."""
        return sorted(self._apt("apt-cache", "pkgnames", prefix).split())

    def depends(self, package: str) -> list[str]:
        """Return the names of the packages that a package depends on directly."""
        shown = self._apt("apt-cache", "--no-recommends", "--no-suggests", "depends", package)
        return re.findall(r"Depends: (\S+)", shown)

    def download(self, *packages: str, closure: bool = True) -> list[Package]:
        """Download packages, with everything that they depend on where ``closure`` is true.

        :raise LabError: when one is not to be had.
        """
        # --print-uris leaves out what is downloaded already, so that question is asked with no archives
        if closure:
            wanted = ["-o", "APT::Install-Recommends=0", "--yes", "install", *packages]
        else:
            wanted = ["download", *packages]
        listed = self._apt("apt-get", "-qq", "-o", "Dir::Cache::archives=/nonexistent", "--print-uris", *wanted)
        uris = re.findall(r"^'(\S+)' (\S+\.deb) ", listed, re.MULTILINE)
        if not uris:
            raise LabError(f"Debian {self.name} has no packages {' '.join(packages)}")
        self._apt("apt-get", "-qq", *(["--download-only"] if closure else []), *wanted)
        found = []
        for _, file in uris:
            name, version = file.split("_")[:2]
            found.append(Package(name, version.replace("%3a", ":"), self._dir / "archives" / file))
        return found

    def _apt(self, *command: str) -> str:
        own = {
            "Dir::Etc::sourcelist": self._dir / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::Lists": self._dir / "lists",
            # empty, else apt looks for what is installed, and fails; a file of our own, as apt makes its lock beside it
            "Dir::State::status": self._dir / "status",
            "Dir::Cache::archives": self._dir / "archives",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "",  # the sandbox user cannot write below somebody's home
            "Acquire::Retries": "3",
        }
        if self.name != self.release:
            own["APT::Default-Release"] = self.name  # backports are not chosen unless asked for
        options = [word for key, value in own.items() for word in ("-o", f"{key}={value}")]
        # `apt-get download` writes to the current directory, and does not list what it finds there
        cwd = self._dir / "archives" if "--print-uris" not in command else self._dir
        return _run([command[0], *options, *command[1:]], cwd=cwd)


def unpack(packages: list[Package], tree: Path) -> None:
    """Unpack packages into one directory, as ``dpkg -x`` does: files only, no scripts are run."""
    tree.mkdir(parents=True, exist_ok=True)
    for package in packages:
        _run(["dpkg-deb", "-x", str(package.deb), str(tree)])


def _run(command: list[str], cwd: Path | None = None) -> str:
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(f"{os.path.basename(command[0])} failed: {said[-1] if said else 'it said nothing'}")
    return done.stdout
