"""The lab's commands (``crash-hotplug lab run`` and its kin), imported when one of them is used."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from crash_hotplug.cli import exit_codes, lab_debian
from crash_hotplug.cli.lab_progress import Terminal, say
from crash_hotplug.cli.output import print_json
from crash_hotplug.core.errors import InputError
from crash_hotplug.lab import cachedir, kernels, ktap, plan, report, results, scenario, session, shell
from crash_hotplug.lab.kernels import Kernel


def fetch(arguments: argparse.Namespace) -> int:
    """Download or renew kernels, QEMU and userland."""
    keys = _keys(arguments.kernel) or list(kernels.KNOWN)
    for kernel in session.prepare(keys, say, again=True):
        print(f"{kernel.key:6} {kernel.release}  ({kernel.version}, userland of {kernel.userland})")
    return exit_codes.DONE


def list_all(arguments: argparse.Namespace) -> int:
    """Show what there is."""
    ready = {key: kernels.ready(key) for key in kernels.KNOWN}
    scenarios = [scenario.load(name) for name in scenario.bundled()]
    if arguments.json:
        found = {key: kernel.version if kernel else None for key, kernel in ready.items()}
        print_json({
            "command": "lab list",
            "kernels": found,
            "loaders": scenario.LOADERS,
            "scenarios": {s.name: {"title": s.title, "updates": list(s.expect)} for s in scenarios},
            "known_broken": [vars(known) for known in plan.KNOWN_BROKEN],
        })  # fmt: skip
        return exit_codes.DONE
    print("Kernels")
    for key, kernel in ready.items():
        print(f"  {key:6} {kernel.release if kernel else 'not fetched'}")
    print("\nLoaders")
    for loader, words in scenario.LOADERS.items():
        print(f"  {loader:6} {words}")
    print("\nScenarios")
    for s in scenarios:
        print(f"  {s.name:20} {s.title}")
    print("\nKnown not to work")
    for known in plan.KNOWN_BROKEN:
        print(f"  {known.scenario} {known.kernel} {known.loader}: {known.reason}")
    return exit_codes.DONE


def run(arguments: argparse.Namespace) -> int:
    """Run scenarios; exit code 1 where one was not as expected."""
    names = scenario.bundled() if arguments.all else arguments.scenarios or plan.DEFAULT_SCENARIOS
    scenarios = [scenario.load(name) for name in names]
    if arguments.count_instructions:
        scenarios = [chosen.counted() for chosen in scenarios]
    if arguments.jobs < 1:
        raise InputError("at least one guest has to run at a time (-j)")
    chosen = _kernels(arguments, list(plan.DEFAULT_KERNELS))
    runs = plan.plan(scenarios, chosen, arguments.loader, arguments.update, arguments.repeat)
    directory = Path(arguments.output) if arguments.output else session.new_directory()
    directory.mkdir(parents=True, exist_ok=True)
    quiet = arguments.json or arguments.ktap
    with Terminal(len(runs), quiet) as terminal:
        done = asyncio.run(session.run_all(runs, directory, terminal, arguments.jobs, arguments.keep))
    failed = session.exit_failed(done)
    page = report.write(done, directory, session.facts())
    if arguments.ktap:
        print("\n".join(ktap.lines(done)))
    elif arguments.json:
        print((directory / results.FILE).read_text(), end="")
    else:
        print(f"\n{page}")
    return exit_codes.FAILED if failed else exit_codes.DONE


def shell_in(arguments: argparse.Namespace) -> int:
    """Boot a guest with a shell."""
    kernel = _kernels(arguments, ["6.12"])[0]
    print(shell.HELLO.format(release=kernel.release), flush=True)
    return shell.run(kernel)


def report_anew(arguments: argparse.Namespace) -> int:
    """Write the page of a session anew."""
    directory = Path(arguments.directory) if arguments.directory else cachedir.cache_dir("results") / "latest"
    done, facts = results.read(directory)
    print(report.write(done, directory, facts))
    return exit_codes.DONE


def _keys(given: list[str]) -> list[str]:
    return list(kernels.KNOWN) if "all" in given else given


def _kernels(arguments: argparse.Namespace, default: list[str]) -> list[Kernel]:
    chosen = _keys(arguments.kernel) or ([] if arguments.modules else default)
    files = [name for name in chosen if "/" in name or Path(name).is_file()]
    if arguments.modules and len(files) != 1:
        raise InputError("--modules goes with one --kernel that is a file")
    if files and not arguments.modules:
        raise InputError(f"{files[0]} is a file; its modules have to be named as well (--modules DIR)")
    found: list[Kernel] = session.prepare([name for name in chosen if name not in files], say)
    if files:
        session.prepare_userland(arguments.userland, say)
        found.append(kernels.own(Path(files[0]), Path(arguments.modules), arguments.userland))
        session.prepare([], say)
    return found


COMMANDS = {
    "fetch": fetch,
    "list": list_all,
    "run": run,
    "shell": shell_in,
    "report": report_anew,
    "debian": lab_debian.run,
}
"""Each of the lab's commands by its name on the command line."""
