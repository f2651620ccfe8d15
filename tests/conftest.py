# SPDX-License-Identifier: MIT
"""Settings for every test."""

from __future__ import annotations

import pytest
from hypothesis import settings

from crash_hotplug.cli import output
from crash_hotplug_lab.qemu import results
from tests import schemas

# No test fails on wall-clock time: a busy machine is no fault of the code.
settings.register_profile("crash-hotplug", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=50_000)
settings.load_profile("crash-hotplug")

# Before any command is imported, which would keep the function as it was.
_always = pytest.MonkeyPatch()
_always.setattr(output, "print_json", schemas.checking_print(output.print_json))
_always.setattr(output, "print_json_line", schemas.checking_print(output.print_json_line))
_always.setattr(results, "as_json", schemas.checking(results.as_json))
