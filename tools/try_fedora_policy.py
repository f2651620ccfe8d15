# SPDX-License-Identifier: MIT
"""Compile Fedora's SELinux policy, and install this project's module into it, which is then judged.  As root.

``python3 tools/try_fedora_policy.py TREE``: TREE is a checkout of github.com/fedora-selinux/selinux-policy, which this
project does not carry.  Its branches c9s and c10s are the policies of EL 9 and 10.  The policy is compiled and linked
with all its modules and its neverallow rules, as the package selinux-policy-targeted is, by the tools of Debian 13 in
a directory that is removed afterwards.  No kernel loads it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from crash_hotplug_lab.qemu.debian import Archive, unpack

RELEASE = "trixie"
PACKAGES = (
    "base-files", "bash", "checkpolicy", "coreutils", "dash", "diffutils", "findutils", "gawk", "grep", "m4", "make",
    "policycoreutils", "python3", "sed", "selinux-utils", "semodule-utils", "setools",
)  # fmt: skip
MODULE = Path(__file__).parent.parent / "packaging/selinux"
CHROOT = """\
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C bash -euc "$2"
"""
MAKE = "make UNK_PERMS=allow NAME=targeted TYPE=mcs DISTRO=redhat UBAC=n DIRECT_INITRC=n MONOLITHIC=n"
HEADERS = "/usr/share/selinux/targeted/include"
INSTALL = "semodule -s targeted -n"
POLICY = f"""\
cd /policy
# The interfaces of container-selinux, another project: the optional blocks that call one need a type that is not there.
grep -rhoE '\\bcontainer_[a-z_]+\\(' policy/modules | sort -u | while read -r name; do
    echo "define(\\`${{name%(}}',\\`gen_require(\\`type no_such_t;')"
    echo "allow no_such_t self:process signal;')"
done > policy/support/container.spt
{MAKE} conf
for file in modules.conf booleans.conf; do
    [ ! -e dist/targeted/$file ] || cp dist/targeted/$file policy/
done
{MAKE} base.pp
{MAKE} -j2 modules
{MAKE} install-headers
sed -i 's/^expand-check=.*/expand-check=1/' /etc/selinux/semanage.conf  # with the neverallow rules
mkdir -p /var/lib/selinux/targeted/active/modules /etc/selinux/targeted/policy /etc/selinux/targeted/contexts/files
cp config/file_contexts.subs_dist /etc/selinux/targeted/contexts/files/
{INSTALL} -X 100 $(printf -- '-i %s ' base.pp $(ls *.pp | grep -v '^base.pp$'))
"""
OURS = f"""\
cd /module
make -f {HEADERS}/Makefile NAME=targeted HEADERDIR={HEADERS} crash-hotplug.pp
{INSTALL} -X 200 -i crash-hotplug.pp
"""
FORBIDDEN = f"""\
echo '(allow crash_hotplug_t shadow_t (file (write)))' > /forbidden.cil
{INSTALL} -X 200 -i /forbidden.cil
"""
RULES = (
    ("the service writes no file of /etc", "-A -s crash_hotplug_t -t etc_t -c file -p write,append,create,unlink", ""),
    ("the service writes no memory device", "-A -s crash_hotplug_t -t memory_device_t -c chr_file -p write", ""),
    ("only systemd enters the domain", "-T -t crash_hotplug_exec_t -c process", "type_transition init_t "),
    ("the service makes kdumpctl's lock", "-T -s crash_hotplug_t -t var_lock_t -c file", "kdump_lock_t kdump;"),
    ("the service takes it", "-A -s crash_hotplug_t -t kdump_lock_t -c file -p lock", "allow crash_hotplug_t"),
    ("kdumpctl takes it", "-A -s kdumpctl_t -t kdump_lock_t -c file -p lock", "allow"),
    (
        "kdumpctl takes a lock that the service made",
        "-A -s kdumpctl_t -t crash_hotplug_lock_t -c file -p lock",
        "allow",
    ),
    ("systemd starts the reload", "-A -s crash_hotplug_t -t systemd_unit_file_t -c service -p start", "allow"),
    ("the service writes to the journal", "-A -s crash_hotplug_t -t init_t -c unix_stream_socket -p write", "allow"),
)
"""A sentence, the arguments of sesearch, and a text in what it prints; "" where it may print nothing."""
LABELS = {
    "/run/lock/kdump": "(kdump|var)_lock_t",  # c10s looks the path up as /var/lock/kdump, and has no entry for that
    "/run/crash-hotplug/load": "crash_hotplug_runtime_t",
    "/var/crash/kdump_lock": "crash_hotplug_lock_t",
    "/usr/bin/crash-hotplug": "crash_hotplug_exec_t",
}
CONTEXTS = "/etc/selinux/targeted/contexts/files/file_contexts"


class Root:
    """A directory with the tools, the policy and the module."""

    def __init__(self, directory: Path, tree: Path) -> None:
        """Fill the directory."""
        archive = Archive(RELEASE)
        if not archive.updated:
            archive.update()
        self._directory = directory / "root"
        unpack(archive.download(*PACKAGES), self._directory)
        (self._directory / "usr/bin/awk").symlink_to("gawk")
        shutil.copytree(tree, self._directory / "policy", symlinks=True, ignore=shutil.ignore_patterns(".git"))
        shutil.copytree(MODULE, self._directory / "module")
        self.failed = False

    def run(self, command: str) -> tuple[int, str]:
        """Run a shell command there; return its exit code and its output."""
        within = ["sh", "-euc", CHROOT, "sh", str(self._directory), command]
        argv = ["unshare", "--mount", "--propagation", "private", *within]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.returncode, done.stdout

    def check(self, what: str, ok: bool, detail: str) -> None:
        """Print a result."""
        self.failed = self.failed or not ok
        print(f"{'ok' if ok else 'NOT OK':7} {what}: {' '.join(detail.split()) or 'nothing'}", flush=True)


def main() -> int:
    """Compile, install and ask; the exit code is 1 where a check failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tree", type=Path, metavar="TREE", help="a checkout of selinux-policy")
    tree = parser.parse_args().tree
    if not (tree / "policy/modules").is_dir():
        parser.error(f"{tree} is no checkout of selinux-policy: it has no policy/modules")
    with tempfile.TemporaryDirectory() as name:
        root = Root(Path(name), tree)
        code, said = root.run(POLICY)
        root.check("the policy is compiled", code == 0, said[-300:] if code else "with all its modules")
        code, said = root.run(OURS)
        root.check("the module is compiled and installed", code == 0, said[-300:] if code else "with neverallow rules")
        code, said = root.run(FORBIDDEN)
        root.check("negative control: the neverallow rules refuse a write to shadow_t", code != 0, said[:300])
        for what, arguments, wanted in RULES:
            code, said = root.run(f"sesearch {arguments} /etc/selinux/targeted/policy/policy.*")
            root.check(what, code == 0 and (wanted in said if wanted else said == ""), said)
        for path, wanted in LABELS.items():
            _, said = root.run(f"selabel_lookup -b file -f {CONTEXTS} -k {path} -t file")
            root.check(f"label of {path}", bool(re.search(f":{wanted}:", said)), said)
        _, said = root.run(f"awk '/^[^#]/ {{ print $1, (NF > 2 ? $2 : \"\") }}' {CONTEXTS} | sort | uniq -d")
        root.check("no path has two entries", said == "", said)
    return root.failed


if __name__ == "__main__":
    sys.exit(main())
