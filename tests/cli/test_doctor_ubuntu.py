# SPDX-License-Identifier: MIT
"""`doctor` on Ubuntu's and ALT's kdump-tools: the rules files that were published since 2018, the switch, the settings.

The rules are those of the package's history (salsa.debian.org/debian/kdump-tools): 90fde36 (July 2018), 2ef851d
(May 2019), d19d338 (July 2019), 2186c11 (September 2019), f0a003b (December 2019, until today); and Ubuntu 20.04's,
which the first cover letter of the kernel's crash hot-plug series quotes.  It has "cpu offline".
"""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.linux.doctor.kdump_family import ALT, DEBIAN, read_kdump_settings
from crash_hotplug.linux.sysroot import Sysroot
from tests.cli.running import run
from tests.family_trees import UNAWARE, build, install_service, photograph

RULES = "usr/lib/udev/rules.d/50-kdump-tools.rules"
MEMORY = (("memory", "online"), ("memory", "offline"))
BOTH = (*MEMORY, ("cpu", "add"), ("cpu", "remove"))
RELOAD = "/usr/sbin/kdump-config try-reload"
RESTART = "/bin/systemctl try-restart kdump-tools.service"
RESET = f"/bin/systemctl reset-failed kdump-tools.service ; {RESTART}"
NOTHING = "nothing updates the header: neither the kernel, nor a udev rule, nor crash-hotplug.service"


def with_rule(root: Path, events: tuple[tuple[str, str], ...], program: str, filtered: bool) -> Path:
    """Replace the rules file; without *filtered*, udevd's unit has no system call filter."""
    lines = (f'SUBSYSTEM=="{subsystem}", ACTION=="{action}", PROGRAM="{program}"\n' for subsystem, action in events)
    (root / RULES).write_text("".join(lines))
    if not filtered:
        unit = root / "usr/lib/systemd/system/systemd-udevd.service"
        unit.write_text("".join(line for line in unit.open() if not line.startswith("SystemCall")))
    return root


@pytest.mark.parametrize(
    ("events", "program", "filtered", "code", "said"),
    [
        # 24.04 and newer
        ((*BOTH, ("cpu", "online")), RELOAD, True, 4, "fails silently: systemd-udevd's sandbox does not let it load"),
        # 20.04: a filter was not part of udevd's unit
        ((*BOTH, ("cpu", "offline")), RELOAD, False, 0, "udev reloads the whole image"),
        ((*BOTH, ("cpu", "offline")), RELOAD, True, 4, "fails silently"),
        # 2186c11
        ((*BOTH, ("cpu", "online")), "/usr/sbin/kdump-config reload", False, 0, "udev reloads the whole image"),
        # 90fde36 and 2ef851d: systemd restarts the unit, outside the sandbox
        (BOTH, RESTART, True, 0, "udev reloads the whole image"),
        # d19d338: udev starts no shell, so the second systemctl is an argument of the first
        ((*BOTH, ("cpu", "online")), RESET, True, 4, NOTHING),
        ((*BOTH, ("cpu", "online")), f"/bin/sh -c '{RESET}'", True, 0, "udev reloads the whole image"),
        # memory alone
        (MEMORY, RESTART, True, 4, f"CPUs: {NOTHING}"),
    ],
)
def test_published_rules_are_judged_by_what_they_start(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    events: tuple[tuple[str, str], ...],
    program: str,
    filtered: bool,
    code: int,
    said: str,
) -> None:
    root = install_service(with_rule(build(tmp_path / "tree", "ubuntu", UNAWARE), events, program, filtered))
    before = photograph(root)
    ran = run(capsys, "doctor", "--sysroot", root)
    assert (ran.code, said in ran.out.splitlines()[0]) == (code, True)
    run(capsys, "doctor", "--sysroot", root, "--fix")
    assert "starts no reload" in " ".join(run(capsys, "doctor", "--sysroot", root).out.split())
    run(capsys, "doctor", "--sysroot", root, "--undo")
    assert photograph(root) == before


def test_restart_of_a_unit_that_is_not_active_does_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = with_rule(build(tmp_path / "tree", "ubuntu"), BOTH, RESTART, filtered=True)
    (root / "run/systemd/units/invocation:kdump-tools.service").unlink()
    ran = run(capsys, "doctor", "--sysroot", root)
    assert ran.code == 4
    assert "does nothing unless kdump-tools.service is active, and it is not active" in ran.out.splitlines()[0]


@pytest.mark.parametrize("line", ["USE_KDUMP=0", "#USE_KDUMP=1", 'USE_KDUMP=""'])
def test_switch_of_kdump_tools_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str) -> None:
    root = install_service(build(tmp_path / "tree", "ubuntu"), active=True)
    settings = root / "etc/default/kdump-tools"
    assert "USE_KDUMP" not in run(capsys, "doctor", "--sysroot", root).out
    settings.write_text(settings.read_text().replace("USE_KDUMP=1", line))
    ran = run(capsys, "doctor", "--sysroot", root)
    assert "USE_KDUMP is 0 or not set: no crash image is loaded at boot" in " ".join(ran.out.split())
    assert "set USE_KDUMP=1 in /etc/default/kdump-tools; systemctl restart kdump-tools.service" in ran.out


def test_switch_that_only_a_shell_can_expand_is_not_judged(tmp_path: Path) -> None:
    root = build(tmp_path / "tree", "ubuntu")
    (root / "etc/default/kdump-tools").write_text('USE_KDUMP="$(cat /etc/wanted)"\n')
    found = read_kdump_settings(Sysroot(str(root)))
    assert (found and found.is_off) is False


def test_alt_is_recognized_beside_its_own_kdumpctl(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = install_service(build(tmp_path / "tree", "alt"), active=True)
    found = read_kdump_settings(Sysroot(str(root)))
    assert found is not None
    assert found.family is ALT
    assert found.appended == "reset_devices systemd.unit=kdump-tools-dump.service nr_cpus=1 irqpoll usbcore.nousb"
    changed = run(capsys, "doctor", "--sysroot", root, "--fix", "--json").json["changed"]
    assert [sentence.partition(":")[0] for sentence in changed] == [
        "/etc/udev/rules.d/50-kdump-tools.rules",
        "/etc/sysconfig/kdump-tools",
    ]
    (root / "etc/sysconfig/kdump-tools").unlink()
    found = read_kdump_settings(Sysroot(str(root)))
    assert found is not None
    assert found.family is DEBIAN
