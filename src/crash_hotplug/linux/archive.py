# SPDX-License-Identifier: MIT
"""Reading a saved tree out of a tar archive: one of ``snapshot``, a sosreport, or a directory that somebody packed.

The archive comes from another person.  It is read once, forwards, into memory; nothing is unpacked into the file
system.  Each bound below holds for the decompressed contents, so a small file cannot expand into a large one.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Callable, Protocol, Union, cast

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.linux.sysroot import (
    LARGE,
    MOST_LINKS,
    SOS_SNAPSHOT,
    DirectoryOfMany,
    NotRegularFileError,
    Sysroot,
    open_given,
)

MOST_MEMBERS = 500_000
"""A sosreport has some ten thousand."""
MOST_DECOMPRESSED = 8 << 30
"""Bytes of the whole archive."""
MOST_KEPT = 256 << 20
"""Bytes of memory for the files that may be read."""
_KERNEL_FILES = frozenset({"proc", "sys", "crash-image"})
"""These have files up to LARGE; the files in _SETTINGS are configuration."""
_SETTINGS = frozenset({"etc", "usr", "lib", "boot", "run"})
_LARGEST_SETTINGS = 1 << 20
_LARGEST_HEADER = 1 << 20
"""Bytes of the headers of one member: long names and extended attributes."""
_DEEPEST = 5
"""Directories above the tree: sosreport-host-date/sos_commands/crash_hotplug/snapshot, and one more."""
_COST = 300
"""Bytes of memory that a member takes beside its name and contents."""
_BLOCK = 512
_PART = 1 << 16
_DICTIONARY = 256 << 20
"""Bytes of memory for an xz decoder; ``xz -9`` needs 65 MiB."""
_NO_ARCHIVE = "is neither a directory nor a tar archive (.tar, .tar.gz, .tar.bz2 or .tar.xz)"


@dataclass(frozen=True)
class _Link:
    target: str


@dataclass(frozen=True)
class _Refused:
    reason: str


_Member = Union[bytes, _Link, _Refused]
"""The contents of a regular file, or what is in its place."""


class ArchiveSysroot(Sysroot):
    """The saved tree in a tar archive; it cannot be written."""

    def __init__(self, archive: str) -> None:
        """Read the archive.

        :raise CannotTellError: it may not be read
        :raise InputError: it is no tar archive, is truncated, has no saved tree, or exceeds a bound
        """
        super().__init__()
        self._archive = archive
        members = _read_archive(archive)
        root = _find_root(members, archive)
        self._members = {name[len(root) :]: member for name, member in members.items() if name.startswith(f"{root}/")}
        self._children: dict[str, set[str]] = {"": set()}
        """The names in each directory, by its path without a trailing slash."""
        self._index()

    def _index(self) -> None:
        """Fill the directories: an archive need not have a member for each."""
        size = 0
        for path, member in self._members.items():
            child = path
            while child:
                parent, _, name = child.rpartition("/")
                is_known = parent in self._children
                self._children.setdefault(parent, set()).add(name)
                if is_known:
                    break
                size += len(parent) + _COST
                if size > MOST_KEPT:
                    raise InputError(f"{self._archive} has too many directories: it cannot be a saved tree")
                child = parent
            if member is None:
                self._children.setdefault(path, set())

    @property
    def is_live(self) -> bool:
        """False."""
        return False

    def locate(self, path: str) -> str:
        """Return the archive and the *path* in it, for messages."""
        return f"{self._archive}:{path}"

    def root_for_writing(self) -> str:
        """Refuse.

        :raise InputError: always
        """
        raise InputError(f"{self._archive} is an archive: no file in it can be changed")

    def open(self, path: str) -> BinaryIO | None:
        """Open a regular file; as :meth:`Sysroot.open`."""
        resolved = self._resolve_links(path)
        member = self._members.get(resolved)
        if isinstance(member, bytes):
            return io.BytesIO(member)
        if isinstance(member, _Refused) or resolved in self._children:
            reason = member.reason if isinstance(member, _Refused) else "is not a regular file"
            raise NotRegularFileError(f"{self.locate(path)} {reason}")
        return None

    def directory_of_many(self, path: str) -> DirectoryOfMany:
        """List a directory; it has no names where it does not exist."""
        names = self._children.get(self._resolve_links(path), set())
        # Called a link, each file is read by read_text(): no file of an archive can be opened by its path.
        return DirectoryOfMany(self, path, self.locate(path), dict.fromkeys(names, True))

    def read_link(self, path: str) -> str | None:
        """Return where a link leads; None for anything else.  No directory on the way to it is a link."""
        member = self._members.get(path)
        return member.target if isinstance(member, _Link) else None

    def has_name(self, path: str) -> bool:
        """Whether a directory has this name, whatever it is.  No directory on the way to it is a link."""
        parent, _, name = path.rstrip("/").rpartition("/")
        return not name or name in self._children.get(parent, ())

    def _resolve_links(self, path: str) -> str:
        """Return the path of the tree to which *path* leads.

        :raise InputError: a link leads out of the tree, or in a circle
        """
        left = path.split("/")[::-1]
        resolved: list[str] = []
        links = 0
        while left:
            part = left.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not resolved:
                    raise InputError(f"{self.locate(path)} is a link that leads out of the saved tree")
                resolved.pop()
                continue
            resolved.append(part)
            target = self.read_link("/" + "/".join(resolved))
            if target is None:
                continue
            links += 1
            if target.startswith("/") or links > MOST_LINKS:
                where = "out of the saved tree" if links <= MOST_LINKS else f"through more than {MOST_LINKS} links"
                raise InputError(f"{self.locate(path)} is a link that leads {where}")
            resolved.pop()
            left += target.split("/")[::-1]
        return "".join(f"/{part}" for part in resolved)


def _find_root(members: dict[str, _Member | None], archive: str) -> str:
    """Return the directory that has proc/ or sys/: the sos plugin's, otherwise the topmost."""
    roots = set()
    for name, member in members.items():
        parts = name.split("/")
        parents = parts if member is None else parts[:-1]
        at = min((parents.index(top) for top in ("proc", "sys") if top in parents), default=None)
        if at is not None:
            roots.add("/".join(parts[:at]))
    if not roots:
        raise InputError(f"{archive} is not a saved tree: it has neither proc/ nor sys/")
    ranks = sorted((not root.endswith(f"/{SOS_SNAPSHOT}"), root.count("/"), root) for root in roots)
    best = [root for *rank, root in ranks if rank == [*ranks[0][:2]]]
    if len(best) > 1:
        raise InputError(f"{archive} has more than one saved tree: {best[0][1:]} and {best[1][1:]}")
    return best[0]


