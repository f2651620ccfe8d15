# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab shell``: boots a guest with a shell on this terminal."""

from __future__ import annotations

import argparse

from crash_hotplug_lab.cli.kernel_options import add_kernel, chosen_kernels
from crash_hotplug_lab.cli.main import needs_extras

DESCRIPTION = "Boots a guest with a shell on this terminal."
EXAMPLES = """\
examples:
  crash-hotplug-lab shell --kernel 6.12
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_kernel(parser)


@needs_extras
def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the guest's exit code."""
    from crash_hotplug_lab.qemu import session  # noqa: PLC0415

    kernel = chosen_kernels(arguments, ["6.12"])[0]
    loader = "s" if kernel.is_built else kernel.architecture.distribution_loader
    print(session.HELLO.format(release=kernel.release, loader=loader), flush=True)
    return session.run_shell(kernel)
