# SPDX-License-Identifier: MIT
"""Sizes, counts and lists of CPUs in words."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core import sizes
from crash_hotplug.linux.cpus import parse_cpu_list


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


@given(st.lists(st.integers(0, 40)))
def test_cpu_list_is_parsed_back(numbers: list[int]) -> None:
    assert parse_cpu_list(sizes.cpu_list(numbers)) == sorted(set(numbers))
    assert len(sizes.cpu_list(numbers).split(",")) == max(1, sum(n - 1 not in numbers for n in set(numbers)))


def test_cpu_list_counts_the_cpus_beyond_its_limit() -> None:
    assert sizes.cpu_list([0, 2, 3, 5], limit=2) == "0,2-3 and 1 more"
    assert sizes.cpu_list([0, 2, 3], limit=2) == "0,2-3"
