# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab fetch``: downloads or renews the kernels, QEMU and the guests' userland."""

from __future__ import annotations

import argparse

from crash_hotplug.cli import exit_codes
from crash_hotplug_lab.cli.kernel_options import add_architecture, kernel_keys
from crash_hotplug_lab.cli.main import needs_extras

DESCRIPTION = """\
Downloads or renews kernels, QEMU and the guests' userland through apt's own configuration, and unpacks them
in the cache.  Installs nothing.  `run` fetches missing parts by itself.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab fetch                  every known kernel
  crash-hotplug-lab fetch --kernel 6.12
  crash-hotplug-lab fetch --arch arm64     every arm64 kernel
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_architecture(parser)
    parser.add_argument("--kernel", action="append", default=[], metavar="K", help="key of a kernel, or all")


@needs_extras
def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crash_hotplug_lab.cli.progress import say  # noqa: PLC0415
    from crash_hotplug_lab.qemu import session  # noqa: PLC0415
    from crash_hotplug_lab.qemu.guest_architecture import architecture_of  # noqa: PLC0415

    architecture = architecture_of(arguments.arch)
    keys = kernel_keys(arguments.kernel or ["all"], architecture)
    for kernel in session.prepare(keys, say, again=True, architecture=architecture):
        print(f"{kernel.name:6} {kernel.release}  ({kernel.version}, userland of {kernel.userland})")
    return exit_codes.DONE
