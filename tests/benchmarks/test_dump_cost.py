# SPDX-License-Identifier: MIT
"""`audit` of a compressed dump of 1 TiB takes less than a second and 50 MB."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.dump_cost import cost, write_dump


@pytest.mark.parametrize("is_mixed", [False, True])
def test_audit_of_a_dump_of_1_tib_is_a_bounded_multiple_of_an_empty_process(tmp_path: Path, is_mixed: bool) -> None:
    write_dump(tmp_path / "vmcore", is_mixed)
    seconds, ratio, memory = cost(tmp_path / "vmcore")
    print(f"1 TiB: {seconds:.2f} s, {ratio:.0f} times the CPU time of python3 -c pass, {memory >> 20} MiB")  # noqa: T201
    assert ratio < 60
    assert memory < 50_000_000
