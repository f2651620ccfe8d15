# SPDX-License-Identifier: MIT
"""Whether an initramfs holds a kernel module.

An initramfs is a row of "newc" cpio archives, the last of which may be compressed as a whole
(Documentation/driver-api/early-userspace).  Python's standard library reads gzip, bzip2, xz and lzma.  For zstd and lz4
the programs of these names are run, which a distribution that compresses so has installed.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, Callable

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.programs import SEARCH
from crash_hotplug.linux.sysroot import Sysroot

_LIMIT = 4 << 30
"""Bytes, uncompressed; no initramfs fits into a crash kernel's reservation that has more."""
_HEADER = re.compile(rb"07070[12]([0-9A-Fa-f]{104})")
_HEADER_SIZE = 110
_MAGICS = (b"070701", b"070702")
_PART = 1 << 20
_LONGEST_NAME = 4096
"""PATH_MAX, which the kernel allows as well."""
_TRAILER = "TRAILER!!!"
_MAGIC_SIZE = 6
_IMAGE = re.compile(r"(?:^|/)(?:squash|squashfs|erofs)-root\.img$")
"""The file system image in which dracut's modules squash and squash-erofs keep all but the first files."""

_COMPRESSIONS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
    b"\x5d\0\0": lzma.LZMAFile,
}
_PROGRAMS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\x04\x22\x4d\x18": "lz4"}


def has_module(sysroot: Sysroot, path: str, module: str) -> bool:
    """Return whether an initramfs holds a kernel module.

    :param module: its name with underscores, such as ``virtio_mem``
    :raise CannotTellError: the file is missing, may not be read, or is compressed in a way that cannot be read here
    :raise InputError: it is not a regular file
    """
    file = sysroot.open(path)
    if file is None:
        raise CannotTellError(f"{sysroot.locate(path)} does not exist")
    wanted = re.compile(rf"(?:^|/){module.replace('_', '[_-]')}\.ko(?:\.\w+)?$")
    with file:
        try:
            image = None
            for name in _names(file, sysroot.locate(path)):
                if wanted.search(name):
                    return True
                image = name if _IMAGE.search(name) else image
        except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
            raise CannotTellError(f"{sysroot.locate(path)} is not an initramfs that can be read: {error}") from error
    if image is not None:
        where = f"the files are in {image} in it, which cannot be read here"
        raise CannotTellError(f"{where}; `lsinitrd {path} | grep {module}` shows whether the driver is there")
    return False


def _names(raw: BinaryIO, located: str) -> Iterator[str]:
    """Yield the name of each file, of all archives."""
    file = _buffered(raw)
    while magic := _skip_zeros(file):
        if magic in _MAGICS:
            yield from _archive(file)
            continue
        for start, open_compressed in _COMPRESSIONS.items():
            if magic.startswith(start):
                yield from _archives(open_compressed(file))
                return
        program = next((name for start, name in _PROGRAMS.items() if magic.startswith(start)), None)
        if program is None:
            raise ValueError(f"it has {magic.hex(' ')} where an archive should begin")
        with _uncompressed(program, raw, file.tell(), located) as archives:
            yield from _archives(archives)
        return


def _buffered(file: Any) -> io.BufferedReader:  # noqa: ANN401 the files of several modules
    return io.BufferedReader(file, _PART)


def _archives(file: IO[bytes]) -> Iterator[str]:
    """Yield the names in the archives that were compressed together."""
    buffered = _buffered(file)
    while magic := _skip_zeros(buffered):
        if magic not in _MAGICS:
            raise ValueError("there is no archive in the compressed part")
        yield from _archive(buffered)


@contextlib.contextmanager
def _uncompressed(program: str, raw: BinaryIO, offset: int, located: str) -> Iterator[IO[bytes]]:
    """Run a program that uncompresses a file from an offset on; it is ended when the block ends."""
    found = shutil.which(program, path=SEARCH)
    if found is None:
        raise CannotTellError(f"{located} is compressed with {program}, and there is no program {program}")
    raw.seek(offset)
    with tempfile.TemporaryFile() as copy:  # a file in an archive has no descriptor
        shutil.copyfileobj(raw, copy)
        copy.seek(0)
        process = subprocess.Popen([found, "-dc"], stdin=copy, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _skip_zeros(file: io.BufferedReader) -> bytes:
    """Skip the padding between archives; return the first bytes of the next one without taking them."""
    while True:
        start = file.peek(_MAGIC_SIZE)[:_MAGIC_SIZE]
        if not start or start[0]:
            return start
        file.read(len(start) - len(start.lstrip(b"\0")))


def _archive(file: io.BufferedReader) -> Iterator[str]:
    """Yield the names of one archive up to its trailer."""
    taken = 0
    while taken < _LIMIT:
        header = _exactly(file, _HEADER_SIZE)
        match = _HEADER.match(header)
        if match is None:
            raise ValueError("an archive has a header that is none")
        size, name_size = (int(match[1][at : at + 8], 16) for at in (48, 88))
        if name_size > _LONGEST_NAME:
            raise ValueError(f"a name has {name_size} bytes")
        name = _exactly(file, name_size + -(_HEADER_SIZE + name_size) % 4)[:name_size].rstrip(b"\0").decode("latin-1")
        if name == _TRAILER:
            return
        yield name
        left = size + -size % 4
        taken += left
        while left and taken < _LIMIT:
            left -= len(_exactly(file, min(left, _PART)))
    raise ValueError("it has more than 4 GiB")


def _exactly(file: io.BufferedReader, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it ends within an archive")
    return data
