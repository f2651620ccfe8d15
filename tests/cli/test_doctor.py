# SPDX-License-Identifier: MIT
"""`doctor` on the command line: every family, kernels with and without crash_hotplug."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash_hotplug.linux.doctor import fix
from crash_hotplug.linux.doctor.diagnosis import read_diagnosis
from crash_hotplug.linux.sysroot import Sysroot
from tests.cli.running import run
from tests.family_trees import (
    AWARE,
    NAMES,
    SERVICE,
    UNAWARE,
    build,
    install_makedumpfile,
    install_service,
    mount_encrypted,
    photograph,
)

DEBIAN_RULES = "/lib/udev/rules.d/50-kdump-tools.rules"
FAILS = f"udev's reload ({DEBIAN_RULES}) fails silently: systemd-udevd's sandbox does not let it load an image"
KERNEL_LEAVES = "the kernel leaves it in the header, and nothing else removes it"
RED_HAT_WORKS = (
    "udev reloads the whole image (/usr/lib/udev/rules.d/98-kexec.rules): no image is loaded for about a second each "
    "time"
)
NOTHING = "nothing updates the header: neither the kernel, nor a udev rule, nor crash-hotplug.service"


@pytest.mark.parametrize(
    ("family", "kernel", "code", "line"),
    [
        ("debian", UNAWARE, 4, f"NOT HANDLED: CPUs and memory: {FAILS}"),
        ("debian", AWARE, 4, f"NOT HANDLED: removed memory: {KERNEL_LEAVES}"),
        ("redhat", UNAWARE, 0, f"HANDLED: CPUs and memory: {RED_HAT_WORKS}"),
        ("redhat", AWARE, 4, f"NOT HANDLED: removed memory: {KERNEL_LEAVES}"),
        ("opensuse", UNAWARE, 4, f"NOT HANDLED: CPUs: {NOTHING}"),
        ("opensuse", AWARE, 4, f"NOT HANDLED: removed memory: {KERNEL_LEAVES}"),
    ],
)
def test_first_line_has_the_verdict_and_the_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str, kernel: str, code: int, line: str
) -> None:
    ran = run(capsys, "doctor", "--sysroot", build(tmp_path / "tree", family, kernel))
    assert (ran.out.splitlines()[0], ran.code) == (line, code)


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("kernel", [UNAWARE, AWARE])
def test_hotplug_is_handled_with_the_service_after_fix(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str, kernel: str
) -> None:
    tree = install_service(build(tmp_path / "tree", family, kernel), active=True)
    assert run(capsys, "doctor", "--sysroot", tree, "--fix").code == 0
    ran = run(capsys, "doctor", "--sysroot", tree)
    assert ran.code == 0
    assert ran.out.startswith("HANDLED: ")
    assert SERVICE in ran.out.splitlines()[0]
    assert "as well" not in ran.out


def test_live_rule_beside_the_service_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "redhat"), active=True)
    out = run(capsys, "doctor", "--sysroot", tree).out
    assert "but udev reloads the whole image as well" in out.splitlines()[0]
    assert "crash-hotplug doctor --fix" in out


def test_facts_name_their_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = build(tmp_path / "tree", "debian")
    out = run(capsys, "doctor", "--sysroot", tree).out
    for fact in (
        "never updates an elfcorehdr for memory: no such attribute  [/sys/devices/system/memory/crash_hotplug]",
        "loaded by kexec_load (kexec -c)",
        f"/usr/sbin/kdump-config try-reload  [{DEBIAN_RULES}]",
        "holds neither kexec_load nor kexec_file_load  [/lib/systemd/system/systemd-udevd.service]",
        "the next capture kernel will lack acpi_no_memhotplug  [/etc/default/kdump-tools]",
        "the kernel was given crashkernel=192M  [/proc/cmdline]",
        "crash-hotplug.service is not installed",
    ):
        assert " ".join(fact.split()) in " ".join(out.split())
    assert max(map(len, out.splitlines()[1:])) <= 120
    report = run(capsys, "doctor", "--sysroot", tree, "--json").json
    assert report["verdict"] == "not handled"
    assert [change["handled"] for change in report["next_hotplug"]] == [False] * 4
    assert all(fact["source"] and fact["sentence"] and fact["topic"] for fact in report["facts"])


def test_exit_code_is_3_without_an_image_and_5_if_unknown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = build(tmp_path / "tree", "debian")
    (tree / "sys/kernel/kexec_crash_loaded").write_text("0\n")
    ran = run(capsys, "doctor", "--sysroot", tree)
    assert (ran.code, ran.out.splitlines()[0].split(":")[0]) == (3, "NO CRASH IMAGE")
    (tree / "sys/kernel/kexec_crash_loaded").unlink()
    assert run(capsys, "doctor", "--sysroot", tree).code == 5


def test_lockdown_and_sysctls_decide_what_can_update(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "redhat"), active=True)
    (tree / "sys/kernel/security").mkdir(parents=True)
    (tree / "sys/kernel/security/lockdown").write_text("none [integrity] confidentiality\n")
    ran = run(capsys, "doctor", "--sysroot", tree)
    assert "reloads the image (kdumpctl reload): lockdown (integrity) forbids kexec_load" in ran.out.splitlines()[0]
    (tree / "proc/sys/kernel/kexec_load_disabled").write_text("1\n")
    ran = run(capsys, "doctor", "--sysroot", tree)
    assert ran.code == 4
    assert "kernel.kexec_load_disabled forbids loading until the next boot" in ran.out.splitlines()[0]


def test_kernel_without_kexec_load_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "redhat"), active=True)
    release = (tree / "proc/sys/kernel/osrelease").read_text().strip()
    (tree / "boot").mkdir()
    (tree / f"boot/config-{release}").write_text("# CONFIG_KEXEC is not set\nCONFIG_KEXEC_FILE=y\n")
    out = run(capsys, "doctor", "--sysroot", tree).out
    assert "built without kexec_load" in out.splitlines()[0]
    assert "built with: KEXEC no, KEXEC_FILE yes, CRASH_HOTPLUG no" in out


def test_dry_run_shows_a_diff_and_changes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    before = photograph(tree)
    ran = run(capsys, "doctor", "--sysroot", tree, "--fix", "--dry-run")
    assert ran.code == 0
    assert "would change /etc/udev/rules.d/50-kdump-tools.rules" in ran.out
    assert '+KDUMP_CMDLINE_APPEND="reset_devices nr_cpus=1 irqpoll acpi_no_memhotplug"' in ran.out
    assert photograph(tree) == before
    run(capsys, "doctor", "--sysroot", tree, "--fix")
    changed = photograph(tree)
    assert (
        "would change /etc/default/kdump-tools" in run(capsys, "doctor", "--sysroot", tree, "--undo", "--dry-run").out
    )
    assert photograph(tree) == changed


def test_json_of_fix_and_undo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    report = run(capsys, "doctor", "--sysroot", tree, "--fix", "--json").json
    assert (report["action"], len(report["changed"]), report["left_alone"]) == ("fix", 2, [])
    assert report["to_do"] == [f"systemctl enable --now {SERVICE}"]
    assert len(run(capsys, "doctor", "--sysroot", tree, "--undo", "--json").json["changed"]) == 2
    assert run(capsys, "doctor", "--sysroot", tree, "--undo").out == "nothing to restore\n"


def test_fix_without_the_service_changes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = build(tmp_path / "tree", "debian")
    before = photograph(tree)
    ran = run(capsys, "doctor", "--sysroot", tree, "--fix")
    assert (ran.code, "is not installed" in ran.err) == (1, True)
    assert photograph(tree) == before


def test_settings_that_only_a_shell_can_expand_are_left_alone_and_reported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    with (tree / "etc/default/kdump-tools").open("a") as file:
        file.write('KDUMP_CMDLINE_APPEND="$(cat /etc/mine)"\n')
    before = (tree / "etc/default/kdump-tools").read_text()
    ran = run(capsys, "doctor", "--sysroot", tree, "--fix")
    assert ran.code == 1
    assert "add acpi_no_memhotplug by hand" in ran.err
    assert (tree / "etc/default/kdump-tools").read_text() == before
    assert (tree / "etc/udev/rules.d/50-kdump-tools.rules").exists()


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "doctor", "--dry-run").code == 2
    assert run(capsys, "doctor", "--fix", "--undo").code == 2


@pytest.mark.parametrize("action", ["--fix", "--undo"])
def test_fix_and_undo_without_root_change_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    ran = run(capsys, "doctor", action)
    assert ran.code == 1
    assert ran.err == f"crash-hotplug doctor: {action} changes files in /etc: run as root; nothing was changed\n"


def test_fix_on_another_architecture_changes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crash_hotplug.cli.doctor.machine_name", lambda: "ppc64le")
    ran = run(capsys, "doctor", "--fix", "--dry-run")
    assert (ran.code, "this machine is ppc64le" in ran.err) == (1, True)


def test_tell_udev_reports_a_failed_or_missing_udevadm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fix, "SEARCH", str(tmp_path))
    assert fix.tell_udev() == "udevadm is not installed: restart udev so that it reads its rules again"
    udevadm = tmp_path / "udevadm"
    script = f'echo "$@" > {tmp_path}/ran; [ -e {tmp_path}/works ] && exit 0; echo no udevd >&2; exit 1'
    udevadm.write_text(f"#!/bin/sh\n{script}\n")
    udevadm.chmod(0o755)
    assert fix.tell_udev() == "udevadm control --reload failed: no udevd"
    assert (tmp_path / "ran").read_text() == "control --reload\n"
    (tmp_path / "works").touch()
    assert fix.tell_udev() is None


@pytest.mark.parametrize("what", ["pipe", "huge", "circle", "binary", "directory"])
def test_hostile_tree_ends_in_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path, what: str) -> None:
    tree = build(tmp_path / "tree", "redhat")
    path = tree / "usr/lib/udev/rules.d/98-kexec.rules"
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "huge":
        path.write_bytes(b"#" * (2 << 20))
    elif what == "circle":
        path.symlink_to(path.name)
    elif what == "binary":
        path.write_bytes(bytes(range(256)) * 16)
    else:
        path.mkdir()
    ran = run(capsys, "doctor", "--sysroot", tree)
    assert ran.code == (4 if what == "binary" else 1)
    assert "Traceback" not in ran.err
    assert (ran.err == "") == (what == "binary")


def test_fix_warns_where_the_service_does_not_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The next doctor says "not handled": the reloads are disabled, and nothing replaces them."""
    idle = install_service(build(tmp_path / "idle", "redhat"))
    sentence = f"{SERVICE} is not enabled: until it runs, nothing corrects the header in place of the disabled reloads"
    report = run(capsys, "doctor", "--sysroot", idle, "--fix", "--dry-run", "--json").json
    assert report["warnings"] == [sentence]
    ran = run(capsys, "doctor", "--sysroot", idle, "--fix")
    assert (ran.code, ran.err) == (0, f"warning: {sentence}\n")
    assert run(capsys, "doctor", "--sysroot", idle).code == 4
    running = install_service(build(tmp_path / "running", "redhat"), active=True)
    assert run(capsys, "doctor", "--sysroot", running, "--fix").err == ""
    assert run(capsys, "doctor", "--sysroot", running).code == 0


