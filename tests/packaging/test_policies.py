# SPDX-License-Identifier: MIT
"""The SELinux module and the AppArmor profile: both are compiled, and allow what the unit allows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.test_systemd_unit import settings
from tests.packaging.tool_root import ToolRoot

ROOT = Path(__file__).parent.parent.parent
SELINUX, APPARMOR = ROOT / "packaging/selinux", ROOT / "packaging/apparmor"
MAKE = "make -f /usr/share/selinux/devel/Makefile NAME=devel"
PARSE = "apparmor_parser --skip-kernel-load --skip-cache"


def profile() -> str:
    return (APPARMOR / "crash-hotplug").read_text()


def rules() -> str:
    """Return the SELinux module without its comments."""
    return re.sub(r"^\s*#.*$", "", (SELINUX / "crash-hotplug.te").read_text(), flags=re.MULTILINE)


def labels(contexts: str) -> dict[str, str]:
    """Return the type of each path in a file of file contexts."""
    return dict(re.findall(r"^(/\S+)\s.*:object_r:(\w+)", contexts, re.MULTILINE))


def test_unit_asks_for_the_profile_and_starts_without_it() -> None:
    assert settings()["AppArmorProfile"] == ["-crash-hotplug"]
    assert re.search(r"^profile crash-hotplug ", profile(), re.MULTILINE)


def test_policies_allow_the_capabilities_of_the_unit() -> None:
    wanted = {name[len("CAP_") :].lower() for name in settings()["CapabilityBoundingSet"][0].split()}
    assert wanted <= set(re.findall(r"^  capability (\w+),$", profile(), re.MULTILINE))
    allowed = " ".join(re.findall(r"allow crash_hotplug_t self:capability2? \{?([\w ]+)", rules())).split()
    # Root owns the files that the service writes; a directory of another user gets crash_hotplug_metrics_t.
    assert wanted - set(allowed) == {"dac_override"}


@pytest.mark.parametrize("policy", ["profile", "module"])
def test_policies_allow_no_other_capability_than_the_unit(policy: str) -> None:
    wanted = {name[len("CAP_") :].lower() for name in settings()["CapabilityBoundingSet"][0].split()}
    if policy == "profile":
        allowed = set(re.findall(r"^  capability (\w+),$", profile(), re.MULTILINE))
    else:
        allowed = set(" ".join(re.findall(r"allow crash_hotplug_t self:capability2? \{?([\w ]+)", rules())).split())
    assert allowed - wanted <= {"dac_read_search"}


def test_profile_allows_the_writable_paths_of_the_unit() -> None:
    text = profile().replace("@{run}", "/run")
    for path in settings()["ReadWritePaths"][0].replace("-/", "/").split():
        assert re.search(rf"^  {re.escape(path)}/\S+ rwk?,$", text, re.MULTILINE), path
    written = re.findall(r"^  (/\S+) rw?k?,$", text, re.MULTILINE)
    assert not [path for path in written if path.startswith("/etc") and "w" in path.rpartition(" ")[2]]


def test_policies_allow_the_search_for_the_process_that_has_a_lock() -> None:
    for path in ("", "@{pid}/*", "@{pid}/{fd,fdinfo}/", "@{pid}/fdinfo/*"):
        assert f"  @{{PROC}}/{path} r,\n" in profile()
    assert "domain_read_all_domains_state(crash_hotplug_t)" in rules()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[ToolRoot]:
    """Return a root in which /packages has both policies."""
    for source in (*SELINUX.iterdir(), *APPARMOR.iterdir()):
        shutil.copy(source, tmp_path)
    with ToolRoot(tmp_path) as root:
        yield root


@pytest.mark.lab
def test_selinux_module_is_compiled_against_the_reference_policy(root: ToolRoot, tmp_path: Path) -> None:
    root.run(f"cd /packages && {MAKE} crash-hotplug.pp")
    assert (tmp_path / "crash-hotplug.pp").stat().st_size > 10_000
    contexts = root.run("cd /packages && semodule_unpackage crash-hotplug.pp module contexts && cat contexts")
    assert labels(contexts) == {
        "/usr/bin/crash-hotplug": "crash_hotplug_exec_t",
        "/run/crash-hotplug(/.*)?": "crash_hotplug_runtime_t",
        "/run/lock/kdump": "crash_hotplug_lock_t",
        "/var/crash/kdump_lock": "crash_hotplug_lock_t",
    }
    with (tmp_path / "crash-hotplug.te").open("a") as file:
        file.write("allow crash_hotplug_t no_such_type_t:file read;\n")
    code, said = root.try_run(f"cd /packages && {MAKE} crash-hotplug.pp")
    assert code != 0
    assert "no_such_type_t" in said


@pytest.mark.lab
def test_selinux_labels_for_red_hat_leave_the_lock_of_kdumpctl_to_its_policy(root: ToolRoot) -> None:
    contexts = "tmp/crash-hotplug.mod.fc"
    found = labels(root.run(f"cd /packages && {MAKE} DISTRO=redhat {contexts} && cat {contexts}"))
    assert found["/var/run/crash-hotplug(/.*)?"] == found["/run/crash-hotplug(/.*)?"] == "crash_hotplug_runtime_t"
    assert "/run/lock/kdump" not in found


@pytest.mark.lab
def test_apparmor_profile_is_compiled(root: ToolRoot, tmp_path: Path) -> None:
    root.run(f"{PARSE} /packages/crash-hotplug")
    assert "crash-hotplug" in root.run(f"{PARSE} --names /packages/crash-hotplug").split()
    text = profile()
    (tmp_path / "crash-hotplug").write_text(text.replace("capability syslog,", "capability no_such_capability,"))
    assert root.try_run(f"{PARSE} /packages/crash-hotplug")[0] != 0
