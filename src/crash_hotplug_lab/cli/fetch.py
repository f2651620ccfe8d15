"""``crash-hotplug-lab fetch``: download or renew the kernels, QEMU and the guests' userland."""

from __future__ import annotations

import argparse

from crash_hotplug.cli import exit_codes
from crash_hotplug_lab.cli.kernel_options import kernel_keys
from crash_hotplug_lab.cli.main import missing_extra

DESCRIPTION = """\
Downloads kernels, QEMU and the guests' userland through apt's own configuration, or renews them, and unpacks
them in the cache.  Nothing is installed.  `run` fetches what it needs by itself.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab fetch                  every known kernel
  crash-hotplug-lab fetch --kernel 6.12
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--kernel", action="append", default=[], metavar="K", help="key of a kernel, or all")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    try:
        from crash_hotplug_lab.cli.progress import say  # noqa: PLC0415
        from crash_hotplug_lab.qemu import kernels, session  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    for kernel in session.prepare(kernel_keys(arguments.kernel) or list(kernels.KNOWN), say, again=True):
        print(f"{kernel.key:6} {kernel.release}  ({kernel.version}, userland of {kernel.userland})")
    return exit_codes.DONE
