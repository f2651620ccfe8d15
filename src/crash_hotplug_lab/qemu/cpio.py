"""The "newc" cpio archive, the form in which Linux takes an initramfs (Documentation/driver-api/early-userspace).

Several archives one after another are one initramfs to the kernel, so each part is written once and joined per run.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_TRAILER = "TRAILER!!!"


def write_tree(tree: Path, out: BinaryIO) -> None:
    """Write a directory, with its links and modes, as one archive owned by root."""
    number = 1
    for directory, names, files in os.walk(tree):
        names.sort()
        for name in sorted(files) + names:
            path = Path(directory, name)
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path).encode()
            elif stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            else:
                content = b""
            _member(out, number, str(path.relative_to(tree)), status.st_mode, content)
            number += 1
    _end(out)


def write_console(out: BinaryIO) -> None:
    """Write an archive with only ``/dev/console``: the first process has no output without it."""
    _member(out, 1, "dev", stat.S_IFDIR | 0o755, b"")
    _member(out, 2, "dev/console", stat.S_IFCHR | 0o600, b"", device=(5, 1))
    _end(out)


def _end(out: BinaryIO) -> None:
    _member(out, 0, _TRAILER, 0, b"")
    out.write(bytes(-out.tell() % 512))


def _member(out: BinaryIO, number: int, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
    raw = name.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    out.write(head + bytes(-len(head) % 4))
    out.write(content + bytes(-len(content) % 4))
