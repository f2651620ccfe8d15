# SPDX-License-Identifier: MIT
"""Settings for every test."""

from __future__ import annotations

from hypothesis import settings

# No test fails on wall-clock time: a busy machine is no fault of the code.
settings.register_profile("crash-hotplug", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=50_000)
settings.load_profile("crash-hotplug")
