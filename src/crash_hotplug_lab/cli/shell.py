"""``crash-hotplug-lab shell``: a guest with a shell on this terminal."""

from __future__ import annotations

import argparse

from crash_hotplug_lab.cli.kernel_options import add_kernel, chosen_kernels
from crash_hotplug_lab.cli.main import missing_extra

DESCRIPTION = "Boots a guest with a shell on this terminal."
EXAMPLES = """\
examples:
  crash-hotplug-lab shell --kernel 6.12
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_kernel(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return the guest's exit code."""
    try:
        from crash_hotplug_lab.qemu import session  # noqa: PLC0415

        kernel = chosen_kernels(arguments, ["6.12"])[0]
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    print(session.HELLO.format(release=kernel.release), flush=True)
    return session.run_shell(kernel)
