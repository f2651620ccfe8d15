# SPDX-License-Identifier: MIT
"""The options that choose kernels: ``--arch``, ``--kernel``, ``--modules`` and ``--userland``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crash_hotplug.cli.exit_codes import UsageError
from crash_hotplug.core.errors import InputError
from crash_hotplug_lab.scenario.format import ARCHITECTURES

if TYPE_CHECKING:  # qemu/ needs the lab's extras, and --help does not
    from crash_hotplug_lab.qemu.guest_architecture import GuestArchitecture
    from crash_hotplug_lab.qemu.kernels import Kernel


_USERLAND = "trixie"


def add_architecture(parser: argparse.ArgumentParser, of: str = "the guests") -> None:
    """Add ``--arch``.

    :param of: the machines, for --help
    """
    parser.add_argument(
        "--arch", choices=ARCHITECTURES, default=ARCHITECTURES[0], help=f"architecture of {of} (default: x86_64)"
    )


def add_kernel(parser: argparse.ArgumentParser) -> None:
    """Add ``--arch``, ``--kernel``, ``--modules`` and ``--userland``."""
    add_architecture(parser)
    parser.add_argument(
        "--kernel", action="append", default=[], metavar="K", help="key (`crash-hotplug-lab list`), all, or a vmlinuz"
    )
    parser.add_argument("--modules", metavar="DIR", help="directory of the modules of a kernel given as a file")
    parser.add_argument("--kexec", metavar="FILE", help="a statically linked kexec, in place of the userland's")
    parser.add_argument("--userland", metavar="RELEASE", help=f"userland of such a kernel ({_USERLAND})")


def kernel_keys(given: list[str], architecture: GuestArchitecture) -> list[str]:
    """Return the keys of the chosen kernels; ``all`` stands for every one that a package has or that was built here."""
    from crash_hotplug_lab.qemu import kernels  # noqa: PLC0415

    known = architecture.kernels.items()
    there = [key for key, source in known if not source.is_built or kernels.ready(key, architecture) is not None]
    return there if "all" in given else given


def chosen_kernels(arguments: argparse.Namespace, default: list[str]) -> list[Kernel]:
    """Fetch and return the kernels that the options choose.

    :raise InputError: a kernel is not known, or kexec is no static program
    :raise UsageError: a kernel is a file and its modules are not given, or the reverse
    """
    from crash_hotplug_lab.cli.progress import say  # noqa: PLC0415
    from crash_hotplug_lab.qemu import kernels, session  # noqa: PLC0415
    from crash_hotplug_lab.qemu.guest_architecture import architecture_of  # noqa: PLC0415

    architecture = architecture_of(arguments.arch)
    chosen = kernel_keys(arguments.kernel, architecture) or ([] if arguments.modules else default)
    files = [name for name in chosen if "/" in name or Path(name).is_file()]
    if arguments.modules and len(files) != 1:
        raise UsageError("--modules goes with one --kernel that is a file")
    if arguments.userland is not None and not arguments.modules:
        raise UsageError("--userland goes with a kernel that is a file (--kernel and --modules)")
    if files and not arguments.modules:
        raise UsageError(f"{files[0]} is a file; its modules have to be named as well (--modules DIR)")
    kexec = None if arguments.kexec is None else _program(arguments.kexec)
    found: list[Kernel] = session.prepare([name for name in chosen if name not in files], say, False, architecture)
    if files:
        userland = arguments.userland or _USERLAND
        session.prepare_userland(userland, say, False, architecture)
        found.append(kernels.own(Path(files[0]), Path(arguments.modules), userland, architecture))
        session.prepare([], say, False, architecture)
    return [replace(kernel, kexec=kexec) for kernel in found]


def _program(name: str) -> Path:
    """Return the path of a program that needs nothing of a guest.

    :raise InputError: it is no file, or no static ELF program
    """
    try:
        head = Path(name).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    if head[:4] != b"\x7fELF" or b"\0/lib" in head[:4096]:
        raise InputError(f"{name} is not a statically linked program")
    return Path(name)
