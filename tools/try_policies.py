# SPDX-License-Identifier: MIT
"""Try the SELinux module and the AppArmor profile in full Debian 12 guests that enforce them.  As root, with QEMU.

``python3 tools/try_policies.py DEB [selinux] [apparmor] [--kdump-utils PATH | --kdump PATH]``: copies the disk of
``crash-hotplug-lab guest``, installs both policies and the package in a chroot, and boots it once for each.  The
SELinux module is compiled there.  The guest has Debian's kdump-tools, or the tools whose sources are given: Red Hat's
kdump-utils, openSUSE's kdump.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from crash_hotplug_lab.distro import image as images
from crash_hotplug_lab.distro.family import DEBIAN, RED_HAT, SUSE, Family, read_sources
from crash_hotplug_lab.distro.image import DebianImage, DebianMachine
from crash_hotplug_lab.qemu.agent import Agent
from crash_hotplug_lab.qemu.debian import Archive
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.machine import QemuMachine

RELEASE = "bookworm"
PACKAGES = ("apparmor", "policycoreutils-python-utils", "selinux-policy-default", "selinux-policy-dev", "selinux-utils")
FORGE = "systemd-run --wait --collect -q -p RuntimeMaxSec=30"
"""Starts the program itself outside the unit's sandbox, to write where only its policy forbids it."""
WATCH = "/usr/bin/crash-hotplug watch --metrics-file"
DIMM = 256 << 20
LOCKED_SECONDS = 20
RELOAD_ONLY = 'OPTIONS="--strategy reload"'
METRICS = "/var/lib/prometheus/node-exporter"
WITH_METRICS = f'OPTIONS="--metrics-file {METRICS}/crash-hotplug.prom"'
INSTALL = f"""\
METRICS={METRICS}
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive
printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
cd /debs
new=
for deb in *.deb; do
    dpkg -s "$(dpkg-deb -f "$deb" Package)" > /dev/null 2>&1 || new="$new $deb"
done
dpkg --force-unsafe-io -i $new || dpkg --force-unsafe-io -i $new  # the second time with all pre-dependencies
rm /usr/sbin/policy-rc.d
cp /usr/share/crash-hotplug/apparmor/crash-hotplug /etc/apparmor.d/
mkdir /module && cp /usr/share/crash-hotplug/selinux/* /module/ && cd /module
make -f /usr/share/selinux/devel/Makefile crash-hotplug.pp
semodule -i crash-hotplug.pp
# Debian's own kdump_t may not read /var/lib/kdump, where Debian's kdump-tools keeps the capture kernel.  Its kdumpctl_t
# is older than Red Hat's kdumpctl here.
semanage permissive -a kdump_t
semanage permissive -a kdumpctl_t
mkdir -p $METRICS
semanage fcontext -a -t crash_hotplug_metrics_t "$METRICS(/.*)?"
setfiles -m -F -e /proc -e /dev /etc/selinux/default/contexts/files/file_contexts /
rm -r /debs /module /install
"""
CHROOT = """\
mount -o loop "$1" /mnt
mkdir -p /mnt/debs
shift
cp "$@" /mnt/debs/
cat > /mnt/install
mount -t proc proc /mnt/proc
mount --bind /dev /mnt/dev
chroot /mnt /bin/sh -eu /install
umount /mnt/proc /mnt/dev /mnt
"""


@dataclass(frozen=True)
class Policy:
    """A way to confine the service."""

    name: str
    parameters: str
    """Of the kernel."""
    context: str
    """Begins the service's /proc/PID/attr/current."""
    denials: str
    """Prints the denials of the service in the kernel's log."""
    others: str
    """Counts the denials of other domains."""
    forged: str
    """A file that the program may not write; AppArmor lets it read that directory."""
    confined: str
    """Writes it in the service's domain."""
    unconfined: str
    """Writes it as the negative control."""