def _read_archive(name: str) -> dict[str, _Member | None]:
    """Return the members that may belong to a saved tree, by path with a leading slash; None is a directory.

    :raise CannotTellError: it may not be read
    :raise InputError: it is no tar archive, is truncated, or exceeds a bound
    """
    with open_given(name) as file:
        contents = _Contents(file, name)
        try:
            return _read_members(contents, name)
        except (EOFError, OSError, zlib.error) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the decompressors' own errors have no number
                raise CannotTellError(f"{name} cannot be read: {error.strerror}") from error
            raise InputError(f"{name} is truncated or damaged: {error}") from error
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            what = _NO_ARCHIVE if contents.is_first_header else "is truncated or damaged"
            raise InputError(f"{name} {what}: {error}") from error


def _read_members(contents: _Contents, name: str) -> dict[str, _Member | None]:
    kept: dict[str, _Member | None] = {}
    size = 0
    # A stream ("r|") never seeks backwards.
    reader = cast("BinaryIO", contents)
    with tarfile.open(fileobj=reader, mode="r|", encoding="utf-8", errors="surrogateescape") as archive:
        for _ in range(MOST_MEMBERS):
            before = archive.offset
            member = archive.next()
            if member is None:
                contents.check_end(archive.offset)
                return kept
            if archive.offset > MOST_DECOMPRESSED:
                raise contents.too_many_bytes()
            if archive.offset < before or member.size < 0:
                raise InputError(f"{name} is damaged: a member has {member.size} bytes")
            archive.members = []  # type: ignore[attr-defined]  # it would keep every header
            contents.allow(archive.offset)
            path = _path_of(member, name)
            parts = path.split("/")[1 : _DEEPEST + 2]
            limit = LARGE if not _KERNEL_FILES.isdisjoint(parts) else _LARGEST_SETTINGS
            if limit != LARGE and _SETTINGS.isdisjoint(parts):
                continue
            # The last member of a name counts, as when tar unpacks it.
            kept[path] = found = _contents_of(archive, member, kept, limit)
            size += len(path) + _COST + (len(found) if isinstance(found, bytes) else 0)
            if size > MOST_KEPT:
                raise InputError(f"{name} has more than {MOST_KEPT} bytes of settings and kernel files: unpack it")
    raise InputError(f"{name} has more than {MOST_MEMBERS} members: it cannot be a saved tree")


