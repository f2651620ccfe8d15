# SPDX-License-Identifier: MIT
"""Run the command line: ``python3 -m crash_hotplug``."""

from __future__ import annotations

import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Main = Callable[[Sequence[str]], int]


def _import_main() -> Main:
    from crash_hotplug.cli.main import main  # noqa: PLC0415

    return main


def run(import_main: Callable[[], Main] = _import_main) -> None:
    """Run the command on the command line and exit with its code.

    :param import_main: imports and returns the program's main(); Ctrl-C ends the imports quietly, too
    """
    try:
        gc.disable()  # imports make many objects and no garbage; main() enables it before the command runs
        from crash_hotplug.cli.streams import protect_streams  # noqa: PLC0415

        protect_streams()
        code = import_main()(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    run()
