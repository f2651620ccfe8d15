# SPDX-License-Identifier: MIT
"""The lab's command line: the product's machinery with the lab's commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING

from crash_hotplug.cli import main as product
from crash_hotplug.cli.main import Program
from crash_hotplug.core.errors import InputError

if TYPE_CHECKING:
    import argparse

CRASH_HOTPLUG_LAB = Program(
    "crash-hotplug-lab",
    """\
Tests crash-hotplug.  `simulate` and `explore` run a model of the whole system in memory, in seconds and
without root.  `run` boots real kernels under QEMU, plugs and unplugs CPUs and DIMMs, panics, and compares the
vmcore with the machine.  Kernels, QEMU and the guests' userland are Debian packages, downloaded through apt's
own configuration and unpacked in the cache.  Nothing is installed.
""",
    "crash_hotplug_lab.cli",
    {
        "simulate": "run a model of the whole system: hot-plug, panic, dump",
        "explore": "panic the model at every step of every interleaving",
        "run": "run scenarios on real kernels under QEMU",
        "list": "show the scenarios, kernels and combinations that are known not to work",
        "fetch": "download or renew kernels, QEMU and the guests' userland",
        "kernel": "build the arm64 kernels that no package has",
        "shell": "boot a guest with a shell on this terminal",
        "guest": "boot a full Debian with its own kdump, without crash-hotplug and with it",
        "bench": "measure an update in place on this machine, beside a full reload",
        "report": "write report.html again, and draw the storms of a session",
    },
)

_LAB_EXTRA = {"qemu": "qemu.qmp", "rich": "rich", "elftools": "pyelftools"}
"""The packages of the ``lab`` extra, by the names under which they are imported.

Messages name packages, because this program is on no index: only a checkout can be installed with ``[lab]``.
"""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    return product.main(arguments, CRASH_HOTPLUG_LAB)


def needs_extras(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Let a command that imports an extra, which this Python may lack, end with a sentence that names the extra.

    A command imports its extras when it runs, because its --help works without them.
    """

    @wraps(run)
    def run_with_extras(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except ModuleNotFoundError as error:
            raise _missing_extra(error) from None

    return run_with_extras


def _missing_extra(error: ModuleNotFoundError) -> InputError:
    """Return the sentence that names the missing package.

    :raise ModuleNotFoundError: the package belongs to no extra
    """
    name = (error.name or "").split(".")[0]
    if name == "matplotlib":
        return InputError("drawing the storms needs matplotlib; install it with: pip install matplotlib")
    if name not in _LAB_EXTRA:
        raise error
    return InputError(f"the lab needs the Python package {name}; install it with: pip install {_LAB_EXTRA[name]}")
