# SPDX-License-Identifier: MIT
"""What a race of reloads and updates says about itself."""

from __future__ import annotations

from crash_hotplug_lab.distro.kexec_calls import KexecCall
from crash_hotplug_lab.distro.race import overlaps


def test_overlaps_counts_own_loads_near_those_of_kexec() -> None:
    calls = [
        KexecCall("kexec", 10.0, 11.0, True, True),
        KexecCall("python3", 11.5, 11.6, True, False),
        KexecCall("python3", 12.5, 12.6, True, True),
        KexecCall("crash-hotplug", 8.0, 9.5, True, True),
    ]
    assert overlaps(calls) == "2 of 3 loads of crash-hotplug within 1 s of one of 1 calls of kexec; 1 failed"
