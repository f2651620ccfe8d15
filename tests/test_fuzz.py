# SPDX-License-Identifier: MIT
"""A short fuzzing run; ``make fuzz`` runs 200,000 inputs."""

from __future__ import annotations

from tests.fuzz import fuzz


def test_mutated_captures_end_in_an_answer_or_a_sentence() -> None:
    counts = fuzz(4000, seed=20261122, say=lambda line: None)
    assert counts["answered"] > 200
    assert counts["refused"] > 200
