"""In the guest: many updates in place in a row, beside full reloads; what each costs, and that nothing leaks.

Prints one line a finding; exit code 1 where something is not as it must be.  Times are for comparison with each other
only: under emulation they say nothing of a real machine.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time

from crash_hotplug.core.handler import run
from crash_hotplug.core.handler_policies import InPlace
from crash_hotplug.linux.live_machine import LiveMachine
from crash_hotplug.linux.update_once import LOOK, update_in_place

RELOADS = 20
_APPEND = "console=ttyS0 quiet irqpoll nr_cpus=1 reset_devices panic=1 rdinit=/init no_timer_check acpi_no_memhotplug"
_RELOAD = ("kexec", "-p", "/boot/vmlinuz", "--initrd=/boot/capture.img", f"--append={_APPEND}")


def slab_kib() -> int:
    """Return the kernel's memory that cannot be given back, in KiB."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("SUnreclaim:"))


def milliseconds(seconds: list[float]) -> str:
    """Return least, median and most."""
    return (
        f"min {min(seconds) * 1e3:.1f}, median {statistics.median(seconds) * 1e3:.1f}, max {max(seconds) * 1e3:.1f} ms"
    )


def reloads(option: str) -> list[float]:
    """Load the image again and again; an image is missing for a part of each time."""
    times = []
    for _ in range(RELOADS):
        began = time.perf_counter()
        subprocess.run([*_RELOAD, option], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return times


def update(machine: LiveMachine) -> None:
    """Write the header although it is right: a whole update, with lock, reading, plan and checks."""
    if not machine.try_lock():
        sys.exit("the lock is taken")
    image = machine.loaded_image()
    if image is None:
        sys.exit("no image is loaded")
    run(machine.replace_header(image, InPlace().header(machine.read_machine(), image, LOOK).to_bytes()))
    machine.unlock()


def main(number: int) -> None:
    """Measure, print, and verify the whole image at the end."""
    for option in ("-s", "-c"):
        print(f"kexec -p {option}, {RELOADS} times: {milliseconds(reloads(option))}")
    machine = LiveMachine()
    print(f"take-over: {update_in_place(machine).outcome.value}")
    update(machine)
    slab, resident, control_pages = slab_kib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, set()
    calls, whole, cpu = [], [], []
    for _ in range(number):
        began, began_cpu = time.perf_counter(), time.process_time()
        update(machine)
        whole.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
        calls.append(machine.kexec_seconds)
        image = machine.loaded_image()
        if image is not None and image.kimage is not None:
            control_pages.add(image.kimage.control_page_phys)
    print(f"{number} updates in place, the kexec_load: {milliseconds(calls)}")
    print(f"{number} updates in place, all of it: {milliseconds(whole)}; CPU time: {milliseconds(cpu)}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    print(f"grown by: {slab_kib() - slab} KiB of slab, {grown} KiB of this process; {len(control_pages)} control_page")
    report = update_in_place(LiveMachine(verify_full=True))
    print(f"the whole image verified: {report.outcome.value}, {report.sentence}")
    if report.outcome.value != "unchanged" or len(control_pages) != 1:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
