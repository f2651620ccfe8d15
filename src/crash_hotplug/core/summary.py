# SPDX-License-Identifier: MIT
"""Findings as a person reads them: one sentence for the CPUs, and one for the memory ranges, that share a defect.

A machine may lack 4,096 CPUs and 8,192 memory ranges at once.  JSON has each finding for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from crash_hotplug.core.finding import Finding, Kind
from crash_hotplug.core.sizes import cpu_list, human_size

SEPARATE_RANGES = 4
"""Memory ranges with the same defect of which each has a sentence; of more, one sentence has number and total."""
_SHOWN_RANGES = 3
_SHOWN_RUNS = 8
"""Of consecutive CPUs."""
_VERBS = {"is": "are", "was": "were", "saves": "save"}
_PLURALS = ((" its stack", " their stacks"), (" its ", " their "), (" it is ", " they are "))


def summarize(findings: Iterable[Finding]) -> list[str]:
    """Return the sentences of *findings*, in order; those of the same kind and predicate are one, at the first's place.

    Findings that are about neither one CPU nor one range keep their sentences.
    """
    groups: dict[tuple[Kind, str] | int, list[Finding]] = {}
    for number, finding in enumerate(findings):
        predicate = _predicate(finding)
        groups.setdefault((finding.kind, predicate) if predicate else number, []).append(finding)
    return [sentence for group in groups.values() for sentence in _sentences(group)]


def _predicate(finding: Finding) -> str:
    """Return the sentence behind its subject, "CPU N" or "SIZE UNIT at ADDRESS"; empty where it has no such subject."""
    if finding.cpu is not None:
        words = finding.sentence.split(" ", 2)
        is_subject = words[:2] == ["CPU", str(finding.cpu)]
    else:
        words = finding.sentence.split(" ", 4)
        is_subject = len(finding.ranges) == 1 and words[2:4] == ["at", hex(finding.ranges[0].start)]
    return words[-1] if is_subject and words[-1].split(" ", 1)[0] in _VERBS else ""


def _sentences(group: Sequence[Finding]) -> list[str]:
    first = group[0]
    if len(group) == 1 or (first.cpu is None and len(group) <= SEPARATE_RANGES):
        return [finding.sentence for finding in group]
    if first.cpu is not None:
        cpus = cpu_list((finding.cpu for finding in group if finding.cpu is not None), _SHOWN_RUNS)
        return [f"CPUs {cpus} {_plural(_predicate(first))}"]
    size = human_size(sum(finding.size for finding in group))
    shown = ", ".join(f"{human_size(f.size)} at {f.ranges[0].start:#x}" for f in group[:_SHOWN_RANGES])
    left = len(group) - _SHOWN_RANGES
    return [f"{len(group):,} ranges, {size} in all, {_plural(_predicate(first))} ({shown} and {left:,} more)"]


def _plural(predicate: str) -> str:
    verb, _space, rest = predicate.partition(" ")
    for one, many in _PLURALS:
        rest = rest.replace(one, many)
    return f"{_VERBS[verb]} {rest}"
