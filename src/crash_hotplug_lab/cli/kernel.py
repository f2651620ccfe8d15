# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab kernel``: builds the kernels that no package has."""

from __future__ import annotations

import argparse

from crash_hotplug.cli import exit_codes
from crash_hotplug_lab.cli.main import needs_extras

DESCRIPTION = """\
Builds kernels that no package has, from Debian's source packages: arm64 kernels with kexec_file_load, and
x86_64 kernels with a patch of docs/upstream.  Compiler and tools are unpacked in the cache and run there in
a user namespace.  A build takes 10 minutes on two processors, and 4 GiB of the cache while it runs.  The
kernel stays in the cache.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab kernel build                    every kernel that is not there yet
  crash-hotplug-lab kernel build 6.12f
  crash-hotplug-lab kernel build 7.2b 7.2p          7.2 without patches and with them
  crash-hotplug-lab run --arch arm64 --kernel 6.12f
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("action", choices=("build",), help="build kernels")
    parser.add_argument(
        "keys", nargs="*", default=[], metavar="KEY", help="key of a kernel (default: each that is not there yet)"
    )


@needs_extras
def run(arguments: argparse.Namespace) -> int:
    """Build kernels.

    :raise LabError: a kernel cannot be built
    """
    from crash_hotplug_lab.cli.progress import say  # noqa: PLC0415
    from crash_hotplug_lab.qemu import kernel_build, kernels  # noqa: PLC0415

    known = kernel_build.built_kernels()
    for key in arguments.keys or known:
        kernel = None if arguments.keys else kernels.ready(key, known[key])
        if kernel is None:
            kernel = kernel_build.build(key, say)
        print(f"{kernel.name:10} {kernel.release}  ({kernel.version}, userland of {kernel.userland})")
    return exit_codes.DONE
