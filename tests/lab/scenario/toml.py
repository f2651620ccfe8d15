# SPDX-License-Identifier: MIT
"""Whether this Python can read TOML."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from crash_hotplug_lab.scenario.file import bundled_scenarios
from crash_hotplug_lab.scenario.records import Scenario

HAS_TOML = any(find_spec(module) for module in ("tomllib", "tomli"))
needs_toml = pytest.mark.skipif(not HAS_TOML, reason="tomllib came with Python 3.11, and tomli is not installed")
BUNDLED: list[Scenario] = bundled_scenarios() if HAS_TOML else []
