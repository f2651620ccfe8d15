# SPDX-License-Identifier: MIT
"""A root directory with Debian 12's rpm, dnf, systemctl and compilers of SELinux and AppArmor policies, for tests.

Its files come from the lab's cache.  Each :class:`ToolRoot` is an overlay over them in a mount namespace of its own, so
that nothing is left of it, neither there nor on this machine.  chroot(2) and mounts need root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from crash_hotplug_lab.qemu.debian import Archive, cache_dir, unpack
from crash_hotplug_lab.qemu.errors import LabError
from tests.lab.qemu.fetching import one_at_a_time

PACKAGES = (
    "apparmor", "base-files", "bash", "checkpolicy", "coreutils", "dash", "diffutils", "dnf", "findutils", "gawk",
    "grep", "gzip", "m4", "make", "policycoreutils", "python3", "rpm", "sed", "selinux-policy-dev", "semodule-utils",
    "systemd",
)  # fmt: skip
_CALLS = "/var/log/systemctl.calls"
_SYSTEMCTL = f"""\
#!/bin/sh
# Records each call; a chroot has no systemd, which the calls that reach one would fail to say.
echo "$*" >> {_CALLS}
exec /bin/systemctl.real "$@"
"""
_SERVE = """\
mount -t tmpfs tmpfs /mnt
mkdir /mnt/changes /mnt/work /mnt/root
mount -t overlay overlay -o "lowerdir=$1,upperdir=/mnt/changes,workdir=/mnt/work" /mnt/root
mkdir -p /mnt/root/packages
mount --bind "$2" /mnt/root/packages
mount --rbind /dev /mnt/root/dev
mount -t proc proc /mnt/root/proc
exec chroot /mnt/root /bin/sh
"""


def base() -> Path:
    """Return the directory of the root's files, made once.

    :raise LabError: the packages cannot be downloaded
    """
    directory = cache_dir("tools") / "bookworm-package-tools"
    with one_at_a_time():
        if not directory.exists():
            archive = Archive("bookworm")
            if not archive.updated:
                archive.update()
            new = directory.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            unpack(archive.download(*PACKAGES), new)
            (new / "bin/systemctl").rename(new / "bin/systemctl.real")
            (new / "bin/systemctl").write_text(_SYSTEMCTL)
            (new / "bin/systemctl").chmod(0o755)
            for name in ("dev", "proc", "etc/rpm"):
                (new / name).mkdir(parents=True, exist_ok=True)
            # Debian's rpm keeps a database in root's home, so that nobody mixes it with dpkg's
            (new / "etc/rpm/macros").write_text("%_dbpath /var/lib/rpm\n")
            new.rename(directory)
    return directory


class ToolRoot:
    """A shell in a fresh root with an empty RPM database; use as a context manager."""

    def __init__(self, packages: Path) -> None:
        """Take the directory that appears as /packages.

        :raise pytest.skip.Exception: this machine cannot make such a root
        """
        if os.geteuid() != 0:
            pytest.skip("a root directory for rpm needs root (chroot, mount)")
        try:
            lower = base()
        except LabError as error:
            pytest.skip(str(error))
        self._shell = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _SERVE, "sh", str(lower), str(packages)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/root"},
        )  # fmt: skip
        code, said = self.try_run("rpm --initdb && rpm -qa")
        if code != 0 or "mount" in said:
            self.close()
            pytest.skip(f"this machine allows no mounts: {said.strip()}")

    def __enter__(self) -> ToolRoot:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the shell; the kernel removes its mounts with it."""
        self.close()

    def close(self) -> None:
        """End the shell."""
        self._shell.communicate()

    def try_run(self, command: str) -> tuple[int, str]:
        """Run a shell command in the root; return its exit code and its output."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        try:
            self._shell.stdin.write(f'( {command}\n) < /dev/null 2>&1; echo "exit code of the command: $?"\n')
            self._shell.stdin.flush()
        except BrokenPipeError:
            return -1, self._shell.stdout.read()
        said = ""
        for line in self._shell.stdout:
            if "exit code of the command: " in line:
                before, _, code = line.partition("exit code of the command: ")
                return int(code), said + before
            said += line
        return -1, said

    def run(self, command: str) -> str:
        """Run a shell command in the root; it has to succeed."""
        code, said = self.try_run(command)
        assert code == 0, f"{command}\n{said}"
        return said

    def write(self, path: str, text: str) -> None:
        """Write a file in the root."""
        self.run(f"mkdir -p {os.path.dirname(path)}\ncat > {path} <<'EOF of the file'\n{text}EOF of the file")

    def exists(self, path: str) -> bool:
        """Whether there is anything at a path of the root, even a link that leads nowhere."""
        return self.try_run(f"[ -e {path} ] || [ -L {path} ]")[0] == 0

    def systemctl_calls(self) -> list[str]:
        """Return the calls of systemctl since the last time."""
        return self.run(f"touch {_CALLS}; cat {_CALLS}; : > {_CALLS}").splitlines()
