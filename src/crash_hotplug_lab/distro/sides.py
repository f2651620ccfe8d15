# SPDX-License-Identifier: MIT
"""The sides of a full Debian guest: the service, rule or command that keeps its crash image up to date.

Imports nothing: the command line needs the names without the lab's extra packages.
"""

WITHOUT, WITH, RELOAD, RULE, LAST_RESORT = "without", "with", "reload", "rule", "last-resort"
SIDES = {
    WITHOUT: "Debian's own rule",
    WITH: "this package's service",
    RELOAD: "update --strategy reload, by hand",
    RULE: "Debian's own rule, let through udev's sandbox",
    LAST_RESORT: "this package's service, which may only reload",
}
"""The description of each in results."""
