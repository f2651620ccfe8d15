# SPDX-License-Identifier: MIT
"""A Debian system's root directory as one tar file: packages unpacked as dpkg does it, not yet configured.

Owners, modes and links go from one tar file into the other, so neither root nor a user namespace nor fakeroot is
needed.  dpkg's database says "unpacked" of each package; ``dpkg --configure -a`` does the rest, inside the guest.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crash_hotplug_lab.qemu.debian import Package
from crash_hotplug_lab.qemu.errors import LabError

_MERGED = ("bin", "sbin", "lib", "lib64")
"""Directories that are links into /usr on every Debian since 10, also where packages have files in them."""
_INFO = "var/lib/dpkg/info"


class RootTar:
    """A tar file that grows to a whole root directory; use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Begin the file."""
        self._tar = tarfile.open(path, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 closed by __exit__
        self._seen: set[str] = set()
        self._status: list[str] = []
        for name in _MERGED:
            self.directory(f"usr/{name}")
            self.link(name, f"usr/{name}")

    def __enter__(self) -> RootTar:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write dpkg's database, and end the file."""
        if kind is None:
            self.file("var/lib/dpkg/status", "\n".join(self._status).encode())
            for name in ("available", "diversions", "statoverride"):
                self.file(f"var/lib/dpkg/{name}", b"")
            self.file(f"{_INFO}/format", b"1\n")
        self._tar.close()

    def package(self, package: Package) -> None:
        """Add a package's files and its entry in dpkg's database."""
        control = _control(package)
        conffiles = control.pop("conffiles", b"").decode().split("\n")
        names, digests = self._files(package, {name.strip() for name in conffiles if name.startswith("/")})
        text = control.pop("control").decode()
        field = dict(re.findall(r"^(Package|Architecture|Multi-Arch): (\S+)", text, re.MULTILINE))
        own = field["Package"]
        if field.get("Multi-Arch") == "same":
            own = f"{own}:{field['Architecture']}"
        self.file(f"{_INFO}/{own}.list", "".join(f"{name}\n" for name in names).encode())
        if digests:
            self.file(f"{_INFO}/{own}.conffiles", "".join(f"{name}\n" for name in digests).encode())
        for name, content in control.items():
            self.file(f"{_INFO}/{own}.{name}", content, 0o755 if content.startswith(b"#!") else 0o644)
        head, rest = text.strip().split("\n", 1)
        listed = "".join(f"\n {name} {digest}" for name, digest in digests.items())
        known = f"Conffiles:{listed}\n" if listed else ""
        self._status.append(f"{head}\nStatus: install ok unpacked\n{known}{rest}\n")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file that belongs to root."""
        member = tarfile.TarInfo(f"./{name}")
        member.mode, member.size = mode, len(content)
        self._add(member, io.BytesIO(content))

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory that belongs to root, unless it is there."""
        member = tarfile.TarInfo(f"./{name}")
        member.type, member.mode = tarfile.DIRTYPE, mode
        self._add(member)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        member = tarfile.TarInfo(f"./{name}")
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, target, 0o777
        self._add(member)

    def _files(self, package: Package, conffiles: set[str]) -> tuple[list[str], dict[str, str]]:
        """Add a package's files; return the names as dpkg lists them, and each configuration file's MD5."""
        names, digests = [], {}
        with _members(package, "--fsys-tarfile") as members:
            for member, content in members:
                name = _plain(member.name)
                names.append(f"/{name}" if name else "/.")
                if f"/{name}" in conffiles:
                    digests[f"/{name}"] = hashlib.md5(content).hexdigest()  # the digest that dpkg keeps
                if not name or name in _MERGED:
                    continue
                member.name = f"./{_merged(name)}"
                if member.islnk():
                    member.linkname = f"./{_merged(_plain(member.linkname))}"
                self._add(member, io.BytesIO(content) if member.isreg() else None)
        return names, digests

    def _add(self, member: tarfile.TarInfo, content: io.BytesIO | None = None) -> None:
        if member.name in self._seen:  # the same directory comes with many packages
            return
        parent = member.name.rpartition("/")[0]
        if parent != "." and parent not in self._seen:
            self.directory(parent[2:])
        self._seen.add(member.name)
        member.pax_headers = {}
        self._tar.addfile(member, content)


def _plain(name: str) -> str:
    """Return a tar member's name without ``./`` before it; empty for the root itself."""
    return name.removeprefix(".").removeprefix("/").rstrip("/")


def _merged(name: str) -> str:
    return f"usr/{name}" if name.partition("/")[0] in _MERGED else name


def _control(package: Package) -> dict[str, bytes]:
    with _members(package, "--ctrl-tarfile") as members:
        return {_plain(m.name): content for m, content in members if m.isreg()}


@contextmanager
def _members(package: Package, part: str) -> Iterator[Iterator[tuple[tarfile.TarInfo, bytes]]]:
    """Read one of a package's two tar files: each member and its content."""
    process = subprocess.Popen(["dpkg-deb", part, str(package.deb)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        yield ((member, _content(tar, member)) for member in tar)
        stream.read()  # the padding of the last record
    if process.wait():
        raise LabError(f"{package.deb.name} cannot be unpacked")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.isreg() else None
    return file.read() if file else b""
