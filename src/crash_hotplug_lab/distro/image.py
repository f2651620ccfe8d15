# SPDX-License-Identifier: MIT
"""Disk images of full guests (Debian with systemd, udev, the kdump tools of a family and a kernel), and their machine.

An image is built without root and kept in the cache.  The packages' files become one tar file (root_tar.py), and mke2fs
makes a file system out of it.  The guest configures its packages in its first boot, where kdump-tools makes its initrd.
kdump-utils and openSUSE's kdump make theirs when their service starts: in a second boot, of the whole system.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Callable

from crash_hotplug_lab.distro.family import DEBIAN, Family, Sources
from crash_hotplug_lab.distro.root_tar import RootTar
from crash_hotplug_lab.qemu import debian, host_tools, initramfs
from crash_hotplug_lab.qemu.agent import Agent
from crash_hotplug_lab.qemu.debian import Archive, Package, cache_dir
from crash_hotplug_lab.qemu.errors import GuestError, LabError
from crash_hotplug_lab.qemu.kernels import Kernel, modules_in_load_order
from crash_hotplug_lab.qemu.machine import QemuMachine

RELEASES = {"bullseye": "11", "bookworm": "12", "trixie": "13"}
"""Debian releases that can be built, and their numbers."""
_PACKAGES = (
    "?essential", "?priority(required)", "systemd-sysv", "udev", "dbus", "kmod", "procps", "kexec-tools",
    "makedumpfile", "initramfs-tools", "python3", "linux-image-cloud-amd64",
)  # fmt: skip
_EXTRA = {"bookworm": ("usr-is-merged",)}  # instead of usrmerge and all of Perl
_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
_SIZE = "6G"
_GUEST = Path(__file__).parents[1] / "in_guest"
_OWN = "usr/lib/crash-hotplug-lab"
_PROGRAMS = ("configure", "agent.py")
_SOURCES = "usr/src/kdump"
"""Where the guest finds the sources of its kdump tools."""
_UNIT = "crash-hotplug-lab.service"
_CONFIGURE_LIMIT = 2400.0
_INITRD_LIMIT = 1800.0
_SYSTEM, _CONFIGURE = "/sbin/init", f"/{_OWN}/configure"
"""First process of a run, and of the first boot."""
MEMORY = 1536 << 20
_CRASHKERNEL = "320M"
"""Enough for Debian's capture kernel with an initrd that runs systemd."""


class DebianMachine(QemuMachine):
    """A running QEMU with a full Debian on its disk.  It ends when the guest resets, as the capture kernel does."""

    def __init__(self, kernel: Kernel, initramfs: Path, disk: Path, out: Path, init: str = _SYSTEM,
                 memory: int = MEMORY, slots: int = 0) -> None:  # fmt: skip
        """Take the kernel, the small initramfs that mounts the disk, and the disk, which is written to."""
        super().__init__(kernel, initramfs, out, memory, slots=slots, max_memory=64 << 30)
        self.dump = disk
        self._init = init

    def make_disk(self) -> None:
        """Leave the disk as it is."""

    def _append(self, shell: bool) -> str:
        # memory comes online by itself when it is added, as an administrator has to set it up on Debian
        return (
            f"console=ttyS0 quiet panic=1 root=/dev/vda rw crashkernel={_CRASHKERNEL} memhp_default_state=online "
            f"init={self._init}"
        )