POLICIES = {
    "selinux": Policy(
        "selinux", "security=selinux selinux=1 enforcing=1", "system_u:system_r:crash_hotplug_t:",
        "dmesg | grep 'avc: *denied.*crash_hotplug' || true",
        "dmesg | grep 'avc: *denied' | grep -v crash_hotplug | grep -o 'scontext=[^ ]*' | sort | uniq -c",
        "/etc/forged.prom",
        f"{FORGE} {WATCH} /etc/forged.prom",
        f"setenforce 0; {FORGE} {WATCH} /etc/forged.prom; setenforce 1",
    ),
    "apparmor": Policy(
        "apparmor", "apparmor=1 security=apparmor", "crash-hotplug (enforce)",
        "dmesg | grep 'apparmor=\"DENIED\".*profile=\"crash-hotplug' || true",
        "true",
        "/var/crash/forged.prom",
        f"{FORGE} -p AppArmorProfile=crash-hotplug {WATCH} /var/crash/forged.prom",
        f"{FORGE} {WATCH} /var/crash/forged.prom",
    ),
}  # fmt: skip


def make_disk(image: DebianImage, deb: Path, disk: Path) -> None:
    """Copy the image's disk, and install the packages and both policies in it."""
    archive = Archive(RELEASE)
    if not archive.updated:
        archive.update()
    debs = [str(package.deb) for package in archive.download(*PACKAGES)]
    image.copy(disk)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", CHROOT, "sh", str(disk), *debs, str(deb)]
    done = subprocess.run(command, input=INSTALL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"the policies cannot be installed: {(done.stdout + done.stderr)[-2000:]}")


class Trial:
    """One policy in a running guest."""

    def __init__(self, policy: Policy, family: Family, machine: QemuMachine) -> None:
        """Take the machine, which is booting."""
        self.failed = False
        self._policy, self._family, self._machine = policy, family, machine
        self._agent = Agent(machine)

    async def sh(self, command: str) -> str:
        """Run a shell command in the guest and return its output."""
        done = await self._agent.run("sh", "-c", command, timeout=600)
        return str(done["out"] + done["err"]).strip()

    def check(self, what: str, ok: bool, detail: str) -> None:
        """Print a result."""
        self.failed = self.failed or not ok
        print(f"{self._policy.name:9} {'ok' if ok else 'NOT OK':7} {what}: {detail}", flush=True)

    async def until(self, command: str, wanted: str, seconds: float = 240) -> str:
        """Repeat a command until its output has a text; return the last output."""
        end = time.monotonic() + seconds
        while True:
            said = await self.sh(command)
            if wanted in said or time.monotonic() > end:
                return said
            await asyncio.sleep(2)

    async def run(self) -> None:
        """Boot, update, wait for the lock, reload, forge."""
        await self._agent.connect(1500)
        family = self._family
        said = await self.until(f"systemctl is-active crash-hotplug {family.unit}", "active\nactive")
        self.check(f"service and {family.unit} are active", said == "active\nactive", " ".join(said.split()))
        context = await self.sh("cat /proc/$(systemctl show -p MainPID --value crash-hotplug)/attr/current")
        self.check("service is confined", context.startswith(self._policy.context), context)
        await self.sh(f"crash-hotplug doctor --fix; {' '.join(family.reload)}")
        await self.sh(f"rm -f {family.lock}")  # the tools made it; now the service does
        await self._set_options(WITH_METRICS)  # the restarted service is ready when it has taken that image over
        await self._plug("d0", "memory.*in-place: updated")
        self.check("update in place", *await self._last("memory.*in-place: updated"))
        await self.sh(f"systemd-run -q --unit=lab-lock flock {family.lock} sleep {LOCKED_SECONDS}")
        await self._plug("d1", "memory.*in-place: updated")
        said = await self.sh("systemctl is-active lab-lock")
        self.check(
            f"update after {family.lock} is free", said != "active", *(await self._last("in-place: updated"))[1:]
        )
        said = await self.sh(f"grep -c '^crash_hotplug_' {METRICS}/crash-hotplug.prom")
        self.check("metrics are written", said.isdigit() and int(said) > 0, f"{said} lines")
        await self._set_options(RELOAD_ONLY)
        await self._plug("d2", "reload: reloaded")
        self.check("reload by the family's tool", *await self._last(f"reload: reloaded: /.*{family.says}"))
        said = await self.sh("crash-hotplug status | head -1")
        self.check("image is accurate", said.startswith("ACCURATE"), said)
        denials = await self.sh(self._policy.denials)
        found = f"{denials.count(chr(10)) + 1} in the kernel's log, the last one: {denials.rpartition(chr(10))[2]}"
        self.check("no denial", denials == "", found if denials else "none in the kernel's log")
        print(f"... denials of other domains: {' '.join((await self.sh(self._policy.others)).split())}", flush=True)
        await self.sh("systemctl stop crash-hotplug")
        before = denials
        await self.sh(self._policy.confined)
        exists = await self.sh(f"ls {self._policy.forged} 2>&1 | tail -1")
        denials = await self.sh(self._policy.denials)
        denied = "No such file" in exists and denials != before
        self.check(f"forged write of {self._policy.forged} is denied", denied, denials.rpartition("\n")[2] or exists)
        await self.sh(self._policy.unconfined)
        exists = await self.sh(f"ls {self._policy.forged} 2>&1 | tail -1")
        self.check("negative control: it succeeds without the policy", exists == self._policy.forged, exists)

    async def _set_options(self, options: str) -> None:
        await self.sh(f"echo '{options}' > /etc/default/crash-hotplug; systemctl restart crash-hotplug")

    async def _plug(self, name: str, wanted: str) -> None:
        before = int(await self.sh(f"journalctl -u crash-hotplug | grep -c '{wanted}' || true"))
        await self.until("crash-hotplug status | head -1", "ACCURATE")
        await self._machine.add_dimm(name, DIMM)
        count = f"$(journalctl -u crash-hotplug | grep -c '{wanted}')"
        await self.until(f"[ {count} -gt {before} ] && echo more", "more")

    async def _last(self, wanted: str) -> tuple[bool, str]:
        said = await self.sh(f"journalctl -u crash-hotplug -o cat | grep '{wanted}' | tail -1")
        return said != "", said or "not in the journal"


