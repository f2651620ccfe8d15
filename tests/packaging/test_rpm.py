# SPDX-License-Identifier: MIT
"""The .rpm for each distribution, by its macros: built, and installed, upgraded and removed by rpm and dnf for real.

The distribution's own packages are a stub package that provides their names; systemctl is systemd's own, and its calls
are recorded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.packaging.test_packages import RPMLINT
from tests.packaging.tool_root import ToolRoot

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        not (shutil.which("rpmbuild") and shutil.which("rpmlint")), reason="rpm and rpmlint are not installed"
    ),
]
ROOT = Path(__file__).parent.parent.parent
SPEC = ROOT / "packaging/rpm/crash-hotplug.spec"
MACROS = ROOT / "packaging/rpm/debian.macros"
WANTS = "/etc/systemd/system/multi-user.target.wants/crash-hotplug.service"
PRESETS = "/usr/lib/systemd/system-preset/90-test.preset"
SETTINGS = "/etc/sysconfig/crash-hotplug"
RULE = "/usr/lib/udev/rules.d/98-kexec.rules"
HIDES = "/etc/udev/rules.d/98-kexec.rules"
CALLS = "/var/log/selinux.calls"
RECORD = f'echo "${{0##*/}} $*" >> {CALLS}\n'
"""Instead of the policy's programs, whose store the root does not have; tools/try_policies.py runs them for real."""


@dataclass(frozen=True)
class Distribution:
    """The macros of a distribution, and the parts of the package that depend on them."""

    name: str
    defines: tuple[str, ...]
    python: str
    """Name of the package with Python."""
    interpreter: str
    recommends: str


DISTRIBUTIONS = (
    Distribution("el8", ("rhel 8", "dist .el8"), "python3.12", "/usr/bin/python3.12", "kexec-tools"),
    Distribution("el9", ("rhel 9", "dist .el9"), "python3", "/usr/bin/python3", "kexec-tools"),
    Distribution("el10", ("rhel 10", "dist .el10"), "python3", "/usr/bin/python3", "kdump-utils"),
    Distribution("fc43", ("fedora 43", "dist .fc43"), "python3", "/usr/bin/python3", "kdump-utils"),
    Distribution("sle15", ("suse_version 1500",), "python311", "/usr/bin/python3.11", "kdump"),
    Distribution("tumbleweed", ("suse_version 1699",), "python3", "/usr/bin/python3", "kdump"),
)
EL9 = DISTRIBUTIONS[1]


class Builder:
    """Builds .rpm files of changed copies of the source tree."""

    def __init__(self, directory: Path) -> None:
        """Copy the source tree, and take the directory that packages go to."""
        self.packages = directory / "packages"
        self._directory = directory
        self._source = directory / "source"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, listed):
            (self._source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, self._source / name)
        self.packages.mkdir()

    def build(self, distribution: Distribution, version: str = "", settings: str = "") -> Path:
        """Return the package of a distribution, without the one of the SELinux module, which needs its compiler.

        :param version: instead of the source's
        :param settings: one more line of the settings file
        """
        work = self.prepare(distribution, version, settings)
        self._rpmbuild(work, work / "crash-hotplug.spec", "_without_selinux 1", *distribution.defines)
        return self._moved(work)

    def prepare(self, distribution: Distribution, version: str = "", settings: str = "") -> Path:
        """Return a directory with the source archive, the spec file and the macros."""
        spec = SPEC.read_text()
        version = version or re.findall(r"^Version: +(\S+)", spec, re.MULTILINE)[0]
        work = self._directory / f"{distribution.name}-{version}"
        name = f"crash-hotplug-{version}"
        tree = work / name
        shutil.copytree(self._source, tree)
        with (tree / "packaging/systemd/crash-hotplug.settings").open("a") as file:
            file.write(settings)
        subprocess.run(["tar", "-C", str(work), "-czf", str(work / f"{name}.tar.gz"), name], check=True)
        (work / "crash-hotplug.spec").write_text(re.sub(r"(?m)^(Version: +)\S+", rf"\g<1>{version}", spec))
        shutil.copy(MACROS, work)
        return work

    def stub(self, distribution: Distribution) -> Path:
        """Return a package that provides the names of the distribution's packages, and a udev rule of kdumpctl."""
        built = self.packages / f"stub-{distribution.name}-1-1.noarch.rpm"
        if built.exists():
            return built
        work = self._directory / f"stub-{distribution.name}"
        work.mkdir()
        (work / "98-kexec.rules").write_bytes(
            (ROOT / "tests/families/redhat/usr/lib/udev/rules.d/98-kexec.rules").read_bytes()
        )
        version = distribution.interpreter.partition("/usr/bin/python")[2] if "." in distribution.interpreter else "3.9"
        provides = [
            f"{distribution.python} = {version}", f"python(abi) = {version}", distribution.interpreter, "/bin/sh",
            f"{distribution.recommends} = 1", "systemd = 257",
        ]  # fmt: skip
        (work / "stub.spec").write_text(
            f"Name: stub-{distribution.name}\nVersion: 1\nRelease: 1\nSummary: Names\nLicense: MIT\nBuildArch: noarch\n"
            "Source0: 98-kexec.rules\n" + "".join(f"Provides: {name}\n" for name in provides)
            + f"%description\nNames.\n%install\ninstall -Dm644 %{{SOURCE0}} %{{buildroot}}{RULE}\n"
            f"%files\n{RULE}\n"
        )  # fmt: skip
        self._rpmbuild(work, work / "stub.spec")
        return self._moved(work)

    @staticmethod
    def _rpmbuild(work: Path, spec: Path, *defined: str) -> None:
        defines = [f"_topdir {work}", f"_sourcedir {work}", *defined]
        command = ["rpmbuild", "-bb", "--nodeps", "--load", str(MACROS)]
        command += [word for name in defines for word in ("--define", name)]
        done = subprocess.run(
            [*command, str(spec)], capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]

    def _moved(self, work: Path) -> Path:
        (built,) = work.glob("RPMS/noarch/*.rpm")
        return built.rename(self.packages / built.name)


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("rpm"))


