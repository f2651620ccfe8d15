# SPDX-License-Identifier: MIT
"""``report.html``: every run of a session on one page without external files."""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from crash_hotplug.cli.picture import printable_picture
from crash_hotplug.core.finding import Kind
from crash_hotplug.core.picture.svg import to_svg
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.sizes import count
from crash_hotplug_lab.qemu import memory_picture
from crash_hotplug_lab.qemu.memory_picture import Bar
from crash_hotplug_lab.qemu.plan import KNOWN_BROKEN
from crash_hotplug_lab.qemu.results import Result

FILE = "report.html"

_STYLE = """
:root { color-scheme: light dark; --ok: #0072b2; --missing: #d55e00; --gone: #e6a800; --crash: #8a94a6; --line: #8885; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin: 2.2em 0 .2em; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .25em .8em .25em 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } td.n { text-align: right; white-space: nowrap; }
.outcome { font-weight: 600; text-transform: uppercase; }
.pass { color: var(--ok); } .fail, .broken { color: var(--missing); }
.fault { color: var(--gone); } .skip, .recorded { color: var(--crash); }
svg.memory { width: 100%; margin: .6em 0; } .memory text { font-size: 12px; fill: currentColor; }
.memory .mark { font-size: 10px; } .memory .gap { font-size: 10px; opacity: .6; }
.memory .ok { fill: var(--ok); } .memory .missing { fill: var(--missing); } .memory .gone { fill: var(--gone); }
.memory .crash { fill: var(--crash); } svg.picture { max-width: 100%; height: auto; }
.key { display: inline-block; width: .9em; height: .9em; margin: 0 .4em 0 1em; vertical-align: -1px; }
.key.ok { background: var(--ok); } .key.missing { background: var(--missing); } .key.gone { background: var(--gone); }
.key.crash { background: var(--crash); } .legend { margin-left: -1em; font-size: .9em; } details { margin: .4em 0; }
a { color: inherit; } code { font-size: .92em; }
"""


def write(results: list[Result], directory: Path, facts: dict[str, Any]) -> Path:
    """Write the page beside the result file and return its path."""
    path = directory / FILE
    path.write_text(page(results, facts))
    return path


def page(results: list[Result], facts: dict[str, Any]) -> str:
    """Return the page."""
    counts = Counter(result.outcome for result in results)
    summary = ", ".join(f"{number} {outcome}" for outcome, number in counts.most_common())
    where = f"{facts.get('processors')} processors, {facts.get('accelerator')}, host kernel {facts.get('host')}"
    body = [
        "<h1>crash-hotplug lab</h1>",
        f"<p>{count(len(results), 'run')}: {escape(summary)}. Run on {escape(where)}.</p>",
        f'<p class="legend">{memory_picture.legend()}</p>',
        _table(results),
        *[_section(result) for result in results],
        _known_broken(),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>crash-hotplug lab</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _table(results: list[Result]) -> str:
    rows = "".join(
        f'<tr><td class="outcome {r.outcome}">{r.outcome}</td><td><a href="#{r.name}">{escape(r.scenario)}</a></td>'
        f"<td>{escape(r.kernel_release)}</td><td>{r.loader}</td><td>{r.update}</td>"
        f'<td>{escape(r.reason)}</td><td class="n">{r.seconds:.0f} s</td></tr>'
        for r in results
    )
    heads = "".join(f"<th>{h}</th>" for h in ("outcome", "scenario", "kernel", "loader", "update", "why", "time"))
    return f"<table><tr>{heads}</tr>{rows}</table>"


def _section(result: Result) -> str:
    parts = [
        f'<h2 id="{result.name}"><span class="outcome {result.outcome}">{result.outcome}</span> ',
        f"{escape(result.name)}</h2><p>{escape(result.title)}. {escape(result.kernel_release)} ",
        f"({escape(result.kernel_version)}). {escape(_sentence(result.reason))}.</p>",
    ]
    bars = _bars(result)
    if bars:
        parts.append(memory_picture.svg(bars))
    if result.dump and bars:
        parts.append(f"<details open><summary>vmcore</summary>{_dump_picture(result, bars[-1])}</details>")
    if result.events:
        rows = "".join(
            f'<tr><td class="n">{e.at:.1f} s</td><td><code>{escape(e.what)}</code></td><td>{escape(e.detail)}</td></tr>'
            for e in result.events
        )
        parts.append(f"<details open><summary>Time line</summary><table>{rows}</table></details>")
    if result.checks:
        rows = "".join(
            f'<tr><td class="{"pass" if c.ok else "fail"}">{"ok" if c.ok else "not ok"}</td><td>{escape(c.name)}</td>'
            f"<td>{escape(c.detail)}</td></tr>"
            for c in result.checks
        )
        opened = "" if all(c.ok for c in result.checks) else " open"
        parts.append(f"<details{opened}><summary>{len(result.checks)} checks</summary><table>{rows}</table></details>")
    if result.files:
        parts.append(f'<p>Files: <a href="{escape(result.files)}/">{escape(result.files)}/</a> '
                     f'(<a href="{escape(result.files)}/serial.log">serial log</a>)</p>')  # fmt: skip
    return "".join(parts)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _bars(result: Result) -> list[Bar]:
    return [
        Bar(
            moment.name.replace("-", " "),
            RangeList(moment.ram),
            RangeList(moment.described),
            RangeList(moment.crashkernel),
        )
        for moment in result.moments
    ]


def _dump_picture(result: Result, last: Bar) -> str:
    """Draw the vmcore against the machine at the last moment before the panic."""
    findings = [] if result.audit is None else result.audit["findings"]
    missing = {finding["cpu"] for finding in findings if finding["kind"] == Kind.CPU_MISSING.value and "cpu" in finding}
    dump = Bar("vmcore", last.present, RangeList(result.dump), last.crashkernel)
    title = f"{result.outcome.upper()}: {result.reason}"
    picture = memory_picture.dump_picture(title, f"the vmcore of {result.name}", dump, missing)
    return to_svg(printable_picture(picture), inline=f"{result.name}-")


def _known_broken() -> str:
    rows = "".join(
        f"<tr><td>{escape(k.scenario)}</td><td>{escape(k.kernel)}</td><td>{escape(k.loader)}</td><td>{escape(k.reason)}</td></tr>"
        for k in KNOWN_BROKEN
    )
    heads = "".join(f"<th>{h}</th>" for h in ("scenario", "kernel", "loader", "reason"))
    return f"<h2>Combinations known not to work</h2><table><tr>{heads}</tr>{rows}</table>"
