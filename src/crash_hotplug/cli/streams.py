# SPDX-License-Identifier: MIT
"""The standard streams of a process: full disks, closed descriptors and bytes that no encoding has.

A report that could not be written is an error, so that no script takes it for an empty one.  A message on standard
error that could not be written is not: the work goes on, as the service does while the journal is full.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STDOUT, _STDERR = 1, 2


class OutputError(Exception):
    """Standard output cannot be written; the message is a sentence.  No OSError: nothing may take it for a file's."""


class _Output(io.FileIO):
    def write(self, data: Any) -> int | None:  # type: ignore[override]  # noqa: ANN401 (any buffer)
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"standard output cannot be written: {error.strerror}") from None


class _Messages(io.FileIO):
    def write(self, data: Any) -> int:  # noqa: ANN401 (any buffer)
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


def protect_streams() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that behave as this module promises.

    Both write characters without an encoding, such as a path's byte 0xff, with a backslash.
    """
    _fill_closed_descriptors()
    sys.stdout = _text_stream(_Output(_STDOUT, "w", closefd=False), sys.stdout)
    sys.stderr = _text_stream(_Messages(_STDERR, "w", closefd=False), sys.stderr, is_line_buffered=True)


def _text_stream(raw: io.FileIO, before: Any, is_line_buffered: bool = False) -> io.TextIOWrapper:  # noqa: ANN401
    encoding = "utf-8" if before is None else before.encoding  # None: the descriptor was closed at the start
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=is_line_buffered or raw.isatty()
    )


def _fill_closed_descriptors() -> None:
    """Open /dev/null for reading in place of closed standard descriptors.

    Otherwise the next file that is opened gets the number, and a child process writes its messages into that file.
    A write fails with EBADF, as on a closed descriptor.
    """
    for descriptor in range(_STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)  # gets the lowest free number, which is this


def discard_output() -> None:
    """Drop the buffered output, which Python writes again at exit, and everything written later."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
