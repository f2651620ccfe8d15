# SPDX-License-Identifier: MIT
"""Build the documentation with Sphinx: ``python3 tools/build_docs.py [DIRECTORY]`` (build/docs).

The pages are the Markdown files of ``docs/`` and of the top directory, as a viewer of Markdown shows them.  This
program stages copies of them in one directory, adapts their links, and adds the pages of the commands, which are made
from the parsers behind ``--help`` as the man pages are.  The lists of links in ``index.md`` and ``evidence/README.md``
become the table of contents, so a page that neither of them lists is an error.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from crash_hotplug import __version__  # noqa: E402
from crash_hotplug.cli.command_tree import read_commands  # noqa: E402
from crash_hotplug.cli.main import CRASH_HOTPLUG  # noqa: E402
from crash_hotplug.cli.reference_page import (  # noqa: E402
    Definition,
    Paragraph,
    Preformatted,
    ReferencePage,
    command_page,
)
from crash_hotplug_lab.cli.main import CRASH_HOTPLUG_LAB  # noqa: E402

STAGED_FROM_TOP = ("CONTRIBUTING.md", "NEWS.md", "SECURITY.md")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)")
FILE_NAME_AS_LABEL = re.compile(r"\[[\w./-]+\.md\](?=\([^)]*\.md\))")
"""The label of a link that is the name of the page; Sphinx puts the page's title in the place of an empty label."""
LISTED_LINK = re.compile(r"^(?:- |\| )\[([^]]*)\]\(([^):]+\.md)\)")
"""A link to a page that begins an item of a list or a row of a table."""


def site_path(source: PurePosixPath) -> PurePosixPath:
    """Return the place in the site of a file of the source tree; both are relative.

    :raise ValueError: the site does not have that file
    """
    if source in (PurePosixPath("README.md"), PurePosixPath("docs")):
        return PurePosixPath("index.md")
    if source.parts[0] == "docs":
        inside = source.relative_to("docs")
        return inside.with_name("index.md") if inside.name == "README.md" else inside
    if source.name in STAGED_FROM_TOP:
        return PurePosixPath(source.name.lower())
    raise ValueError(f"the documentation has no place for {source}")


def stage_page(source: PurePosixPath) -> str:
    """Return a page with the links that it has in the site."""
    place = site_path(source)

    def site_link(found: re.Match[str]) -> str:
        if re.match("[a-z]+:", found[1]):
            return found[1]
        target = site_path(PurePosixPath(os.path.normpath(source.parent / found[1])))
        return os.path.relpath(target, place.parent)

    text = FILE_NAME_AS_LABEL.sub("[]", LINK.sub(site_link, (ROOT / source).read_text()))
    return text + "".join(tables_of_contents(text) if place.name == "index.md" else ())


def tables_of_contents(text: str) -> Iterator[str]:
    """Yield a table of contents for each part of an index page whose list or table has links to pages."""
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE):
        heading, *lines = part.splitlines() or [""]
        links = [found for line in lines if (found := LISTED_LINK.match(line))]
        pages = [f"{link[1]} <{link[2]}>" if link[1] else link[2] for link in links]
        if pages:
            yield "\n".join(["", "```{toctree}", ":hidden:", f":caption: {heading}", "", *pages, "```", ""])


def markdown(page: ReferencePage) -> str:
    """Return the page of a command as Markdown."""
    lines = [f"# {page.name}", "", f"{page.summary[0].upper()}{page.summary[1:]}.", ""]
    lines += ["```{code-block} text", ":class: wrapped", "", f"{page.name} {page.synopsis}", "```", ""]
    for section in page.sections:
        if section.title != "DESCRIPTION":
            lines += [f"## {section.title.capitalize()}", ""]
        for part in section.content:
            if isinstance(part, Paragraph):
                lines += [*part.lines, ""]
            elif section.title == "EXIT STATUS" and isinstance(part, Definition):
                lines.append(f"- {part.term}: {part.meaning}")
            elif isinstance(part, Definition):
                lines += [f"`{part.term}`", f": {part.meaning}", ""]
            elif isinstance(part, Preformatted):
                lines += ["```{code-block} text", ":class: wrapped", ""]
                lines += [*(line.removeprefix("  ") for line in part.lines), "```", ""]
    return "\n".join([*lines, "", "[Exit codes](../exit-codes.md) has an example of each."])


def stage(directory: Path) -> None:
    """Write everything that Sphinx reads into a new directory."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(ROOT / "docs", directory, ignore=shutil.ignore_patterns("_site", "*.md"))
    for path in [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in STAGED_FROM_TOP)]:
        source = PurePosixPath(path.relative_to(ROOT).as_posix())
        (directory / site_path(source)).write_text(stage_page(source))
    (directory / "commands").mkdir()
    page = (directory / "commands.md").read_text()
    contents = ["", "```{toctree}", ":hidden:", ""]
    for program in (CRASH_HOTPLUG, CRASH_HOTPLUG_LAB):
        for command in read_commands(program)[1:]:
            words = command.parser.prog
            name = f"commands/{words.replace(' ', '-')}"
            (directory / f"{name}.md").write_text(markdown(command_page(command)))
            contents.append(name)
            page = page.replace(f"| `{words}` |", f"| [`{words}`]({name}.md) |")
    (directory / "commands.md").write_text("\n".join([page, *contents, "```", ""]))


def main(target: str = "build/docs") -> int:
    """Build the site; return Sphinx's exit code, which is not 0 where there was a warning."""
    staged = Path(f"{target}-source")
    stage(staged)
    configuration = str(ROOT / "docs" / "_site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-n",
        "-c",
        configuration,
        str(staged),
        target,
    ]
    return subprocess.run(command, env={**os.environ, "CRASH_HOTPLUG_VERSION": __version__}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
