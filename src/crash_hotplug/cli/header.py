# SPDX-License-Identifier: MIT
"""``crash-hotplug header``: write the elfcorehdr that a machine should have."""

from __future__ import annotations

import argparse
import sys

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, add_sysroot, address, read_input
from crash_hotplug.cli.output import print_json, printable
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, parse_elfcorehdr
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.expected import expected_elfcorehdr, loader_of, with_capture_ram
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.sizes import count
from crash_hotplug.linux.atomic_file import write_atomically
from crash_hotplug.linux.crash_image import read_crash_image
from crash_hotplug.linux.kexec_state import read_image_loaded
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot, open_sysroot

DESCRIPTION = """\
Builds the elfcorehdr that describes the machine as it is now and writes it to a file.  Nothing is loaded.

With --from, the new header keeps the backup region and the notes of all possible CPUs of the given header.
With --loader alone, the header is built as that loader would build it.  Without either option, the new header
keeps these parts of the loaded crash image's header, if an image is loaded.
"""
EXAMPLES = """\
examples:
  crash-hotplug header -o now.elf && readelf -lW now.elf
  crash-hotplug header --sysroot case-4711/ --loader kernel -o as-the-kernel-would.elf
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_sysroot(parser)
    parser.add_argument(
        "--from", dest="base", metavar="FILE", help="keep the backup region and the possible CPUs of this header"
    )
    parser.add_argument(
        "--loader",
        "--dialect",
        choices=[loader.value for loader in Loader],
        help="follow the rules of this loader (--dialect is the previous name of the option)",
    )
    parser.add_argument(
        "--backup-region",
        metavar="ADDRESS",
        type=address,
        help="physical address to which purgatory copies the first 640 KiB",
    )
    parser.add_argument(
        "--possible-cpus",
        action="store_true",
        help="describe every possible CPU, as an update in place does",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the file to write; - for standard output"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :raise UsageError: options do not fit together
    """
    if arguments.output == "-" and arguments.json:
        raise exit_codes.UsageError("--json requires a file (-o FILE): standard output gets the header itself")
    sysroot = open_sysroot(arguments.sysroot)
    machine = read_machine(sysroot)
    image = _base_image(arguments, sysroot, machine)
    if image is not None:
        machine = with_capture_ram(machine, image)
    base = None if image is None else parse_elfcorehdr(image.elfcorehdr)
    loader, loaded, backup = _starting_point(arguments, image, base)
    header = expected_elfcorehdr(machine, loader, loaded, backup, possible_cpus=arguments.possible_cpus)
    data = header.to_bytes(header.architecture.padding(loader))
    if arguments.output == "-":
        sys.stdout.buffer.write(data)
        return exit_codes.DONE
    write_atomically(arguments.output, data)
    entries = len(header.program_headers)
    if arguments.json:
        report = {"command": "header", "output": arguments.output, "dialect": loader.value}
        print_json({**report, "entries": entries, "size": header.size, "written": len(data)})
    else:
        print(
            f"wrote {printable(arguments.output)}: {count(entries, 'entry', 'entries')}, {header.size} bytes "
            f"({len(data)} with padding), by the rules of {_whose(loader)}"
        )
    return exit_codes.DONE


def _whose(loader: Loader) -> str:
    return "the kernel" if loader is Loader.KERNEL else "kexec-tools"


def _base_image(arguments: argparse.Namespace, sysroot: Sysroot, machine: Machine) -> CrashImage | None:
    """Return the image whose header is the starting point or has the backup region; None without one."""
    if arguments.base is not None:
        return CrashImage(read_input(arguments.base, "the header"))
    if read_image_loaded(sysroot) is False:
        return None
    try:
        return read_crash_image(sysroot, machine.crashkernel)
    except CannotTellError:
        if arguments.loader is None:
            raise
        return None


def _starting_point(
    arguments: argparse.Namespace, image: CrashImage | None, base: ElfCoreHeader | None
) -> tuple[Loader, ElfCoreHeader | None, int | None]:
    """Return the loader, the header to keep things from, and where the backup region is."""
    backup: int | None = arguments.backup_region
    if backup is None and base is not None and base.backup_region is not None:
        backup = base.backup_region.p_offset
    if arguments.loader is not None:
        return Loader(arguments.loader), base if arguments.base is not None else None, backup
    if image is None or base is None:
        return Loader.KERNEL, None, backup
    return loader_of(base, image), base, backup
