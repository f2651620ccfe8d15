"""The lab's command line: the product's machinery with the lab's commands."""

from __future__ import annotations

from collections.abc import Sequence

from crash_hotplug.cli import main as product
from crash_hotplug.cli.main import Program
from crash_hotplug.core.errors import InputError

CRASH_HOTPLUG_LAB = Program(
    "crash-hotplug-lab",
    """\
Proves crash-hotplug: `simulate` and `explore` run a model of the whole system in memory, in seconds and
without root; `run` boots real kernels under QEMU, hot-plugs, panics, and compares the vmcore with what was
there.  Kernels, QEMU and the guests' userland are Debian's: downloaded through apt's own configuration,
unpacked in the cache, never installed.
""",
    "crash_hotplug_lab.cli",
    {
        "simulate": "run a model of the whole system: hot-plug, panic, dump",
        "explore": "panic the model at every step of every interleaving",
        "run": "run scenarios on real kernels under QEMU",
        "list": "show the scenarios, kernels and combinations that are known not to work",
        "fetch": "download or renew kernels, QEMU and the guests' userland",
        "shell": "boot a guest with a shell on this terminal",
        "guest": "boot a full Debian with its own kdump, without crash-hotplug and with it",
        "bench": "measure an update in place on this machine, beside a full reload",
        "report": "write report.html anew from a result.json",
    },
)

_EXTRAS = ("qemu", "rich", "elftools", "tomli", "matplotlib")


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    return product.main(arguments, CRASH_HOTPLUG_LAB)


def missing_extra(error: ModuleNotFoundError) -> InputError:
    """Return the sentence for a library that the lab needs and this Python lacks.

    :raise ModuleNotFoundError: the module is none of the lab's extras
    """
    name = (error.name or "").split(".")[0]
    if name not in _EXTRAS:
        raise error
    return InputError(f"the lab needs the Python package {name}; install it with: pip install '.[lab]'")