async def boot(image: DebianImage, policy: Policy, disk: Path, out: Path) -> bool:
    """Try one policy in a guest of its own; return whether all was as it should be."""

    class Machine(DebianMachine):
        def _append(self, shell: bool) -> str:
            # every denial is logged: no limit of lines a second
            return f"{super()._append(shell)} {policy.parameters} sysctl.kernel.printk_ratelimit=0 log_buf_len=4M"

    own = out / f"{policy.name}.ext4"
    subprocess.run(["cp", "--sparse=always", str(disk), str(own)], check=True)
    (out / policy.name).mkdir()
    async with Machine(image.kernel(), image.initramfs, own, out / policy.name) as machine:
        trial = Trial(policy, image.family, machine)
        await trial.run()
    own.unlink()
    return not trial.failed


def main() -> int:
    """Make the disk and try each policy; the exit code is 1 where a check failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("deb", type=Path)
    parser.add_argument("policies", nargs="*", metavar="|".join(POLICIES))
    tools = parser.add_mutually_exclusive_group()
    tools.add_argument("--kdump-utils", type=Path, metavar="PATH")
    tools.add_argument("--kdump", type=Path, metavar="PATH")
    given = parser.parse_args()
    if not set(given.policies) <= set(POLICIES):
        parser.error(f"the policies are {' and '.join(POLICIES)}")
    if not given.deb.is_file():
        parser.error(f"there is no package file {given.deb}")
    family, path = next(
        ((f, p) for f, p in ((RED_HAT, given.kdump_utils), (SUSE, given.kdump)) if p is not None), (DEBIAN, None)
    )
    sources = read_sources(family, path) if path is not None else None
    image = images.build(DebianImage(RELEASE, family, sources), lambda what: print(f"... {what}", flush=True))
    print(f"... {family.title % images.RELEASES[RELEASE]}", flush=True)
    with tempfile.TemporaryDirectory(dir=image.disk.parent) as name:
        out = Path(name)
        make_disk(image, given.deb, out / "disk")
        passed = [asyncio.run(boot(image, POLICIES[name], out / "disk", out)) for name in given.policies or POLICIES]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
