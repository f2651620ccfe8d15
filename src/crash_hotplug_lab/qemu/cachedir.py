"""Where the lab keeps what it fetched and built: ``$XDG_CACHE_HOME/crash-hotplug/lab`` (``~/.cache`` by default)."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """Return (and create) a directory of the lab's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    path = Path(base, "crash-hotplug", "lab", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path