@pytest.mark.parametrize(
    ("kallsyms", "says", "never"),
    [
        ("0000000000000000 T _text\n0000000000000000 T _stext\n", "kernel.kptr_restrict", "CONFIG_KALLSYMS_ALL"),
        ("0000000000000000 D cpu_number\nffffffff81000000 T _text\n", "CONFIG_KALLSYMS_ALL", "kptr_restrict"),
        (None, "kallsyms does not exist", "kptr_restrict"),
    ],
)
def test_symbol_that_is_missing_is_not_blamed_on_kptr_restrict(
    tmp_path: Path, kallsyms: str | None, says: str, never: str
) -> None:
    tree = build(tmp_path / "tree", "redhat")
    (tree / "proc/kallsyms").unlink()
    if kallsyms is not None:
        (tree / "proc/kallsyms").write_text(kallsyms)
    hidden = read_diagnosis(Sysroot(str(tree))).hidden_kernel
    assert hidden is not None
    assert says in hidden
    assert never not in hidden


def test_escape_sequences_out_of_files_are_not_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    (tree / "proc/sys/kernel/osrelease").write_text("6.1\x1b[2J\x1b]0;owned\x07\r\nHANDLED: all\n")
    ran = run(capsys, "doctor", "--sysroot", tree)
    assert "6.1\\x1b[2J\\x1b]0;owned\\x07\\r\\nHANDLED: all  [/proc/sys/kernel/osrelease]" in ran.out
    assert not set(ran.out + ran.err) & {"\x1b", "\x07", "\r"}
    with (tree / "etc/default/kdump-tools").open("a") as file:
        file.write("# \x1b[31mred\n")
    ran = run(capsys, "doctor", "--sysroot", tree, "--fix", "--dry-run")
    assert "\\x1b[31mred" in ran.out
    assert "\x1b" not in ran.out


