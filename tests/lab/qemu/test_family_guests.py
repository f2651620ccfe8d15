# SPDX-License-Identifier: MIT
"""Full guests with the kdump tools of Red Hat and of openSUSE: what their rule does at a hot-plug, without a panic.

KDUMP_UTILS and KDUMP name the sources of the tools, as for `make lab-redhat` and `make lab-suse`; by default they are
looked for in ../shared/upstream.  An image takes ten minutes to build, so a test that finds none is skipped.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from crash_hotplug_lab.distro import run
from crash_hotplug_lab.distro.family import FAMILIES, Family, read_sources
from crash_hotplug_lab.distro.image import MEMORY, DebianImage
from crash_hotplug_lab.distro.sides import WITHOUT

pytestmark = pytest.mark.lab
ROOT = Path(__file__).parent.parent.parent.parent
ONE = run.Plugged("short", 1, 256 << 20, 1, MEMORY, panics=False)
"""One DIMM of two memory blocks, and one CPU."""


def sources(family: Family) -> Path:
    variable = family.project.upper().replace("-", "_")
    given = os.environ.get(variable)
    found = [Path(given)] if given else sorted((ROOT.parent / "shared/upstream").glob(f"*{family.project}-[0-9a-f]*"))
    if not found:
        pytest.skip(f"the sources of {family.project}, which this project does not carry, are not here ({variable})")
    return found[0]


@pytest.mark.parametrize("name", ["redhat", "suse"])
def test_rule_at_a_hotplug(tmp_path: Path, name: str) -> None:
    family = FAMILIES[name]
    image = DebianImage("bookworm", family, read_sources(family, sources(family)))
    if not image.ready:
        pytest.skip(f"the image of the {name} guest is not built (make lab-{name} builds it)")
    result = asyncio.run(run.run(image, WITHOUT, None, tmp_path, print, ONE))
    shown = "\n".join(f"{check.name}: {check.ok} {check.detail}" for check in result.checks)
    assert result.outcome == "pass", f"{result.reason}\n{shown}"
