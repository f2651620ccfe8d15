"""``crash-hotplug lab``: real kernels under QEMU, hot-plugged, crashed and compared with the truth."""

from __future__ import annotations

import argparse
import importlib

from crash_hotplug.cli.arguments import add_json
from crash_hotplug.core.errors import InputError
from crash_hotplug.lab.distro.sides import SIDES

DESCRIPTION = """\
Boots real kernels under QEMU, loads a crash image, adds and removes CPUs and memory, panics, and compares
the vmcore with what was really there.  Kernels, QEMU and the guest's userland are Debian's: downloaded
through apt's own configuration, unpacked in the cache, never installed.  Needs no root.

`lab run` exits with 1 when a run was not as its scenario expects.  A fault of the kernel that is known and
came as expected is FAULT, and no failure.
"""
EXAMPLES = """\
examples:
  crash-hotplug lab run                                    the default scenario on 6.1 and 6.12
  crash-hotplug lab run remove-dimm --kernel 7.2           one scenario, one kernel
  crash-hotplug lab run --all --loader all -j 2            everything, on the default kernels
  crash-hotplug lab run --kernel bzImage --modules lib/modules/6.17.0-mine
  crash-hotplug lab list --json                            scenarios, kernels, combinations known not to work
  crash-hotplug lab shell --kernel 6.12                    a guest to look around in

The lab needs its extra packages: pip install crash-hotplug[lab]
"""
_RUN = """\
Runs each scenario on each kernel with each loader and each way of updating the image that the scenario has
expectations for.  Results, serial logs, snapshots and report.html go to one directory.
"""
_DEBIAN = """\
Boots a full Debian (systemd, udev, kdump-tools) under QEMU, plugs four DIMMs and two CPUs, panics on one of
them, and lets kdump-tools save the dump by itself: once as it is, once with this project's package installed.
The image is built without root on the first run and kept in the cache.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's own commands."""
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)
    fetch = commands.add_parser("fetch", help="download or renew kernels, QEMU and the guest's userland")
    fetch.add_argument("--kernel", action="append", default=[], metavar="K", help="key of a kernel, or all")
    listing = commands.add_parser("list", help="the scenarios, kernels and combinations there are")
    add_json(listing)
    run_parser = commands.add_parser("run", help="run scenarios", description=_RUN)
    run_parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="bundled name or FILE.toml")
    run_parser.add_argument("--all", action="store_true", help="every bundled scenario")
    _add_kernel(run_parser)
    run_parser.add_argument("--loader", action="append", default=[], metavar="c|s|ch|all", help="how to load the image")
    run_parser.add_argument(
        "--update", action="append", default=[], metavar="U", help="nothing, kernel, reload, in-place or watch"
    )
    run_parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="guests at a time (default 1)")
    run_parser.add_argument("-o", "--output", metavar="DIR", help="where results go (default: a new one in the cache)")
    run_parser.add_argument("--repeat", type=int, default=1, metavar="N", help="every run N times (random moments)")
    run_parser.add_argument(
        "--count-instructions",
        action="store_true",
        help="let the guest's clock count instructions, a nanosecond each: what it measures is the same every time "
        "(no KVM, slow; on 6.12 and newer no CPU can be plugged)",
    )
    run_parser.add_argument("--keep", action="store_true", help="keep each vmcore")
    run_parser.add_argument("--ktap", action="store_true", help="print the results as KTAP")
    add_json(run_parser)
    shell = commands.add_parser("shell", help="a guest with a shell on this terminal")
    _add_kernel(shell)
    debian = commands.add_parser(
        "debian", help="a full Debian guest with kdump-tools, without this package and with it", description=_DEBIAN
    )
    debian.add_argument("--release", default="bookworm", metavar="R", help="bullseye, bookworm (default) or trixie")
    debian.add_argument("--deb", metavar="FILE", help="this project's package; without it only that side is run")
    debian.add_argument("--side", choices=tuple(SIDES), help="only this side")
    debian.add_argument("--storm", action="store_true", help="16 DIMMs of 2 GiB and 6 CPUs at once, and no panic")
    debian.add_argument("--build", action="store_true", help="only build the guest's disk image, and say where it is")
    debian.add_argument("--rebuild", action="store_true", help="build the image anew, from the newest packages")
    debian.add_argument("-o", "--output", metavar="DIR", help="where results go (default: a new one in the cache)")
    report = commands.add_parser("report", help="write report.html anew from a result.json")
    report.add_argument("directory", nargs="?", metavar="DIR", help="of the results (default: the latest)")


def _add_kernel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kernel", action="append", default=[], metavar="K", help="key (`lab list`), all, or a vmlinuz"
    )
    parser.add_argument("--modules", metavar="DIR", help="the modules of a kernel given as a file")
    parser.add_argument("--userland", default="trixie", metavar="RELEASE", help="userland of such a kernel (trixie)")


def run(arguments: argparse.Namespace) -> int:
    """Run the lab's command, which is imported only now: the lab's packages are an extra."""
    try:
        commands = importlib.import_module("crash_hotplug.cli.lab_commands")
    except ModuleNotFoundError as error:
        raise InputError(f"the lab needs the Python package {error.name}: pip install crash-hotplug[lab]") from None
    code: int = commands.COMMANDS[arguments.lab_command](arguments)
    return code