def test_makedumpfile_that_is_too_old_for_the_kernel_is_reported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tree = install_makedumpfile(install_service(build(tmp_path / "tree", "debian"), active=True), "1.7.9")
    said = run(capsys, "doctor", "--sysroot", tree, "--json").json
    assert {"topic": "Dump", "sentence": "makedumpfile 1.7.9", "source": "/usr/bin/makedumpfile"} in said["facts"]
    assert not any("makedumpfile" in sentence for sentence in said["to_do"])
    (tree / "proc/sys/kernel/osrelease").write_text("7.3.4+deb14-amd64\n")
    ran = run(capsys, "doctor", "--sysroot", tree)
    shown = " ".join(ran.out.split())
    assert "too old for Linux 7.1 and newer unless the distribution added commit f50c015" in shown
    assert "install a makedumpfile newer than 1.7.9, load the image again, and until then use -d 1" in shown
    (tree / "usr/bin/makedumpfile").write_bytes(b"\x7fELF")
    assert "the version of makedumpfile is not known" in run(capsys, "doctor", "--sysroot", tree).out
    (tree / "usr/bin/makedumpfile").unlink()
    assert "makedumpfile is not installed" in run(capsys, "doctor", "--sysroot", tree).out


def test_encrypted_volume_that_takes_the_dump_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "redhat", AWARE), active=True)
    before = run(capsys, "doctor", "--sysroot", tree)
    assert "encrypted" not in before.out
    mount_encrypted(tree, {"/": "/dev/mapper/vg-root"})
    ran = run(capsys, "doctor", "--sysroot", tree)
    shown = " ".join(ran.out.split())
    assert "/var/crash, which takes the dump, is on the encrypted volume luks-0123  [/proc/self/mountinfo" in " ".join(
        ran.out.split("\n")
    )
    assert "kdumpctl setup-crypttab" in shown
    assert ran.code == before.code


