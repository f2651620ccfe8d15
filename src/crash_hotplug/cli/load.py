"""``crash-hotplug load``: load a crash image that is ready for hot-plug, or unload it."""

from __future__ import annotations

import argparse
import re
import sys

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import print_json
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.handler import Outcome
from crash_hotplug.core.move_header import MAX_MEMORY_RANGES
from crash_hotplug.linux.kdump_lock import kdump_locks
from crash_hotplug.linux.kexec_file_load import file_load_crash_image, unload_crash_image
from crash_hotplug.linux.live_machine import LOCK_SECONDS, LiveMachine
from crash_hotplug.linux.machine_reader import CMDLINE
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug.linux.update_once import give_room, update_in_place

DESCRIPTION = """\
Loads a crash kernel with kexec_file_load, on any kernel that has it, then gives its elfcorehdr room to grow,
takes it out of purgatory's digest and describes every possible CPU.  An image that is loaded is replaced.
"""
EXAMPLES = """\
examples:
  crash-hotplug load /boot/vmlinuz --initrd /boot/kdump.img --append "nr_cpus=1 irqpoll reset_devices"
  crash-hotplug load /boot/vmlinuz --initrd /boot/kdump.img --reuse-cmdline
  crash-hotplug load --unload
"""
_NOT_REUSED = re.compile(r"(?:crashkernel|BOOT_IMAGE|elfcorehdr|hugepages|hugepagesz|default_hugepagesz)=")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("kernel", nargs="?", metavar="KERNEL", help="the capture kernel, a bzImage")
    parser.add_argument("--initrd", metavar="FILE", help="its initial RAM disk")
    parser.add_argument("--append", default="", metavar="WORDS", help="its command line")
    parser.add_argument(
        "--reuse-cmdline",
        action="store_true",
        help="begin its command line with this kernel's, less crashkernel= and huge pages",
    )
    parser.add_argument(
        "--max-memory-ranges",
        type=_ranges,
        default=MAX_MEMORY_RANGES,
        metavar="N",
        help=f"memory ranges that the elfcorehdr has room for ({MAX_MEMORY_RANGES})",
    )
    parser.add_argument("--unload", action="store_true", help="unload the crash image")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :raise CrashHotplugError: the kernel refused
    """
    if arguments.unload == (arguments.kernel is not None):
        print("crash-hotplug load: give a KERNEL to load, or --unload", file=sys.stderr)
        return exit_codes.USAGE
    live = LiveMachine()
    if arguments.unload:
        with kdump_locks(LOCK_SECONDS):
            unload_crash_image()
        return _say(arguments.json, "unloaded", "no crash image is loaded now", True)
    cmdline = capture_cmdline(_own_cmdline() if arguments.reuse_cmdline else "", arguments.append)
    with kdump_locks(LOCK_SECONDS):
        file_load_crash_image(arguments.kernel, arguments.initrd, cmdline)
    reason = give_room(live, arguments.max_memory_ranges)
    if reason is None:
        report = update_in_place(live)
        ready = report.outcome in (Outcome.UPDATED, Outcome.UNCHANGED)
        reason = None if ready else report.sentence
    ready = reason is None
    sentence = "ready for hot-plug" if ready else f"loaded as the kernel does it, not made ready for hot-plug: {reason}"
    return _say(arguments.json, "loaded", sentence, ready)


def capture_cmdline(own: str, append: str) -> str:
    """Put the capture kernel's command line together, out of this kernel's and what is to be added."""
    kept = [word for word in own.split() if not _NOT_REUSED.match(word)]
    return " ".join([*kept, append.strip()]).strip()


def _own_cmdline() -> str:
    cmdline = Sysroot().read_text(CMDLINE)
    if cmdline is None:
        raise CrashHotplugError(f"{CMDLINE} cannot be read")
    return cmdline


def _ranges(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 65000")
    return int(text)


def _say(as_json: bool, outcome: str, sentence: str, ready: bool) -> int:
    if as_json:
        print_json({"command": "load", "outcome": outcome, "reason": sentence, "ready_for_hotplug": ready})
    else:
        print(f"{outcome}: {sentence}")
    return exit_codes.DONE
