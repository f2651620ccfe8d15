# SPDX-License-Identifier: MIT
"""NamedTuple and Protocol for a program that must start fast.

A type checker sees those of typing.  At run time typing is not imported, and annotations stay strings:
typing.NamedTuple compiles each of them, so that a class costs three times as much (1.6 million instructions, 0.4 here).
"""

from __future__ import annotations

from collections import namedtuple

__all__ = ["NamedTuple", "Protocol"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple, Protocol
else:
    Protocol = object

    class _NamedTupleMeta(type):
        def __new__(cls, name, bases, namespace):  # noqa: ANN001, ANN204
            """Make a named tuple of the annotated fields; add the methods and properties of the class body."""
            fields = namespace.get("__annotations__", {})
            defaults = [namespace[field] for field in fields if field in namespace]
            made = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
            for key, value in namespace.items():
                if key not in fields and key != "__module__":
                    setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_NamedTupleMeta, "NamedTuple", (), {})