@pytest.fixture(scope="module")
def old_and_new(builder: Builder) -> tuple[Path, Path]:
    """Return two versions of EL 9's package; the newer one brings another settings file."""
    return builder.build(EL9, "0.0.8"), builder.build(EL9, "0.0.9", settings='#OPTIONS="--max-delay 2"\n')


@pytest.fixture(scope="module")
def stub(builder: Builder) -> Path:
    return builder.stub(EL9)


@pytest.fixture
def root(builder: Builder, stub: Path) -> Iterator[ToolRoot]:
    """Return a root of EL 9 with the names of its packages, in which presets enable nothing (as Fedora's last one)."""
    with ToolRoot(builder.packages) as root:
        root.run(f"rpm -i /packages/{stub.name}")
        root.write(PRESETS, "disable *\n")
        yield root


def install(root: ToolRoot, package: Path) -> None:
    root.run(f"rpm -U /packages/{package.name}")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda distribution: distribution.name)
def test_package_is_built_and_installed_by_each_distributions_macros(
    builder: Builder, distribution: Distribution
) -> None:
    package = builder.build(distribution)
    stub = builder.stub(distribution)
    lint = subprocess.run([*RPMLINT, str(package)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "1 packages and 0 specfiles checked; 0 errors, 0 warnings" in lint.stdout, lint.stdout
    with ToolRoot(builder.packages) as root:
        refused = root.try_run(f"dnf -y --disablerepo='*' install /packages/{package.name}")
        assert refused[0] != 0
        assert f"nothing provides {distribution.python} >= 3.9" in refused[1]
        root.run(f"dnf -y --disablerepo='*' install /packages/{package.name} /packages/{stub.name}")
        assert f"{root.run('rpm -q crash-hotplug').strip()}.rpm" == package.name
        assert distribution.recommends in root.run("rpm -q --recommends crash-hotplug").split()
        # rpm -V: every file is there as the package has it
        assert root.run("rpm -V crash-hotplug") == ""
        assert root.run("head -1 /usr/bin/crash-hotplug") == f"#!{distribution.interpreter} -IS\n"
        if distribution.interpreter != "/usr/bin/python3":
            root.run(f"ln -s /usr/bin/python3 {distribution.interpreter}.new; mv -n {distribution.interpreter}.new "
                     f"{distribution.interpreter}; rm -f {distribution.interpreter}.new")  # fmt: skip
        assert root.run("crash-hotplug --version").startswith("crash-hotplug ")
        assert root.try_run("crash-hotplug status")[0] in (3, 5)
        root.run("dnf -y remove crash-hotplug")
        assert root.try_run("rpm -q crash-hotplug")[0] != 0
        assert root.run("find / -xdev -name '*crash?hotplug*' ! -path '/packages/*' ! -path '/var/*'") == ""


def test_presets_decide_whether_the_service_is_enabled(root: ToolRoot, old_and_new: tuple[Path, Path]) -> None:
    install(root, old_and_new[0])
    assert root.systemctl_calls() == ["--no-reload preset crash-hotplug.service"]
    assert not root.exists(WANTS)
    root.run("rpm -e crash-hotplug")
    assert root.systemctl_calls() == ["--no-reload disable --now crash-hotplug.service"]
    root.write(PRESETS, "enable crash-hotplug.service\ndisable *\n")
    install(root, old_and_new[0])
    assert root.exists(WANTS)


def test_upgrade_restarts_the_service_and_keeps_the_administrators_choice(
    root: ToolRoot, old_and_new: tuple[Path, Path]
) -> None:
    old, new = old_and_new
    root.write(PRESETS, "enable crash-hotplug.service\ndisable *\n")
    install(root, old)
    root.run("systemctl disable crash-hotplug.service")
    root.systemctl_calls()
    install(root, new)
    assert root.systemctl_calls() == ["try-restart crash-hotplug.service"]
    assert not root.exists(WANTS)
    assert root.run("rpm -q crash-hotplug").count("crash-hotplug-") == 1
    assert root.try_run(f"rpm -U /packages/{old.name}")[0] != 0, "an older version replaced a newer one"


def test_settings_file_survives_an_upgrade_if_it_was_changed(root: ToolRoot, old_and_new: tuple[Path, Path]) -> None:
    old, new = old_and_new
    install(root, old)
    root.write(SETTINGS, 'OPTIONS="--heartbeat 5"\n')
    install(root, new)
    assert root.run(f"cat {SETTINGS}") == 'OPTIONS="--heartbeat 5"\n'
    assert "--max-delay 2" in root.run(f"cat {SETTINGS}.rpmnew")
    root.run("rpm -e crash-hotplug")
    assert root.run(f"cat {SETTINGS}.rpmsave") == 'OPTIONS="--heartbeat 5"\n'
    assert not root.exists(SETTINGS)


def test_settings_file_that_nobody_changed_is_replaced(root: ToolRoot, old_and_new: tuple[Path, Path]) -> None:
    install(root, old_and_new[0])
    install(root, old_and_new[1])
    assert "--max-delay 2" in root.run(f"cat {SETTINGS}")
    assert not root.exists(f"{SETTINGS}.rpmnew")
    root.run("rpm -e crash-hotplug")
    assert not root.exists(SETTINGS)


@pytest.mark.parametrize("remove", ["rpm -e", "dnf -y remove"])
def test_changes_of_doctor_survive_an_upgrade_and_end_with_the_package(
    root: ToolRoot, old_and_new: tuple[Path, Path], remove: str
) -> None:
    install(root, old_and_new[0])
    root.write("/etc/sysconfig/kdump", 'KDUMP_COMMANDLINE_APPEND="irqpoll"\n')
    root.run("crash-hotplug doctor --fix")
    assert "Written by crash-hotplug doctor" in root.run(f"cat {HIDES}")
    install(root, old_and_new[1])
    assert "Written by crash-hotplug doctor" in root.run(f"cat {HIDES}")
    root.run(f"{remove} crash-hotplug")
    assert not root.exists(HIDES)
    assert root.run("cat /etc/sysconfig/kdump") == 'KDUMP_COMMANDLINE_APPEND="irqpoll"\n'
    assert not root.exists("/var/lib/crash-hotplug")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda distribution: distribution.name)
def test_selinux_package_is_built_where_the_distribution_has_the_policys_compiler(distribution: Distribution) -> None:
    defines = [word for name in distribution.defines for word in ("--define", name)]
    command = ["rpmspec", "-q", "--qf", "%{name}\\n", "--load", str(MACROS), *defines, str(SPEC)]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert names == ["crash-hotplug"] + ["crash-hotplug-selinux"] * (distribution.name != "sle15")


def test_selinux_package_installs_the_module_and_removes_it(builder: Builder) -> None:
    work = builder.prepare(EL9, "0.0.7")
    with ToolRoot(work) as root:
        root.write("/usr/sbin/semodule", f"#!/bin/sh\n{RECORD}")
        root.write("/sbin/restorecon", f"#!/bin/sh\n{RECORD}")
        root.run("chmod 755 /usr/sbin/semodule /sbin/restorecon")
        define = [f"--define '{name}'" for name in ("_topdir /packages", "_sourcedir /packages", *EL9.defines)]
        root.run(f"cd /packages && rpmbuild -bb --nodeps --load debian.macros {' '.join(define)} crash-hotplug.spec")
        packages = sorted(work.glob("RPMS/noarch/*.rpm"))
        lint = subprocess.run([*RPMLINT, *map(str, packages)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert "2 packages and 0 specfiles checked; 0 errors, 0 warnings" in lint.stdout, lint.stdout
        files = " ".join(f"/packages/RPMS/noarch/{package.name}" for package in packages)
        assert "selinux-policy-targeted is needed" in root.try_run(f"rpm -U {files}")[1]
        root.run(f"rpm -U --nodeps {files}")
        module = "/usr/share/selinux/packages/targeted/crash-hotplug.pp"
        relabel = "restorecon -iR /usr/bin/crash-hotplug /run/crash-hotplug /var/crash/kdump_lock"
        assert root.run(f"cat {CALLS}").splitlines() == [f"semodule -n -s targeted -X 200 -i {module}", relabel]
        assert root.systemctl_calls()[-1] == "try-restart crash-hotplug.service"
        root.run(f"semodule_unpackage {module} /tmp/module /tmp/contexts && grep crash_hotplug_exec_t /tmp/contexts")
        root.run(f"rm {CALLS}; rpm -e crash-hotplug-selinux")
        assert root.run(f"cat {CALLS}").splitlines() == ["semodule -n -s targeted -X 200 -r crash-hotplug", relabel]
        assert root.systemctl_calls() == ["try-restart crash-hotplug.service"]
        root.run("rpm -q crash-hotplug")