def test_image_with_volume_keys_makes_a_reload_uncertain(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "redhat", AWARE), active=True)
    assert run(capsys, "doctor", "--sysroot", tree).code == 0
    mount_encrypted(tree, {"/": "/dev/mapper/vg-root"})
    with (tree / "crash-image/cmdline").open("r+") as file:
        cmdline = file.read().rstrip("\n")
        file.seek(0)
        file.write(f"{cmdline} dmcryptkeys=0x39f00000")
    ran = run(capsys, "doctor", "--sysroot", tree)
    assert (ran.code, ran.out.split(":")[0]) == (5, "CANNOT TELL")
    assert "removed memory: crash-hotplug.service reloads the image (kdumpctl reload)" in ran.out.splitlines()[0]
    assert "where the volume key of the dump target requires a passphrase" in ran.out.splitlines()[0]
    to_do = run(capsys, "doctor", "--sysroot", tree, "--json").json["to_do"]
    assert any(sentence.startswith("after a hot-plug: echo 1 > /sys/kernel/config/crash_dm") for sentence in to_do)
    assert not any("setup-crypttab" in sentence for sentence in to_do)


def test_el10_kernel_without_kexec_load_updates_all_but_removed_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its configuration has kexec_file_load and CRASH_HOTPLUG; what the kernel leaves, the service reloads."""
    tree = build(tmp_path / "tree", "redhat", AWARE)
    (tree / "proc/sys/kernel/osrelease").write_text("6.12.0-55.el10.x86_64\n")
    (tree / "usr/lib/modules/6.12.0-55.el10.x86_64").mkdir(parents=True)
    config = tree / "usr/lib/modules/6.12.0-55.el10.x86_64/config"
    config.write_text("# CONFIG_KEXEC is not set\nCONFIG_KEXEC_FILE=y\nCONFIG_CRASH_HOTPLUG=y\n")
    assert run(capsys, "doctor", "--sysroot", tree).code == 4
    install_service(tree, active=True)
    report = run(capsys, "doctor", "--sysroot", tree, "--json").json
    assert report["verdict"] == "handled"
    reasons = {change["change"]: change["reason"] for change in report["next_hotplug"]}
    assert reasons["added memory"] == f"the kernel updates the header, and {SERVICE} checks it"
    assert reasons["removed memory"].startswith(f"{SERVICE} reloads the image (kdumpctl reload): this kernel was built")
    (tree / "usr/bin/kdumpctl").unlink()
    report = run(capsys, "doctor", "--sysroot", tree, "--json").json
    assert (report["verdict"], report["next_hotplug"][3]["handled"]) == ("not handled", False)
    assert "nor reload it" in report["reason"]
