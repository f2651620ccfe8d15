# SPDX-License-Identifier: MIT
"""The bundled scenarios, read once."""

from __future__ import annotations

from crash_hotplug_lab.scenario.file import bundled_scenarios
from crash_hotplug_lab.scenario.records import Scenario

BUNDLED: list[Scenario] = bundled_scenarios()
