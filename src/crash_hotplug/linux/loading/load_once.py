"""Load a crash image that is ready for hot-plug: files checked, loaded, room given, taken over, remembered."""

from __future__ import annotations

from typing import NamedTuple

from crash_hotplug.core.capture_kernel import check_room
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.core.move_header import room_for
from crash_hotplug.linux.kexec_state import read_kexec_state, why_no_load
from crash_hotplug.linux.loading.capture_kernel import initrd_size, load_capture_kernel, read_setup_header
from crash_hotplug.linux.loading.former_image import FormerImage, keep_former_image, put_back
from crash_hotplug.linux.loading.kdump_lock import kdump_locks
from crash_hotplug.linux.loading.kexec_file_load import unload_crash_image
from crash_hotplug.linux.loading.live_machine import LOCK_SECONDS, LiveMachine
from crash_hotplug.linux.loading.load_record import LoadRecord, forget_record, save_record
from crash_hotplug.linux.loading.update_once import is_root, make_ready
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot


class Loaded(NamedTuple):
    """What came of a load."""

    how: str
    """What loaded it, for people."""
    not_ready: str | None
    """Why the image is not ready for hot-plug; None where it is."""


def load_once(machine: LiveMachine, record: LoadRecord, room_is_a_must: bool) -> Loaded:
    """Load what *record* says and make it ready for hot-plug.

    :param room_is_a_must: where the room cannot be given, put the former image back
    :raise InputError: a file or the room is not what it should be; nothing was changed
    :raise NoRoomError: the reserved region is too small; nothing was changed
    :raise CrashHotplugError: it was refused; the sentence says what is loaded now
    """
    files = record.files
    if "\0" in files.cmdline:
        raise InputError("the capture kernel's command line has a null character")
    sysroot = Sysroot()
    refused = why_no_load(read_kexec_state(sysroot))
    if refused is not None:
        raise CrashHotplugError(refused)
    now = read_machine(sysroot)
    room = record.hotplug_size or room_for(len(now.cpus), record.memory_ranges)
    check_room(read_setup_header(files.kernel), initrd_size(files), room, now)
    with kdump_locks(LOCK_SECONDS):
        former = keep_former_image(sysroot)
        try:
            how = load_capture_kernel(files, record.strategy, record.hotplug_size)
        except InputError:
            raise  # found in the files before anything was changed
        except CrashHotplugError as error:
            raise CrashHotplugError(f"{error}; {put_back(former, sysroot)}") from error
    reason = make_ready(machine, record.memory_ranges, record.hotplug_size)
    if reason is not None and room_is_a_must and former is not None:
        raise CrashHotplugError(f"{reason}; {_replace_by(former, sysroot)}")
    save_record(record)
    return Loaded(how, reason)


def unload() -> None:
    """Unload the crash image, whoever loaded it, and forget what was loaded.

    :raise CannotTellError: only root may
    :raise CrashHotplugError: the kernel refused
    """
    if not is_root():
        raise CannotTellError("only root can unload the crash image; run as root")
    with kdump_locks(LOCK_SECONDS):
        unload_crash_image()
        forget_record()


def _replace_by(former: FormerImage, sysroot: Sysroot) -> str:
    with kdump_locks(LOCK_SECONDS):
        unload_crash_image()
        return put_back(former, sysroot)
