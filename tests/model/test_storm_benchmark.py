"""How long a storm of 3840 memory blocks takes to simulate.

``pytest tests/model/test_storm_benchmark.py --benchmark-enable`` shows it; nothing here asserts a time.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from crash_hotplug.model.storm import StormOutcome, simulate_storm
from crash_hotplug.model.storm_costs import RFC_2020
from crash_hotplug.model.storm_policies import POLICIES
from crash_hotplug.model.storm_published import MANY_DIMMS


@pytest.mark.parametrize("policy", list(POLICIES))
def test_storm_of_3840_blocks(benchmark: BenchmarkFixture, policy: str) -> None:
    outcome: StormOutcome = benchmark(simulate_storm, MANY_DIMMS, RFC_2020, POLICIES[policy])
    assert outcome.last_event > 0
