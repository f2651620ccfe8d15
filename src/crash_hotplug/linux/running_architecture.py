# SPDX-License-Identifier: MIT
"""The architecture of the running machine, with the page size of its kernel."""

from __future__ import annotations

import os
from functools import lru_cache

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.arch.supported import NAMES, architecture_named
from crash_hotplug.core.errors import InputError


@lru_cache(maxsize=1)
def running_architecture() -> Architecture:
    """Return it.

    :raise InputError: it is not supported
    """
    name = os.uname().machine
    architecture = architecture_named(name)
    if architecture is None:
        raise InputError(f"this machine is {name}; supported are {NAMES}")
    return architecture._replace(page_size=os.sysconf("SC_PAGE_SIZE"))
