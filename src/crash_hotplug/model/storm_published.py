"""The published times of the storm beside the simulated ones, and what cannot be reproduced.

The two publications (storm_costs.py names them) agree that RHEL 7 needed 389 s for 480 DIMMs, and not on why.  The RFC
says that memory arrived that slowly; the write-up says that it was all there after 144 s and reloads were behind.  One
set of costs can follow only one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Callable

from crash_hotplug.model.storm import StormOutcome, StormShape, simulate_storm
from crash_hotplug.model.storm_costs import BLOCKS, BLOCKS_PER_DIMM, COST_SETS, StormCosts
from crash_hotplug.model.storm_policies import POLICIES, ReloadPerEvent, ThrottledReload

TOLERANCE = 0.05
"""Relative difference up to which a published figure counts as reproduced."""

ONE_DIMM = StormShape(BLOCKS, BLOCKS)
MANY_DIMMS = StormShape(BLOCKS, BLOCKS_PER_DIMM)


@dataclass(frozen=True)
class PublishedFigure:
    """One published figure and how to get the same from a simulation."""

    what: str
    source: str
    value: float
    shape: StormShape
    policy: str
    measure: Callable[[StormOutcome], float]
    is_an_input_of: Set[str] = frozenset()
    """The cost sets with a cost derived from this very figure: agreement is no evidence there."""
    is_estimate: bool = False
    """Whether its author computed it instead of counting."""

    @property
    def unit(self) -> str:
        """``s``, or ``reloads``."""
        return "reloads" if self.measure is _reloads else "s"


def _end(outcome: StormOutcome) -> float:
    return outcome.end


def _last_event(outcome: StormOutcome) -> float:
    return outcome.last_event


def _busy(outcome: StormOutcome) -> float:
    return outcome.busy


def _reloads(outcome: StormOutcome) -> float:
    return outcome.replacements


_RFC, _ORACLE = "rfc-2020", "oracle-2024"
_R7, _R8 = ReloadPerEvent.name, ThrottledReload.name

PUBLISHED = (
    PublishedFigure("RHEL 7, one 480 GB DIMM, all processed", "RFC", 181, ONE_DIMM, _R7, _end, {_RFC}),
    PublishedFigure("RHEL 7, 480 1 GB DIMMs, all processed", "RFC", 389, MANY_DIMMS, _R7, _end, {_RFC, _ORACLE}),
    PublishedFigure("RHEL 8, one 480 GB DIMM, all processed", "RFC", 86, ONE_DIMM, _R8, _end, {_RFC, _ORACLE}),
    PublishedFigure("RHEL 8, 480 1 GB DIMMs, all processed", "RFC", 419, MANY_DIMMS, _R8, _end, {_RFC}),
    PublishedFigure("RHEL 7, reloads", "RFC", 3840, MANY_DIMMS, _R7, _reloads),
    PublishedFigure("RHEL 8, one DIMM, reloads", "RFC", 21, ONE_DIMM, _R8, _reloads, is_estimate=True),
    PublishedFigure("RHEL 8, 480 DIMMs, reloads", "RFC", 105, MANY_DIMMS, _R8, _reloads, is_estimate=True),
    PublishedFigure("RHEL 7, scaling done", "write-up", 144, MANY_DIMMS, _R7, _last_event, {_ORACLE}),
    PublishedFigure("RHEL 7, kdumpctl and kexec active", "write-up", 389, MANY_DIMMS, _R7, _busy, {_ORACLE}),
)
"""Every published figure of the storm."""

WHY_NOT = (
    "181 s and 389 s are both RHEL 7, 3840 reloads each. One cost per reload gives both only if the 480 DIMMs arrive "
    "slowly, as the RFC says (rfc-2020): reloads then take 181 s in all and wait for memory the rest of the time.",
    "The write-up says that scaling was done after 144 s and reloads went on until 389 s. Then a reload took 101 ms, "
    "not 47 ms (oracle-2024), and RHEL 7's 181 s and RHEL 8's 419 s cannot be had: a throttle is done a few seconds "
    "after the last event, here after 144 s.",
    "The two would agree if 144 s were the emulator's side only, and the guest went on bringing blocks online until "
    "389 s; neither says so. Other inputs that differ between the columns and were not published: /proc/iomem has one "
    "new range for one DIMM and 480 for 480, and reloads and hot-plug compete for CPUs.",
    "RHEL 8's 419 s and RHEL 7's 389 s for the same DIMMs differ by 8 %; rfc-2020 has one cost per DIMM for both "
    "and stands in the middle, 4 % from each.",
    "The RFC's 21 and 105 reloads were not counted: it divided by the throttle's 4 s. That is right for one DIMM, "
    "where udev is never idle and settle runs into its 3 s. With 480 DIMMs udev is idle between two of them, settle "
    "returns at once, and a round takes little more than its sleep of 1 s: more reloads, not fewer.",
    "A kdumpctl reload of 0.5 to 1 s, as timed elsewhere, cannot be behind either publication: 3840 of them, one "
    "after the other, take 1920 s or more. 47 or 101 ms is what the published times leave for one.",
)
"""What the comparison shows, in sentences."""


@dataclass(frozen=True)
class ComparedFigure:
    """A published figure and what the cost sets give for it."""

    figure: PublishedFigure
    simulated: Mapping[str, float]
    """By the name of the cost set."""

    def difference(self, cost_set: str) -> float:
        """Return the relative difference of the simulated figure, 0.04 for 4 % more than published."""
        return self.simulated[cost_set] / self.figure.value - 1

    def is_reproduced(self, cost_set: str) -> bool:
        """Whether the difference is within the tolerance."""
        return abs(self.difference(cost_set)) <= TOLERANCE


def compare_with_published(cost_sets: Mapping[str, StormCosts] = COST_SETS) -> list[ComparedFigure]:
    """Simulate every published figure with every cost set."""
    outcomes: dict[tuple[str, StormShape, str], StormOutcome] = {}
    compared = []
    for figure in PUBLISHED:
        simulated = {}
        for name, costs in cost_sets.items():
            key = (name, figure.shape, figure.policy)
            if key not in outcomes:
                outcomes[key] = simulate_storm(figure.shape, costs, POLICIES[figure.policy])
            simulated[name] = figure.measure(outcomes[key])
        compared.append(ComparedFigure(figure, simulated))
    return compared
