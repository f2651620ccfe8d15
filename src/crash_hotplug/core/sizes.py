# SPDX-License-Identifier: MIT
"""Sizes, counts and lists of CPUs in words."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def human_size(size: int) -> str:
    """Return *size* bytes in the largest unit that keeps it exact, else with one decimal.

    >>> human_size(256 << 20), human_size(0x9ec00), human_size((1 << 30) - 4096)
    ('256 MiB', '635 KiB', '1.0 GiB')
    """
    if size < 0:
        return f"-{human_size(-size)}"
    unit = 0
    while unit < len(_UNITS) - 1 and size / (1 << (10 * unit)) >= 1023.95:
        unit += 1
    scale = 1 << (10 * unit)
    if size % scale == 0:
        return f"{size // scale} {_UNITS[unit]}"
    return f"{size / scale:.1f} {_UNITS[unit]}"


def count(number: int, one: str, many: str | None = None) -> str:
    """Return the number with its noun: ``1 CPU``, ``2 CPUs``.

    >>> count(1, "CPU"), count(0, "CPU")
    ('1 CPU', '0 CPUs')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def cpu_list(numbers: Iterable[int], limit: int | None = None) -> str:
    """Return CPU numbers in the kernel's list format (``%*pbl``), in ascending order.

    :param limit: how many runs of consecutive numbers are shown; the CPUs of the others are counted

    >>> cpu_list([2, 0, 1, 8]), cpu_list([1, 3, 5, 6], limit=2)
    ('0-2,8', '1,3 and 2 more')
    """
    shown, left = cpu_runs(numbers, limit)
    return f"{','.join(shown)} and {left:,} more" if left else ",".join(shown)


def cpu_runs(numbers: Iterable[int], limit: int | None = None) -> tuple[list[str], int]:
    """Return the parts of :func:`cpu_list`, and how many CPUs are in the parts beyond *limit*."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:limit]]
    return shown, sum(last - first + 1 for first, last in runs[len(shown) :])