class DebianImage:
    """The image of a Debian release with the kdump tools of a family; its parts are in the cache."""

    def __init__(self, release: str, family: Family = DEBIAN, sources: Sources | None = None) -> None:
        """Name the release, the family and the sources of its tools; nothing is built yet.

        :raise LabError: the release is not known
        """
        if release not in RELEASES:
            raise LabError(f"no Debian {release} can be built; known are {', '.join(RELEASES)}")
        self.release, self.family, self._sources = release, family, sources
        self._dir = cache_dir("distro", release if family is DEBIAN else f"{family.name}-{release}")

    @property
    def disk(self) -> Path:
        """The configured root file system."""
        return self._dir / "root.ext4"

    @property
    def initramfs(self) -> Path:
        """The initramfs that mounts it."""
        return self._dir / "initramfs.cpio"

    @property
    def ready(self) -> bool:
        """Whether it was built before, from the same recipe."""
        return self.disk.exists() and self._recipe.exists() and self._recipe.read_text() == self.recipe()

    def recipe(self) -> str:
        """Return a digest of all that the lab adds to the packages; an image with another digest is built again."""
        made_of = (_PACKAGES, self.family.packages, _EXTRA, _MODULES, _SIZE, self._sources and self._sources.digest)
        digest = hashlib.sha256(repr(made_of).encode())
        for name in (*_PROGRAMS, self.family.settings, _UNIT, "init-root"):
            digest.update((_GUEST / name).read_bytes())
        return digest.hexdigest()

    @property
    def _recipe(self) -> Path:
        return self._dir / "recipe"

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the packages in it."""
        found: dict[str, str] = json.loads((self._dir / "versions.json").read_text())
        return found

    def kernel(self) -> Kernel:
        """Return the kernel that boots it."""
        name, version = next(
            (n, v) for n, v in self.versions.items() if n.startswith("linux-image-") and n[12].isdigit()
        )
        release = name.removeprefix("linux-image-")
        tree = self._dir / "kernel"
        modules = next(path for path in (tree / "lib/modules", tree / "usr/lib/modules") if path.is_dir())
        return Kernel(f"debian-{RELEASES[self.release]}", version, release, tree / f"boot/vmlinuz-{release}",
                      modules / release, self.release)  # fmt: skip

    def copy(self, target: Path) -> Path:
        """Copy the disk for a run; it stays sparse."""
        _run(["cp", "--sparse=always", "--reflink=auto", str(self.disk), str(target)])
        return target

    async def build(self, say: Callable[[str], None]) -> None:
        """Build it: packages, file system, first boot.

        :raise LabError: a package cannot be had or configured
        """
        if not host_tools.EMULATOR.ready:
            say("fetching QEMU and makedumpfile")
            host_tools.EMULATOR.fetch()
        if not host_tools.DISK_TOOLS.ready:
            host_tools.DISK_TOOLS.fetch()
        say(f"fetching the packages of a Debian {RELEASES[self.release]} guest")
        archive = Archive(self.release)
        archive.update()
        packages = archive.download(*_PACKAGES, *self.family.packages, *_EXTRA.get(self.release, ()))
        self._recipe.unlink(missing_ok=True)  # from here on kernel and disk may be of different builds
        (self._dir / "versions.json").write_text(json.dumps({p.name: p.version for p in packages}, indent=1) + "\n")
        shutil.rmtree(self._dir / "kernel", ignore_errors=True)
        debian.unpack([p for p in packages if p.name.startswith("linux-image-")], self._dir / "kernel")
        self._build_initramfs()
        say("making its file system")
        new = self._dir / "root.new"
        self._build_disk(packages, new)
        say("booting it once, to configure its packages (a few minutes, emulated)")
        await self._configure(new)
        if self._sources is not None:
            say(f"booting it again, so that {self.family.unit} makes its initrd (a few minutes, emulated)")
            await self._start_kdump(new)
        os.replace(new, self.disk)
        self._recipe.write_text(self.recipe())

    def _build_disk(self, packages: list[Package], disk: Path) -> None:
        tar = self._dir / "root.tar"
        with RootTar(tar) as root:  # the first of two files of one name stays: these replace the packages' own
            for master, name in (("passwd.master", "passwd"), ("group.master", "group")):
                base = next(p for p in packages if p.name == "base-passwd")
                root.file(f"etc/{name}", _file_of(base, f"./usr/share/base-passwd/{master}"))
            root.file("etc/fstab", b"/dev/vda / ext4 errors=remount-ro 0 1\n")
            root.file("etc/hostname", b"guest\n")
            root.file("etc/hosts", b"127.0.0.1 localhost guest\n")
            root.file("etc/initramfs-tools/update-initramfs.conf", b"update_initramfs=no\n")  # the lab boots its own
            root.file("etc/initramfs-tools/conf.d/lab", b"MODULES=dep\n")  # else its initrd takes minutes, emulated
            root.link("usr/bin/awk", "mawk")  # needed before mawk is configured
            for name in _PROGRAMS:
                root.file(f"{_OWN}/{name}", (_GUEST / name).read_bytes(), 0o755)
            root.file(f"{_OWN}/settings", (_GUEST / self.family.settings).read_bytes(), 0o755)
            for name, content, program in self._sources.files if self._sources else ():
                root.file(f"{_SOURCES}/{name}", content, 0o755 if program else 0o644)
            root.file(f"etc/systemd/system/{_UNIT}", (_GUEST / _UNIT).read_bytes())
            for package in packages:
                root.package(package)
        host_tools.make_file_system(tar, disk, _SIZE)
        tar.unlink()

    def _build_initramfs(self) -> None:
        kernel = self.kernel()
        modules = modules_in_load_order(kernel.modules, _MODULES)
        root = self._dir / "initramfs"
        initramfs.make_root(root, "init-root", modules, host_tools.busybox())
        with self.initramfs.open("wb") as out:
            initramfs.write_console(out)
            initramfs.write_tree(root, out)
        shutil.rmtree(root)

    async def _configure(self, disk: Path) -> None:
        out = self._dir / "first-boot"
        out.mkdir(exist_ok=True)
        log = out / "serial.log"
        log.unlink(missing_ok=True)
        async with DebianMachine(self.kernel(), self.initramfs, disk, out, _CONFIGURE) as machine:
            end = time.monotonic() + _CONFIGURE_LIMIT
            while machine.running and time.monotonic() < end:
                await asyncio.sleep(1)
        said = log.read_text(errors="replace")
        if "crash-hotplug-lab: configured" not in said:
            raise LabError(f"the packages of Debian {self.release} could not be configured; see {log}")

    async def _start_kdump(self, disk: Path) -> None:
        """Boot the whole system, wait until its kdump service has started, and shut it down."""
        out = self._dir / "second-boot"
        out.mkdir(exist_ok=True)
        async with DebianMachine(self.kernel(), self.initramfs, disk, out) as machine:
            agent = Agent(machine)
            try:
                await agent.connect(_INITRD_LIMIT)
                state = await agent.run("systemctl", "is-active", self.family.unit)
                journal = await agent.run("journalctl", "-b", "--no-pager", timeout=300)
                (out / "journal.txt").write_text(journal["out"])
                if state["rc"]:
                    raise LabError(f"{self.family.unit} did not start; see {out / 'journal.txt'}")
                await agent.send("run", argv=["systemctl", "poweroff"])
                await machine.wait_dumped(300.0)
            except GuestError as error:
                raise LabError(f"the guest could not start {self.family.unit}: {error}") from None


def _file_of(package: Package, name: str) -> bytes:
    """Return one file out of a package."""
    raw = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package.deb)], capture_output=True, check=True).stdout
    done = subprocess.run(["tar", "-xO", name], input=raw, capture_output=True, check=False)
    if done.returncode:
        raise LabError(f"{package.deb.name} holds no {name}")
    return done.stdout


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()[-300:]}")


def build(image: DebianImage, say: Callable[[str], None], again: bool = False) -> DebianImage:
    """Return the image, built now unless the cache has it."""
    if again or not image.ready:
        asyncio.run(image.build(say))
    return image
