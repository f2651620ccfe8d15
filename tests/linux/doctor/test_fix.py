# SPDX-License-Identifier: MIT
"""--fix and --undo on trees: the files that they write, and the state that a kill at any step leaves."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crash_hotplug.core.doctor.forecast import forecast
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.linux.doctor import fix as fix_module
from crash_hotplug.linux.doctor.diagnosis import read_diagnosis
from crash_hotplug.linux.doctor.fix import (
    DIRECTORY,
    MANIFEST,
    FixPlan,
    Manifest,
    Undone,
    WantedFile,
    apply_fix,
    plan_fix,
    undo_fix,
)
from crash_hotplug.linux.sysroot import Sysroot
from tests.family_trees import AWARE, FAMILIES, NAMES, UNAWARE, build, install_service, photograph

RULES = {
    "debian": "50-kdump-tools.rules",
    "ubuntu": "50-kdump-tools.rules",
    "alt": "50-kdump-tools.rules",
    "redhat": "98-kexec.rules",
    "opensuse": "70-kdump.rules",
}
SETTINGS = {
    "debian": "etc/default/kdump-tools",
    "ubuntu": "etc/default/kdump-tools",
    "alt": "etc/sysconfig/kdump-tools",
}
VENDOR = {
    "debian": "lib/udev/rules.d/50-kdump-tools.rules",
    "ubuntu": "usr/lib/udev/rules.d/50-kdump-tools.rules",
    "alt": "usr/lib/udev/rules.d/50-kdump-tools.rules",
    "redhat": "usr/lib/udev/rules.d/98-kexec.rules",
    "opensuse": "usr/lib/kdump/70-kdump.rules",
}


def fix(tree: Path) -> FixPlan:
    sysroot = Sysroot(str(tree))
    plan = plan_fix(sysroot, read_diagnosis(sysroot))
    apply_fix(sysroot, plan)
    return plan


def undo(tree: Path) -> Undone:
    return undo_fix(Sysroot(str(tree)))


def any_reload(tree: Path) -> bool:
    return any(read_diagnosis(Sysroot(str(tree))).situation.reloads.values())


@pytest.fixture(params=NAMES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tree(tmp_path: Path, family: str) -> Path:
    return install_service(build(tmp_path / "tree", family))


@pytest.mark.parametrize("kernel", [UNAWARE, AWARE])
def test_undo_after_fix_restores_the_tree(tmp_path: Path, family: str, kernel: str) -> None:
    tree = install_service(build(tmp_path / "tree", family, kernel))
    before = photograph(tree)
    assert fix(tree).changed
    assert not any_reload(tree)
    assert (tree / "etc/udev/rules.d" / RULES[family]).stat().st_mode & 0o777 == 0o644
    changed = photograph(tree)
    assert fix(tree) == FixPlan()
    assert photograph(tree) == changed, "a second --fix has nothing to do"
    assert undo(tree).left_alone == []
    assert photograph(tree) == before
    assert undo(tree) == Undone()


def test_fix_does_not_touch_the_files_of_a_package(tree: Path, family: str) -> None:
    path = tree / VENDOR[family]
    before = path.read_bytes(), path.stat()
    fix(tree)
    assert (path.read_bytes(), path.stat()) == before


def test_debian_settings_keep_the_default_of_the_tool_and_their_mode(tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    path = tree / "etc/default/kdump-tools"
    path.chmod(0o600)
    before = path.read_text()
    fix(tree)
    assert path.read_text().startswith(before)
    assert path.read_text().endswith('\nKDUMP_CMDLINE_APPEND="reset_devices nr_cpus=1 irqpoll acpi_no_memhotplug"\n')
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tree / MANIFEST.lstrip("/")).stat().st_mode & 0o777 == 0o600, "it may hold a password"


def test_fix_takes_over_an_update_of_the_package(tree: Path, family: str) -> None:
    before = photograph(tree)
    fix(tree)
    vendor = tree / VENDOR[family]
    vendor.write_text(vendor.read_text() + 'SUBSYSTEM=="memory", MODE="0600"\n')
    if family == "opensuse":
        (tree / "run/udev/rules.d/70-kdump.rules").write_text(vendor.read_text())
    assert len(fix(tree).changed) == 1
    assert 'MODE="0600"' in (tree / "etc/udev/rules.d" / RULES[family]).read_text()
    undo(tree)
    differs = {key for key, value in photograph(tree).items() if before.get(key) != value}
    assert differs <= {VENDOR[family], "run/udev/rules.d/70-kdump.rules"}


def test_opensuse_rules_are_hidden_before_they_become_live(tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "opensuse"))
    (tree / "run/udev/rules.d/70-kdump.rules").unlink()
    fix(tree)
    (tree / "run/udev/rules.d/70-kdump.rules").write_bytes((tree / VENDOR["opensuse"]).read_bytes())
    assert not any_reload(tree)
    assert fix(tree) == FixPlan()


@pytest.mark.parametrize("how", ["edited", "removed", "link"])
def test_file_changed_after_fix_is_left_alone_and_reported(tree: Path, family: str, how: str) -> None:
    fix(tree)
    path = tree / "etc/udev/rules.d" / RULES[family]
    path.unlink()
    if how == "edited":
        path.write_text('SUBSYSTEM=="cpu", ACTION=="add", RUN+="/usr/bin/kdumpctl reload"\n')
    elif how == "link":
        path.symlink_to("/dev/null")
    if how == "edited":
        assert any("was changed after" in sentence for sentence in fix(tree).left_alone)
    before = photograph(tree)
    left = undo(tree).left_alone
    assert any(RULES[family] in sentence for sentence in left) == (how != "removed")
    assert os.path.lexists(path) == (how != "removed")
    if how != "removed":
        key = str(path.relative_to(tree))
        assert photograph(tree)[key] == before[key]
        assert (tree / MANIFEST.lstrip("/")).exists(), "what was there before is still kept"


def test_rules_file_of_the_administrator_is_changed_and_restored(tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "redhat"))
    path = tree / "etc/udev/rules.d/99-mine.rules"
    path.parent.mkdir(parents=True)
    path.write_text(
        'SUBSYSTEM=="memory", MODE="0600"\nSUBSYSTEM=="memory", ACTION=="online", RUN+="/bin/kdumpctl reload"\n'
    )
    path.chmod(0o640)
    before = photograph(tree)
    assert len(fix(tree).changed) == 2
    assert not any_reload(tree)
    assert 'MODE="0600"' in path.read_text()
    undo(tree)
    assert photograph(tree) == before


def test_disabled_rules_file_stays_disabled(tree: Path, family: str) -> None:
    path = tree / "etc/udev/rules.d" / RULES[family]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/null")
    fix(tree)
    assert path.is_symlink()


class Killed(BaseException):
    """The process is no more."""


STEPS = ("mkdir", "open", "write", "fsync", "fchmod", "replace", "unlink", "rmdir")


@contextmanager
def killed_at(step: int) -> Iterator[list[int]]:
    """Let the first *step* system calls that change something happen, and no more."""
    count = [0]

    def counting(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            creates = real is not REAL["open"] or bool(int(str(arguments[1])) & os.O_CREAT)
            if creates:
                if count[0] >= step:
                    raise Killed
                count[0] += 1
            return real(*arguments, **named)

        return call

    with ExitStack() as patched:
        for name in STEPS:
            patched.enter_context(mock.patch.object(os, name, counting(REAL[name])))
        yield count


REAL: dict[str, Callable[..., object]] = {name: getattr(os, name) for name in STEPS}


def changing_calls(work: Callable[[], object]) -> int:
    with killed_at(1 << 30) as count:
        work()
    return count[0]


def without_empty_state(found: dict[str, object]) -> dict[str, object]:
    """Leave out our own directory: killed between its mkdir and the first manifest, it stays, empty."""
    return {key: value for key, value in found.items() if f"{DIRECTORY}/".startswith(f"/{key}/") is False}


def test_fix_killed_at_any_step_is_undone_or_finished(tmp_path: Path) -> None:
    whole = install_service(build(tmp_path / "whole", "debian"))
    before = photograph(whole)
    steps = changing_calls(lambda: fix(whole))
    assert steps > 15
    after = photograph(whole)
    for step in range(steps):
        tree = install_service(build(tmp_path / f"{step}", "debian"))
        with killed_at(step), pytest.raises(Killed):
            fix(tree)
        if step % 2:
            fix(tree)
            comparable = {key: value for key, value in photograph(tree).items() if key != MANIFEST.lstrip("/")}
            assert comparable == {key: value for key, value in after.items() if key != MANIFEST.lstrip("/")}, step
        undo(tree)
        assert without_empty_state(photograph(tree)) == without_empty_state(before), step


def test_undo_killed_at_any_step_is_finished_by_the_next(tmp_path: Path) -> None:
    count = install_service(build(tmp_path / "count", "debian"))
    before = photograph(count)
    fix(count)
    steps = changing_calls(lambda: undo(count))
    assert steps > 8
    for step in range(steps):
        tree = install_service(build(tmp_path / f"{step}", "debian"))
        fix(tree)
        with killed_at(step), pytest.raises(Killed):
            undo(tree)
        undo(tree)
        assert without_empty_state(photograph(tree)) == without_empty_state(before), step


LINES = st.sampled_from(
    [
        'SUBSYSTEM=="cpu", ACTION=="add", PROGRAM="/usr/sbin/kdump-config try-reload"',
        'SUBSYSTEM=="memory", ACTION=="online", \\\n  RUN+="/usr/bin/kdumpctl reload"',
        'RUN+="/bin/systemctl restart kdump.service"',
        'GOTO="end"',
        'LABEL="end"',
        "# a comment that ends in \\",
        "nonsense \udcff",
        "",
    ]
)
TEXTS = st.lists(LINES, max_size=6).map("\n".join)


@settings(max_examples=60, deadline=None)
@given(
    family=st.sampled_from(NAMES),
    admin=st.none() | st.just("/dev/null") | TEXTS,
    vendor=TEXTS,
    appended=st.none()
    | st.sampled_from(['""', '"irqpoll"', "irqpoll", '"$X"', '"a\\"b"', "'x'", '"acpi_no_memhotplug"']),
    mode=st.sampled_from([0o600, 0o644, 0o444]),
    times=st.integers(1, 3),
)
def test_undo_after_fix_restores_generated_trees(
    family: str, admin: str | None, vendor: str, appended: str | None, mode: int, times: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory)
        (tree / "proc").mkdir()
        for source in (FAMILIES / family).rglob("*"):
            if source.is_file():
                target = tree / source.relative_to(FAMILIES / family)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes())
        install_service(tree)
        (tree / VENDOR[family]).write_text(vendor, errors="surrogateescape")
        path = tree / "etc/udev/rules.d" / RULES[family]
        if admin is not None:
            path.parent.mkdir(parents=True)
            path.symlink_to(admin) if admin == "/dev/null" else path.write_text(admin, errors="surrogateescape")
        settings_file = tree / SETTINGS.get(family, "etc/sysconfig/kdump")
        if appended is not None:
            name = "KDUMP_COMMANDLINE_APPEND" if settings_file.name == "kdump" else "KDUMP_CMDLINE_APPEND"
            settings_file.write_text(f"{settings_file.read_text()}{name}={appended}")
        settings_file.chmod(mode)
        before = photograph(tree)
        for _ in range(times):
            try:
                fix(tree)
            except CannotTellError:
                assert photograph(tree) == before
        undo(tree)
        assert photograph(tree) == before


@pytest.mark.parametrize(
    "link", ["etc", "etc/udev", "etc/udev/rules.d", "etc/default", "var", "var/lib", "var/lib/crash-hotplug"]
)
def test_fix_writes_nothing_through_a_link(tmp_path: Path, link: str) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    outside = tmp_path / "outside"
    path = tree / link
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.rename(outside)
    else:
        outside.mkdir()
    path.symlink_to(outside)
    before = photograph(outside)
    try:
        fix(tree)
    except CrashHotplugError as error:
        assert "link" in str(error)
    assert photograph(outside) == before


def test_settings_file_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    path = tree / "etc/default/kdump-tools"
    path.rename(tmp_path / "outside")
    path.symlink_to("../../kdump-tools")
    (tree / "kdump-tools").write_text("USE_KDUMP=1\n")
    done = fix(tree)
    assert any("is a link" in sentence for sentence in done.left_alone)
    assert (tree / "kdump-tools").read_text() == "USE_KDUMP=1\n"


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/etc/passwd"},
        {"path": "/etc/udev/rules.d/../../passwd.rules"},
        {"before": {"content": "!", "mode": "0o644", "uid": 0, "gid": 0}},
        {"before": 7},
        {"written": 7},
    ],
)
def test_forged_manifest_reaches_no_other_file(tmp_path: Path, change: dict[str, object]) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    fix(tree)
    manifest = tree / MANIFEST.lstrip("/")
    report = json.loads(manifest.read_text())
    report["files"][0].update(change)
    manifest.write_text(json.dumps(report))
    before = photograph(tree)
    with pytest.raises(InputError, match="not a manifest"):
        undo(tree)
    assert photograph(tree) == before


@pytest.mark.parametrize("directory", ["/etc/../../x", "/home/x", "etc", "/var/.."])
def test_forged_directory_is_not_removed(tmp_path: Path, directory: str) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    fix(tree)
    inside, outside = tree / "home/x", tmp_path / "x"
    inside.mkdir(parents=True)
    outside.mkdir()
    manifest = tree / MANIFEST.lstrip("/")
    report = json.loads(manifest.read_text())
    report["directories"] = [directory]
    manifest.write_text(json.dumps(report))
    try:
        undo(tree)
    except InputError as error:
        assert "not a manifest" in str(error)
    assert inside.exists()
    assert outside.exists()


OTHER_SCHEMA = b'{"schema": 2, "directories": [], "files": []}'


@pytest.mark.parametrize("garbage", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 5000, b'{"schema": 2}', OTHER_SCHEMA])
def test_damaged_manifest_is_an_input_error(tmp_path: Path, garbage: bytes) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    fix(tree)
    (tree / MANIFEST.lstrip("/")).write_bytes(garbage)
    for work in (fix, undo):
        with pytest.raises(InputError, match="not a manifest"):
            work(tree)


def test_forecast_after_fix_names_the_service(tmp_path: Path, family: str) -> None:
    tree = install_service(build(tmp_path / "tree", family), active=True)
    fix(tree)
    forecasts = forecast(read_diagnosis(Sysroot(str(tree))).situation)
    assert {found.sentence for found in forecasts} == {"crash-hotplug.service updates the header in place"}


def test_second_doctor_changes_nothing_while_the_first_runs(tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    sysroot = Sysroot(str(tree))
    fix(tree)
    (tree / "etc/udev/rules.d/50-kdump-tools.rules").unlink()
    plan = plan_fix(sysroot, read_diagnosis(sysroot))
    assert plan.wanted or plan.left_alone
    plan.wanted.append(WantedFile("/etc/udev/rules.d/another.rules", b"text", "a reason"))
    before = photograph(tree)
    descriptor = os.open(f"{tree}{DIRECTORY}", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        with pytest.raises(CrashHotplugError, match="another crash-hotplug doctor is running"):
            apply_fix(sysroot, plan)
        with pytest.raises(CrashHotplugError, match="another crash-hotplug doctor is running"):
            undo_fix(sysroot)
    finally:
        os.close(descriptor)
    assert photograph(tree) == before


def test_manifest_is_private(tmp_path: Path) -> None:
    """A settings file may hold a password."""
    tree = install_service(build(tmp_path / "tree", "debian"))
    fix(tree)
    assert (tree / MANIFEST.lstrip("/")).stat().st_mode & 0o777 == 0o600


def test_no_other_file_than_rules_and_settings_is_ever_planned(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    plan = FixPlan()
    fix_module._add(str(tmp_path), Manifest(), plan, WantedFile("/etc/passwd", b"text", "a reason"))
    assert (plan.wanted, plan.left_alone) == ([], ["/etc/passwd is not a file that doctor changes"])


def test_undo_leaves_a_file_that_has_its_former_content_as_it_is(tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "debian"))
    settings = tree / "etc/default/kdump-tools"
    before = settings.read_bytes()
    fix(tree)
    assert settings.read_bytes() != before
    settings.write_bytes(before)
    settings.chmod(0o600)
    inode = settings.stat().st_ino
    undo(tree)
    assert (settings.stat().st_mode & 0o777, settings.stat().st_ino) == (0o600, inode)


def test_rules_without_a_reload_are_left_alone(tmp_path: Path) -> None:
    tree = install_service(build(tmp_path / "tree", "redhat"))
    (tree / VENDOR["redhat"]).write_text('SUBSYSTEM=="cpu", ACTION=="add", TAG+="seen"\n')
    sysroot = Sysroot(str(tree))
    diagnosis = read_diagnosis(sysroot)
    assert [file.name for file in diagnosis.rules] == ["98-kexec.rules"]
    assert not any(wanted.path.endswith(".rules") for wanted in plan_fix(sysroot, diagnosis).wanted)


def test_second_fix_keeps_the_rules_of_the_administrator(tmp_path: Path) -> None:
    """They hide those of the package, which do not come back."""
    tree = install_service(build(tmp_path / "tree", "redhat"))
    own = tree / "etc/udev/rules.d/98-kexec.rules"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text('SUBSYSTEM=="cpu", RUN+="/usr/bin/kdumpctl reload"\nSUBSYSTEM=="net", TAG+="mine"\n')
    fix(tree)
    written = own.read_bytes()
    assert b"mine" in written
    assert fix(tree).wanted == []
    assert own.read_bytes() == written
