# SPDX-License-Identifier: MIT
"""In the guest: causes failures of the watch service, which must recover from them and report them.

Prints one line for each failure; exit code 1 where the service did not recover.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time

from crash_hotplug_lab.in_guest.watched import Watched, load, status, wait, write

OURS = ("accurate", True)
_CPU_UEVENT = "/sys/devices/system/cpu/cpu1/uevent"


def killed() -> None:
    """SIGKILL; another image is loaded before the service starts again."""
    service = Watched()
    service.wait_accurate()
    service.kill(signal.SIGKILL)
    whole = status()
    load()
    again = Watched()
    seconds = again.wait_accurate()
    print(
        f"SIGKILL: the image stayed {whole[0]}; another was loaded meanwhile; {seconds:.1f} s after a new start: "
        f"{status()[0]}"
    )
    if whole != OURS or status() != OURS:
        sys.exit("not accurate after SIGKILL")
    again.kill()


def stopped(seconds: int) -> None:
    """SIGSTOP; events arrive and another image is loaded before SIGCONT."""
    service = Watched()
    service.wait_accurate()
    updates = service.metric("updates_total")
    service.send(signal.SIGSTOP)
    for _ in range(1000):
        write(_CPU_UEVENT, "change")
    load()
    time.sleep(seconds)
    service.send(signal.SIGCONT)
    took = wait(lambda: service.metric("updates_total") > updates, "an update")
    seen = service.metric("uevents_total")
    print(
        f"SIGSTOP for {seconds} s: {seen:.0f} of 1000 events seen afterwards, "
        f"other image taken over after {took:.1f} s: "
        f"{status()[0]}"
    )
    if status() != OURS:
        sys.exit("not accurate after SIGSTOP")
    service.kill()


def out_of_memory() -> None:
    """A memory limit of its cgroup that kills it."""
    os.makedirs("/tmp/cgroup", exist_ok=True)
    subprocess.run(["mount", "-t", "cgroup2", "none", "/tmp/cgroup"], check=True, capture_output=True)
    write("/tmp/cgroup/cgroup.subtree_control", "+memory")
    os.makedirs("/tmp/cgroup/watch", exist_ok=True)
    service = Watched()
    write("/tmp/cgroup/watch/cgroup.procs", str(service.pid))
    service.wait_accurate()
    peak = "/tmp/cgroup/watch/memory.peak"  # from 5.19 on
    with open(peak if os.path.exists(peak) else "/tmp/cgroup/watch/memory.current") as file:
        used = int(file.read()) >> 20
    write("/tmp/cgroup/watch/memory.max", "1M")
    write(_CPU_UEVENT, "change")
    was_killed = service.wait_ended(30)
    with open("/tmp/cgroup/watch/memory.events") as file:
        kills = next(line.split()[1] for line in file if line.startswith("oom_kill "))
    again = Watched()
    seconds = again.wait_accurate()
    print(
        f"OOM ({used} MiB in its cgroup, then memory.max=1M): killed {kills} times; {seconds:.1f} s after a new start: "
        f"{status()[0]}"
    )
    if not was_killed or status() != OURS:
        sys.exit("it was not killed, or is not accurate")
    again.kill()


def full_disk() -> None:
    """A metrics file on a full disk."""
    os.makedirs("/tmp/small", exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", "/tmp/small"], check=True)
    service = Watched(metrics="/tmp/small/watch.prom", log="/tmp/full.log")
    service.wait_accurate()
    with open("/tmp/small/ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    old = service.metric("looks_total")
    write(_CPU_UEVENT, "change")
    wait(lambda: service.said("No space left on device"), "its error message")
    kept = service.metric("looks_total") == old
    os.unlink("/tmp/small/ballast")
    write(_CPU_UEVENT, "change")
    wait(lambda: service.said("is written again"), "the metrics")
    said = sum("No space left" in line for line in service.log())
    print(f"full disk: said {said} time(s), the old file stayed: {kept}; written again once there was room")
    if not kept or said != 1:
        sys.exit("the full disk was not reported once, or the old metrics were lost")
    service.kill()


def unloaded() -> None:
    """Another loader unloads the image and loads it again, without any event."""
    service = Watched("--heartbeat", "5")
    service.wait_accurate()
    updates = service.metric("updates_total")
    subprocess.run(["kexec", "-p", "-u"], check=True, capture_output=True)
    gone = wait(lambda: service.metric("accurate") == 0, "it to notice")
    load()
    back = wait(lambda: service.metric("updates_total") > updates, "it to take over")
    print(
        f"unloaded: noticed after {gone:.1f} s; loaded again by kexec: taken over after {back:.1f} s (heartbeat 5 s): "
        f"{status()[0]}"
    )
    if status() != OURS or not service.said("another process unloaded the crash image"):
        sys.exit("not accurate after an unload")
    service.kill()


def locked(seconds: int) -> None:
    """Another process holds the lock of the distributions' wrappers while an image waits to be taken over."""
    service = Watched("--heartbeat", "5")
    service.wait_accurate()
    updates = service.metric("updates_total")
    with open("/run/lock/kdump", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load()
        write(_CPU_UEVENT, "change")
        time.sleep(seconds)
        waited = status() != OURS
    took = wait(lambda: service.metric("updates_total") > updates and status() == OURS, "it to take over", 90)
    print(f"lock held for {seconds} s: nothing was done meanwhile: {waited}; taken over {took:.1f} s after it was free")
    if not waited or not service.said("lock busy"):
        sys.exit("the lock was not respected")
    service.kill()


def crowded(number: int) -> None:
    """Another loader loads images all the time, without a lock."""
    service = Watched("--heartbeat", "5")
    service.wait_accurate()
    for _ in range(number):
        load("-s")
        write(_CPU_UEVENT, "change")
    took = wait(lambda: status() == OURS and service.metric("accurate") == 1, "it to take over", 90)
    failures = sum("failed" in line or "not loaded" in line for line in service.log())
    print(
        f"{number} loads by others without a lock: accurate {took:.1f} s after the last; "
        f"{failures} failures were said on the way"
    )
    service.kill()


def main(seconds: int) -> None:
    """Cause every failure; ``seconds`` is the time between SIGSTOP and SIGCONT."""
    os.makedirs("/run/lock", exist_ok=True)
    killed()
    stopped(seconds)
    out_of_memory()
    full_disk()
    unloaded()
    locked(15)
    crowded(10)


if __name__ == "__main__":
    main(int(sys.argv[1]))