def _path_of(member: tarfile.TarInfo, name: str) -> str:
    """Return a member's path with a leading slash.

    :raise InputError: it has ".."
    """
    path = _absolute(member.name)
    if ".." in path.split("/"):
        raise InputError(f"{name} has a member that leads out of it: {member.name[:200]}")
    return path


def _absolute(name: str) -> str:
    """Return a name with a leading slash, without empty parts and "."."""
    return "".join(f"/{part}" for part in name.split("/") if part not in ("", "."))


def _contents_of(
    archive: tarfile.TarFile, member: tarfile.TarInfo, kept: dict[str, _Member | None], limit: int
) -> _Member | None:
    if member.isdir():
        return None
    if member.issym():
        return _Link(member.linkname)
    if member.islnk():
        linked = kept.get(_absolute(member.linkname))
        return linked if isinstance(linked, bytes) else _Refused("is a hard link to a file that is not in the tree")
    if not member.isreg():
        return _Refused("is not a regular file")
    if member.size > limit:
        return _Refused(f"has more than {limit} bytes: it cannot be the expected file")
    opened = archive.extractfile(member)
    data = b"" if opened is None else opened.read(member.size)
    if len(data) != member.size:
        raise tarfile.ReadError("a file ends early")
    return data


class _Contents:
    """The decompressed bytes of an archive, forwards, up to a bound that moves with the members."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        self._pieces = _decompress(file, name)
        self._buffer = b""
        self._end = b""
        self.position = 0
        """Bytes read so far."""
        self._bound = 0
        self.allow(0)

    def allow(self, offset: int) -> None:
        """Allow reading up to the header at *offset*, with that header."""
        self.is_first_header = offset == 0
        self._bound = offset + _LARGEST_HEADER

    def read(self, size: int) -> bytes:
        """Return *size* bytes, fewer at the end.

        :raise InputError: that exceeds the bound
        """
        while len(self._buffer) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._buffer += piece
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        self.position += len(data)
        if self.position > MOST_DECOMPRESSED:
            raise self.too_many_bytes()
        if self.position > self._bound:
            raise InputError(f"{self._name} has too many bytes in a member's header: it cannot be a saved tree")
        self._end = (self._end + data)[-2 * tarfile.RECORDSIZE :]
        return data

    def too_many_bytes(self) -> InputError:
        """Return the error for contents beyond MOST_DECOMPRESSED."""
        return InputError(
            f"{self._name} has more than {MOST_DECOMPRESSED} bytes of contents: it cannot be a saved tree"
        )

    def check_end(self, offset: int) -> None:
        """Check that a block of zeros is at *offset*, and read what is left: tarfile also stops at a damaged header.

        :raise InputError: it is truncated or damaged
        """
        start = offset - (self.position - len(self._end))
        if self._end[start : start + _BLOCK] != bytes(_BLOCK):
            raise InputError(f"{self._name} is truncated or damaged after {offset} bytes of contents")
        self._bound = MOST_DECOMPRESSED
        while self.read(_PART):
            pass


def _decompress(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the contents in parts of 64 KiB."""
    start = file.read(6)
    file.seek(0)
    try:
        if start.startswith(b"\x1f\x8b"):
            yield from iter(partial(gzip.GzipFile(fileobj=file).read, _PART), b"")
        elif start.startswith(b"BZh"):
            import bz2  # noqa: PLC0415 (a Python may lack it)

            yield from _decompress_streams(file, bz2.BZ2Decompressor)
        elif start == b"\xfd7zXZ\0":
            import lzma  # noqa: PLC0415

            try:
                yield from _decompress_streams(file, partial(lzma.LZMADecompressor, memlimit=_DICTIONARY))
            except lzma.LZMAError as error:
                raise InputError(f"{name} is damaged: {error}") from error
        else:
            yield from iter(partial(file.read, _PART), b"")
    except ImportError as error:
        raise CannotTellError(f"{name} cannot be read: this Python cannot decompress it ({error})") from error


def _decompress_streams(file: BinaryIO, new: Callable[[], _Decompressor]) -> Iterator[bytes]:
    """Yield the contents of compressed streams, one behind the other as parallel compressors write them."""
    data = file.read(_PART)
    while data:
        decompressor = new()
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = file.read(_PART)
                if not data:
                    raise EOFError("the compressed data ends early")
            yield decompressor.decompress(data, _PART)
            data = b""
        data = (decompressor.unused_data or file.read(_PART)).lstrip(b"\0")  # xz pads its streams


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...
