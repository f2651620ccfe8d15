# SPDX-License-Identifier: MIT
"""The facts that doctor reads, each with the answers that it may have."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.arch.arm64 import ARM64
from crash_hotplug.core.arch.boot_params import ZeroPage
from crash_hotplug.core.doctor.udev_rules import UEvent
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.machine import NoteRegion
from crash_hotplug.core.verdict import assess
from crash_hotplug.linux import kallsyms
from crash_hotplug.linux.crash_image import read_crash_image
from crash_hotplug.linux.doctor import diagnosis
from crash_hotplug.linux.doctor.config_files import KernelConfig, RulesFile
from crash_hotplug.linux.doctor.diagnosis import LoadedImage, read_diagnosis
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_state import KexecState, read_kexec_state
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.family_trees import build
from tests.trees import LiveTree, arm64_tree, tree

FREE = KexecState(True, 0, None, None, None, None, None, None)


def loaded(name: str = "6.12-s", state: int = 0) -> LoadedImage:
    sysroot = Sysroot(str(tree(name, state)))
    machine = read_machine(sysroot)
    image = read_crash_image(sysroot, machine.crashkernel)
    return LoadedImage(machine, image, assess(machine, image))


def test_header_describes_all_cpus_where_the_notes_of_each_are_in_it() -> None:
    found = loaded()
    described = found.assessment.header.cpu_notes
    known = tuple(cpu._replace(crash_notes=note) for cpu, note in zip(found.machine.cpus, described))
    whole = LoadedImage(found.machine._replace(cpus=known), found.image, found.assessment)
    assert diagnosis._describes_all_cpus(whole) is True
    one_elsewhere = (*known[:-1], known[-1]._replace(crash_notes=NoteRegion(0x1000, 368)))
    elsewhere = LoadedImage(found.machine._replace(cpus=one_elsewhere), found.image, found.assessment)
    assert diagnosis._describes_all_cpus(elsewhere) is False


def test_header_may_describe_all_cpus_where_notes_are_not_known() -> None:
    assert diagnosis._describes_all_cpus(None) is None
    assert diagnosis._describes_all_cpus(loaded("6.12-s", 0)) is None  # eight notes for eight possible CPUs
    assert diagnosis._describes_all_cpus(loaded("6.1-c", 0)) is False  # two


@pytest.mark.parametrize(
    ("cmdline", "claims"),
    [("nr_cpus=1 acpi_no_memhotplug", False), ("nr_cpus=1", True), ("acpi_no_memhotplug=0", True), (None, None)],
)
def test_capture_kernel_claims_dimms_unless_its_command_line_forbids_it(
    tmp_path: Path, cmdline: str | None, claims: bool | None
) -> None:
    found = loaded()
    image = LoadedImage(found.machine, found.image._replace(boot=ZeroPage(cmdline=cmdline)), found.assessment)
    (tmp_path / "sys").mkdir()
    assert diagnosis._claims_dimms(Sysroot(str(tmp_path)), image) is False  # no such devices
    (tmp_path / "sys/bus/acpi/devices/PNP0C80:00").mkdir(parents=True)
    assert diagnosis._claims_dimms(Sysroot(str(tmp_path)), image) is claims
    assert diagnosis._claims_dimms(Sysroot(str(tmp_path)), None) is None


@pytest.mark.parametrize(
    ("release", "cmdline", "refuses"),
    [
        ("6.1.0-50-amd64", "irqpoll nr_cpus=32", True),
        ("5.14.21-150500.55-default", "maxcpus=1", True),
        ("6.1.0-50-amd64", "nr_cpus=1 reset_devices", False),
        ("6.1.0-50-amd64", None, None),
        ("6.9.0", "nr_cpus=32", False),
        ("6.12.9", None, False),
        (None, "nr_cpus=32", None),
    ],
)
def test_capture_kernel_starts_on_an_added_cpu_by_its_release_and_command_line(
    release: str | None, cmdline: str | None, refuses: bool | None
) -> None:
    found = loaded()
    image = LoadedImage(found.machine, found.image._replace(boot=ZeroPage(cmdline=cmdline)), found.assessment)
    assert diagnosis._refuses_added_cpus(release, image) is refuses
    assert diagnosis._refuses_added_cpus(release, None) is None
    arm64 = LoadedImage(found.machine._replace(architecture=ARM64), image.image, found.assessment)
    assert diagnosis._refuses_added_cpus(release, arm64) is False


def test_update_in_place_needs_kexec_load(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    saved, live = Sysroot(str(tmp_path)), LiveTree(str(tmp_path))
    without = KernelConfig("/boot/config", "# CONFIG_KEXEC is not set\nCONFIG_KEXEC_FILE=y\n")
    can = diagnosis._can_update_in_place
    no_call = "this kernel was built without kexec_load (no CONFIG_KEXEC in /boot/config)"
    assert can(saved, FREE, without, None) == (False, no_call)
    locked = FREE._replace(lockdown="integrity")
    assert can(saved, locked, None, None) == (False, "lockdown (integrity) forbids kexec_load")
    assert can(saved, FREE, KernelConfig("/boot/config", "CONFIG_KEXEC=y\n"), None)[0] is None
    assert can(live, FREE, None, None) == (None, "the loaded image cannot be read")


@pytest.mark.parametrize("reason", [None, "this machine is aarch64"])
def test_update_in_place_on_a_live_machine_is_told_by_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str | None
) -> None:
    (tmp_path / "sys").mkdir()
    monkeypatch.setattr(diagnosis, "why_live_image_not_updatable", lambda *_arguments: reason)
    answer = diagnosis._can_update_in_place(LiveTree(str(tmp_path)), FREE, None, loaded())
    assert answer == (reason is None, reason)


def test_update_in_place_on_a_live_machine_that_cannot_be_read_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object) -> str | None:
        raise CannotTellError("kcore is hidden")

    (tmp_path / "sys").mkdir()
    monkeypatch.setattr(diagnosis, "why_live_image_not_updatable", refused)
    answer = diagnosis._can_update_in_place(LiveTree(str(tmp_path)), FREE, None, loaded())
    assert answer == (None, "kcore is hidden")


@pytest.mark.parametrize(
    ("tool", "can", "named"),
    [
        (["/usr/bin/kdumpctl", "reload"], True, "/usr/bin/kdumpctl reload"),
        (None, True, "crash-hotplug load"),
        (None, False, None),
    ],
)
def test_reload_tool_of_a_live_machine_is_an_installed_one_or_our_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: list[str] | None, can: bool, named: str | None
) -> None:
    (tmp_path / "sys").mkdir()
    monkeypatch.setattr(diagnosis, "find_reload_tool", lambda: tool)
    monkeypatch.setattr(diagnosis, "can_reload", lambda: can)
    assert diagnosis._reload_tool(LiveTree(str(tmp_path)), None) == named
    assert diagnosis._reload_tool(Sysroot(str(tmp_path)), None) is None


def test_file_that_a_rule_names_and_that_cannot_be_read_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "sys" / "flag").mkdir(parents=True)
    rule = 'SUBSYSTEM=="cpu", PROGRAM=="/bin/cat /sys/flag", RUN+="/usr/bin/kdumpctl reload"\n'
    found = diagnosis._find_reloads(Sysroot(str(tmp_path)), FREE, [RulesFile("1.rules", "/1.rules", rule)])
    assert found[UEvent("cpu", "add")] == []


def test_kernel_that_hides_its_memory_is_named(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    sysroot = Sysroot(str(tmp_path))
    assert "does not exist" in str(diagnosis._why_kernel_is_hidden(sysroot))
    (tmp_path / "proc" / "kallsyms").write_text("ffffffff82000000 B kexec_crash_image\n")
    assert str(diagnosis._why_kernel_is_hidden(sysroot)).endswith("kcore does not exist")
    (tmp_path / "proc" / "kcore").write_bytes((tree("6.1-c", 0) / "proc" / "kcore").read_bytes())
    assert diagnosis._why_kernel_is_hidden(sysroot) is None


def test_fact_that_may_not_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> str:
        raise CannotTellError("no")

    (tmp_path / "sys").mkdir()
    monkeypatch.setattr(Sysroot, "read_text", refused)
    assert diagnosis._text(Sysroot(str(tmp_path)), "/proc/sys/kernel/osrelease") is None


def test_image_that_is_not_loaded_or_cannot_be_read_has_its_reason(tmp_path: Path) -> None:
    root = build(tmp_path / "tree", "redhat")
    (root / "sys/kernel/kexec_crash_loaded").write_text("0\n")
    assert read_diagnosis(Sysroot(str(root))).loaded_reason == "none is loaded"
    (root / "sys/kernel/kexec_crash_loaded").write_text("1\n")
    (root / "crash-image" / "elfcorehdr").unlink()
    found = read_diagnosis(Sysroot(str(root)))
    assert found.loaded is None
    assert "has no elfcorehdr" in (found.loaded_reason or "")
    assert read_kexec_state(Sysroot(str(root))).image_loaded is True


def test_kernel_that_shows_only_the_function_is_not_hidden_on_a_live_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's 6.1 for arm64 has no CONFIG_KALLSYMS_ALL; `status` reads the variable's address out of the code."""
    saved = arm64_tree("arm64-6.1-c", 0)
    code = (saved / "crash-image/kexec_crash_loaded.code").read_bytes()
    monkeypatch.setattr("crash_hotplug.linux.kcore.running_architecture", lambda: ARM64)
    monkeypatch.setattr(Kcore, "read_virt", lambda _self, _virt, length: code[:length])
    monkeypatch.setattr(kallsyms, "_live", {})
    assert diagnosis._why_kernel_is_hidden(LiveTree(str(saved))) is None
    assert "without CONFIG_KALLSYMS_ALL" in str(diagnosis._why_kernel_is_hidden(Sysroot(str(saved))))
