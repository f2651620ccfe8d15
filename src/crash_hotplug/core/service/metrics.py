# SPDX-License-Identifier: MIT
"""The text format of Prometheus, as node_exporter's textfile collector reads it (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One metric with its samples."""

    name: str
    """Letters, digits and underscores; a counter's ends in ``_total``."""
    kind: str
    """``counter`` or ``gauge``."""
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]
    """Labels and value of each sample."""


def exposition(families: Iterable[Family]) -> str:
    """Return the text; a family without samples is left out."""
    lines = []
    for family in families:
        if family.samples:
            lines += [f"# HELP {family.name} {_escape_help(family.help)}", f"# TYPE {family.name} {family.kind}"]
            lines += [f"{family.name}{_labels(labels)} {_number(value)}" for labels, value in family.samples]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape_value(value)}"' for name, value in labels.items()) + "}"


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_value(text: str) -> str:
    return _escape_help(text).replace('"', '\\"')


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6f}"
