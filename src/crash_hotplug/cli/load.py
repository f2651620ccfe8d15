# SPDX-License-Identifier: MIT
"""``crash-hotplug load``: load a crash image that is ready for hot-plug, or unload it."""

from __future__ import annotations

import argparse
import os
import re
import signal

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, memory_ranges
from crash_hotplug.cli.output import print_json, printable, progress
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.plan import MAX_MEMORY_RANGES, MAX_ROOM
from crash_hotplug.linux.loading.capture_kernel import CaptureKernel, Strategy
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.loading.load import LoadRecord, load_once, unload
from crash_hotplug.linux.machine_reader import CMDLINE
from crash_hotplug.linux.sysroot import Sysroot

DESCRIPTION = """\
Loads a crash kernel with kexec_file_load (or through kexec-tools where only kexec_load works), then gives its
elfcorehdr room to grow, excludes it from purgatory's digest and describes every possible CPU.  A loaded image
is replaced.  If the kernel refuses the new image, crash-hotplug puts the previous one back.

The command line is recorded in /run/crash-hotplug, for `crash-hotplug update --strategy reload` on machines
without kdumpctl, kdump-config and openSUSE's load-once.sh.
"""
EXAMPLES = """\
examples:
  crash-hotplug load /boot/vmlinuz --initrd /boot/kdump.img --append "nr_cpus=1 irqpoll reset_devices"
  crash-hotplug load /boot/vmlinuz --initrd /boot/kdump.img --reuse-cmdline --max-memory-ranges 20000
  crash-hotplug load --unload
"""
_NOT_REUSED = re.compile(r"(?:crashkernel|BOOT_IMAGE|elfcorehdr|hugepages|hugepagesz|default_hugepagesz)=")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("kernel", nargs="?", metavar="KERNEL", help="the capture kernel, a bzImage")
    parser.add_argument("--initrd", metavar="FILE", help="the initial RAM disk of the capture kernel")
    parser.add_argument("--append", default="", metavar="WORDS", help="the command line of the capture kernel")
    parser.add_argument(
        "--reuse-cmdline",
        action="store_true",
        help="begin that command line with the running kernel's, without crashkernel= and huge pages",
    )
    room = parser.add_mutually_exclusive_group()
    room.add_argument(
        "--max-memory-ranges",
        type=memory_ranges,
        metavar="N",
        help=f"memory ranges for which the elfcorehdr gets room (default {MAX_MEMORY_RANGES})",
    )
    room.add_argument(
        "--hotplug-size",
        type=_hotplug_size,
        metavar="BYTES",
        help="room for the elfcorehdr in bytes instead of ranges (decimal, or hexadecimal with 0x)",
    )
    parser.add_argument(
        "--strategy",
        choices=[strategy.value for strategy in Strategy],
        default=Strategy.AUTO.value,
        help="file (kexec_file_load), kexec-tools (kexec -p -c), or auto (default): the first that works",
    )
    parser.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="if the signature of KERNEL is refused, load it with kexec-tools, which checks no signature",
    )
    parser.add_argument("--unload", action="store_true", help="unload the crash image")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :raise CrashHotplugError: the kernel refused
    :raise UsageError: options do not fit together
    """
    if arguments.unload == (arguments.kernel is not None):
        raise exit_codes.UsageError("give a KERNEL to load, or --unload")
    if arguments.allow_unsigned and arguments.strategy == Strategy.FILE.value:
        raise exit_codes.UsageError("--allow-unsigned requires a --strategy with kexec-tools")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the previous image is then put back
    if arguments.unload:
        if _is_about_a_load(arguments):
            raise exit_codes.UsageError("--unload takes no option but --json: nothing is loaded")
        unload(LiveMachine())
        return _say(arguments.json, "unloaded", "no crash image is loaded now")
    cmdline = capture_cmdline(_own_cmdline() if arguments.reuse_cmdline else "", arguments.append)
    initrd = None if arguments.initrd is None else os.path.abspath(arguments.initrd)
    record = LoadRecord(
        CaptureKernel(os.path.abspath(arguments.kernel), initrd, cmdline, arguments.allow_unsigned),
        Strategy(arguments.strategy),
        arguments.max_memory_ranges or MAX_MEMORY_RANGES,
        arguments.hotplug_size,
    )
    asked_for = arguments.hotplug_size is not None or arguments.max_memory_ranges is not None
    loaded = load_once(LiveMachine(), record, asked_for, progress)
    sentence = "ready for hot-plug" if loaded.not_ready is None else f"not made ready for hot-plug: {loaded.not_ready}"
    _say(arguments.json, "loaded", f"by {loaded.how}; {sentence}", loaded.not_ready is None)
    return exit_codes.FAILED if asked_for and loaded.not_ready is not None else exit_codes.DONE


def _is_about_a_load(arguments: argparse.Namespace) -> bool:
    values = (arguments.initrd, arguments.max_memory_ranges, arguments.hotplug_size)
    flags = (arguments.append, arguments.reuse_cmdline, arguments.allow_unsigned)
    return any(flags) or values != (None, None, None) or arguments.strategy != Strategy.AUTO.value


def capture_cmdline(own: str, append: str) -> str:
    """Return the capture kernel's command line: the reusable words of the running kernel's, then *append*."""
    kept = [word for word in own.split() if not _NOT_REUSED.match(word)]
    return " ".join([*kept, append.strip()]).strip()


def _own_cmdline() -> str:
    cmdline = Sysroot().read_text(CMDLINE)
    if cmdline is None:
        raise CrashHotplugError(f"{CMDLINE} cannot be read")
    return cmdline


def _hotplug_size(text: str) -> int:
    try:
        size = int(text, 0)
    except ValueError:
        size = 0
    if not 0 < size <= MAX_ROOM:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes from 1 to {MAX_ROOM}")
    return size


def _say(as_json: bool, outcome: str, sentence: str, ready: bool = False) -> int:
    if as_json:
        print_json({"command": "load", "outcome": outcome, "reason": sentence, "ready_for_hotplug": ready})
    else:
        print(f"{outcome}: {printable(sentence)}")
    return exit_codes.DONE
