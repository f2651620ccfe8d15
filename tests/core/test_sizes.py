# SPDX-License-Identifier: MIT
"""Sizes and counts in words."""

from __future__ import annotations

import doctest

import pytest

from crash_hotplug.core import sizes


def test_docstring_examples_are_right() -> None:
    assert doctest.testmod(sizes).failed == 0


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        ((1 << 20) - 100, "1023.9 KiB"),
        (1 << 70, "1024 EiB"),
        (-4096, "-4 KiB"),
    ],
)
def test_human_size_in_words(size: int, words: str) -> None:
    assert sizes.human_size(size) == words


@pytest.mark.parametrize(("number", "words"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries"), (11, "11 entries")])
def test_count_has_the_plural_for_all_but_one(number: int, words: str) -> None:
    assert sizes.count(number, "entry", "entries") == words
    assert sizes.count(number, "CPU") == f"{number} CPU{'s' * (number != 1)}"
