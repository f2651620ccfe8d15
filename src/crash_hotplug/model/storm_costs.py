"""What each step of a storm of memory blocks costs, and where each figure comes from.

Two publications have times of the same storm, a guest that grows from 32 to 512 GiB, 3840 memory blocks of 128 MiB:

* the *RFC*: Eric DeVolder, "[RFC]: kexec: change to handle memory/cpu changes", kexec and linux-kernel lists,
  14 December 2020: a table of four times, RHEL 7 and RHEL 8, one DIMM of 480 GB and 480 DIMMs of 1 GB;
* the *write-up*: "Crash hotplug: Kernel handling of CPU and memory hot un/plug", Oracle Linux blog,
  9 January 2024: scaling took 144 s, kdumpctl and kexec were active for 389 s.

Neither has the cost of one reload, one event or one DIMM; those below are quotients of the published times.  The two
contradict each other about where the 389 s come from, so there are two sets (see storm_published.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from crash_hotplug.core.errors import InputError

LONGEST = 86400.0
"""The largest cost accepted, in seconds."""


@dataclass(frozen=True)
class Cost:
    """One cost and its source."""

    value: float
    """Seconds; for ``reload_gap`` a share between 0 and 1."""
    source: str
    """Where the figure comes from, for people."""


@dataclass(frozen=True)
class StormCosts:
    """Every cost of a storm.  Reloads, events and in-place updates were timed on different machines."""

    event: Cost
    """Bringing one memory block online: kernel, udev's rule, and the next block's turn."""
    dimm: Cost
    """Plugging one DIMM: the emulator's monitor, ACPI and the kernel, before its first block goes online."""
    reload: Cost
    """One ``kdumpctl reload`` from start to end."""
    reload_gap: Cost
    """The share of a reload, at its end, during which no image is loaded."""
    kernel_update: Cost
    """One update by the kernel's own handler, during which no image is loaded."""
    in_place_look: Cost
    """Reading the machine and building its header in user space, with the image in its place."""
    in_place_update: Cost
    """One kexec_load that replaces only the elfcorehdr, during which no image is loaded."""

    def with_values(self, values: Mapping[str, float]) -> StormCosts:
        """Return these costs with some replaced.

        :param values: cost by field name
        :raise InputError: a value is negative, too large, not a number, or a share over 1
        """
        for name, value in values.items():
            limit = 1.0 if name == "reload_gap" else LONGEST
            if not math.isfinite(value) or not 0 <= value <= limit:
                raise InputError(
                    f"the {name.replace('_', '-')} cost is {value:g}; it has to be between 0 and {limit:g}"
                )
        return replace(self, **{name: Cost(value, "given by the user") for name, value in values.items()})

    def items(self) -> list[tuple[str, Cost]]:
        """Return every cost with its field name, in the order above."""
        return [(field.name, getattr(self, field.name)) for field in fields(self)]


PUBLICATIONS = (
    "RFC: E. DeVolder, kexec: change to handle memory/cpu changes, kexec list, 14 December 2020. "
    "Write-up: Crash hotplug, Oracle Linux blog, 9 January 2024."
)
"""What the sources below are, for people."""

BLOCKS = 3840
"""Memory blocks of 128 MiB in the published storm: 32 to 512 GiB."""
BLOCKS_PER_DIMM = 8
"""Memory blocks in one of its DIMMs of 1 GB."""
_DIMMS = BLOCKS // BLOCKS_PER_DIMM

_EVENT = Cost(
    86 / BLOCKS,
    "86 s / 3840 blocks: RFC, RHEL 8, one DIMM, where the throttle makes reloads so few that the events take the time",
)
_GAP = Cost(
    1.0,
    "an upper bound: kdumpctl's reload() unloads first and loads last (kdump-utils), and no split has been published",
)
_KERNEL_UPDATE = Cost(
    0.0149,
    "middle of 6.7 to 23 ms: crash_handle_hotplug_event on 6.12 under function_graph, an emulated x86_64 guest",
)
_LOOK = Cost(
    0.056,
    "tests/model/test_storm_look.py: this project's reader on a live machine, 33 ms with 192 memory blocks and 5.9 us "
    "for each further one; 4096 blocks at the end; not emulated",
)
_IN_PLACE_UPDATE = Cost(
    0.0068,
    "middle of the medians, 4.8 to 8.8 ms: 180 calls of kexec_load on 5.10 and 6.1, the same kind of emulated guest",
)

RFC_2020 = StormCosts(
    event=_EVENT,
    dimm=Cost(
        (404 - 86) / _DIMMS,
        "(404 s - 86 s) / 480 DIMMs: RFC, 480 DIMMs; 404 s is the middle of RHEL 7's 389 s and RHEL 8's 419 s, which "
        "the RFC puts down to round trips between emulator, kernel and udev",
    ),
    reload=Cost(181 / BLOCKS, "181 s / 3840 reloads: RFC, RHEL 7, one DIMM, where reloads are the bottleneck"),
    reload_gap=_GAP,
    kernel_update=_KERNEL_UPDATE,
    in_place_look=_LOOK,
    in_place_update=_IN_PLACE_UPDATE,
)
"""The RFC's own explanation: many DIMMs take longer because the guest gets them more slowly."""

ORACLE_2024 = replace(
    RFC_2020,
    dimm=Cost(
        (144 - 86) / _DIMMS, "(144 s - 86 s) / 480 DIMMs: the write-up's 144 s of scaling less the blocks' events"
    ),
    reload=Cost(389 / BLOCKS, "389 s / 3840 reloads: the write-up, kdumpctl and kexec active for 389 s"),
)
"""The write-up's: all memory is there after 144 s, and reloads that queued up go on until 389 s."""

COST_SETS: Mapping[str, StormCosts] = {"rfc-2020": RFC_2020, "oracle-2024": ORACLE_2024}
"""The cost sets by the name a person gives; the first is the default."""
