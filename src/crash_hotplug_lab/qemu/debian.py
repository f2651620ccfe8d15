# SPDX-License-Identifier: MIT
"""Packages of any Debian release: downloaded and unpacked in the lab's cache, run from there, never installed.

apt itself resolves, downloads and verifies.  It gets a sources list, lists and archives of the lab's own, and an empty
dpkg status, so that it neither sees nor changes the packages that the machine has installed.  Root is not needed.  The
mirror is the one in the machine's own apt sources.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from crash_hotplug_lab.qemu.errors import LabError

MIRROR_VARIABLE = "CRASH_HOTPLUG_LAB_MIRROR"
HOST = "amd64"
"""Debian's architecture of the host, whose tools run there."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def cache_dir(*parts: str) -> Path:
    """Return a directory of the lab's cache, and create it.

    The cache is ``$XDG_CACHE_HOME/crash-hotplug/lab``, by default below ``~/.cache``.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(base, "crash-hotplug", "lab", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass(frozen=True)
class Package:
    """One downloaded package."""

    name: str
    version: str
    deb: Path


def machine_mirror() -> str:
    """Return the address of the Debian archive that this machine's apt uses.

    :raise LabError: there is no apt, or its sources name no Debian archive
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

    def __init__(self, release: str, extra_suite: str = "", architecture: str = HOST) -> None:
        """Name the suites, and Debian's architecture of the packages; nothing is read or downloaded yet."""
        self.release = release
        self.name = extra_suite or release
        self._suites = [release, *([extra_suite] if extra_suite else [])]
        self._architecture = architecture
        self._dir = cache_dir("apt", self.name if architecture == HOST else f"{self.name}-{architecture}")

    def update(self) -> None:
        """Download the suites' package lists.

        :raise LabError: the mirror cannot be reached or does not have the suite
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
        """Return the version of a package that apt would download.

        :raise LabError: the archive has no such package
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

        :raise LabError: the archive lacks one
        """
        # --print-uris leaves out packages that are downloaded already, so it is given no archives
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
            # empty, else apt looks for installed packages and fails; here, because apt locks a file beside it
            "Dir::State::status": self._dir / "status",
            "Dir::Cache::archives": self._dir / "archives",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Architecture": self._architecture,
            "APT::Architectures": self._architecture,
            "APT::Sandbox::User": "",  # the sandbox user cannot write below a user's home
            "Acquire::Retries": "3",
        }
        if self.name != self.release:
            own["APT::Default-Release"] = self.name  # backports are not chosen unless asked for
        options = [word for key, value in own.items() for word in ("-o", f"{key}={value}")]
        # `apt-get download` writes to the current directory, and does not list packages that are there
        cwd = self._dir / "archives" if "--print-uris" not in command else self._dir
        return _run([command[0], *options, *command[1:]], cwd=cwd)


def unpack(packages: list[Package], tree: Path) -> None:
    """Unpack packages into one directory as ``dpkg -x`` does: files only, no scripts are run."""
    tree.mkdir(parents=True, exist_ok=True)
    for package in packages:
        _run(["dpkg-deb", "-x", str(package.deb), str(tree)])


def program_in(tree: Path, program: str) -> list[str]:
    """Return the command line that runs a program of an unpacked tree with the tree's own libraries.

    :raise LabError: the tree has no such program
    """
    return [str(dynamic_loader(tree)), "--library-path", library_path(tree), str(find_program(tree, program))]


def find_program(tree: Path, program: str) -> Path:
    """Return the path of a program of an unpacked tree of any architecture.

    :raise LabError: the tree has no such program
    """
    for directory in ("usr/bin", "usr/sbin", "bin", "sbin"):
        path = tree / directory / program
        if path.exists():
            return path
    raise LabError(f"{program} was not fetched; run `crash-hotplug-lab fetch`")


def library_path(tree: Path) -> str:
    """Return the library directories of an unpacked tree, in the form of ``ld.so --library-path``."""
    return ":".join(str(tree / d) for d in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu") if (tree / d).is_dir())


def dynamic_loader(tree: Path) -> Path:
    """Return the dynamic loader of an unpacked tree (ld.so).

    :raise LabError: the tree has none
    """
    for directory in library_path(tree).split(":"):
        path = Path(directory, "ld-linux-x86-64.so.2")
        if path.exists():
            return Path(os.path.realpath(path))
    raise LabError(f"no dynamic loader below {tree}; run `crash-hotplug-lab fetch`")


def _run(command: list[str], cwd: Path | None = None) -> str:
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(f"{os.path.basename(command[0])} failed: {said[-1] if said else 'it printed nothing'}")
    return done.stdout
