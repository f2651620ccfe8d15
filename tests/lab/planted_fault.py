# SPDX-License-Identifier: MIT
"""Plant a fault in a module of the product, for as long as a block runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any


@contextmanager
def planted(module: ModuleType, right: str, wrong: str) -> Iterator[None]:
    """Let the functions of *module* be those of its source with *wrong* in place of *right*, which stands there once.

    Only the code of functions is exchanged, so records and errors stay the same classes for everybody.
    """
    source = inspect.getsource(module)
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times in {module.__name__}"
    changed: dict[str, Any] = {"__name__": module.__name__}
    exec(compile(source.replace(right, wrong), str(module.__file__), "exec"), changed)
    functions = {name: value for name, value in vars(module).items() if isinstance(value, FunctionType)}
    own = {name: value for name, value in functions.items() if value.__module__ == module.__name__}
    before = {name: function.__code__ for name, function in own.items()}
    try:
        for name, function in own.items():
            if hasattr(changed[name], "__code__"):
                function.__code__ = changed[name].__code__
        yield
    finally:
        for name, function in own.items():
            function.__code__ = before[name]
