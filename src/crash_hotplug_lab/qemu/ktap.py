"""Results in KTAP, the kernel's test format (Documentation/dev-tools/ktap.rst)."""

from __future__ import annotations

from crash_hotplug_lab.qemu.results import Outcome, Result


def lines(results: list[Result]) -> list[str]:
    """Return the lines of a KTAP document: a test for each run, a subtest for each check."""
    out = ["KTAP version 1", f"1..{len(results)}"]
    for number, result in enumerate(results, 1):
        if result.checks:
            out += ["  KTAP version 1", f"  1..{len(result.checks)}"]
            for place, check in enumerate(result.checks, 1):
                detail = f" # {_plain(check.detail)}" if check.detail and not check.ok else ""
                out.append(f"  {'ok' if check.ok else 'not ok'} {place} {_plain(check.name)}{detail}")
        out.append(f"{_ok(result)} {number} {_plain(result.name)}{_directive(result)}")
    return out


def _ok(result: Result) -> str:
    return "not ok" if result.outcome in (Outcome.FAIL.value, Outcome.BROKEN.value) else "ok"


def _directive(result: Result) -> str:
    if result.outcome == Outcome.SKIP.value:
        return f" # SKIP {_plain(result.reason)}"
    if result.outcome == Outcome.FAULT.value:
        return f" # XFAIL {_plain(result.reason)}"
    return "" if result.outcome == Outcome.PASS.value else f" # {_plain(result.reason)}"


def _plain(text: str) -> str:
    return text.replace("#", "").replace("\n", " ")
