# SPDX-License-Identifier: MIT
"""The records' base class behaves as typing.NamedTuple does."""

from __future__ import annotations

import pickle
import typing

import pytest

from crash_hotplug.core import records


class Fast(records.NamedTuple):
    """A record."""

    first: int
    """The first field."""
    second: str = "two"

    @property
    def both(self) -> str:
        """Both fields."""
        return f"{self.first} {self.second}"


class Typed(typing.NamedTuple):
    """A record."""

    first: int
    """The first field."""
    second: str = "two"

    @property
    def both(self) -> str:
        """Both fields."""
        return f"{self.first} {self.second}"


def test_record_takes_positions_names_and_defaults() -> None:
    assert Fast(1) == Fast(first=1, second="two") == (1, "two")
    assert Fast(1, "x").both == "1 x"
    assert hash(Fast(1)) == hash((1, "two"))


def test_record_is_immutable_and_replaced() -> None:
    with pytest.raises(AttributeError):
        Fast(1).first = 2  # type: ignore[misc]
    assert Fast(1)._replace(first=3) == Fast(3)


def test_record_with_a_missing_or_unknown_field_is_an_error() -> None:
    with pytest.raises(TypeError):
        Fast()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Fast(1, third=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        records.NamedTuple("Wrong", [("first", int)])  # only the class syntax is known


def test_record_shows_and_describes_itself_as_typing_does() -> None:
    assert repr(Fast(1)) == repr(Typed(1)).replace("Typed", "Fast")
    assert (Fast.__doc__, Fast._fields, Fast._field_defaults) == (Typed.__doc__, Typed._fields, Typed._field_defaults)
    assert (Fast.__module__, Fast.__qualname__) == (__name__, "Fast")


def test_record_survives_pickling() -> None:
    assert pickle.loads(pickle.dumps(Fast(1))) == Fast(1)
