# SPDX-License-Identifier: MIT
"""The sides of a full guest: the service, rule or command that keeps its crash image up to date.

Imports nothing: the command line needs the names without the lab's extra packages.
"""

WITHOUT, WITH, RELOAD, LAST_RESORT, LOCKS = "without", "with", "reload", "last-resort", "locks"
RULE, CORRECTED = "rule", "corrected-rule"
SIDES = {
    WITHOUT: "the distribution's own rule",
    WITH: "this package's service",
    RELOAD: "update --strategy reload, by hand",
    RULE: "the distribution's own rule, let through udev's sandbox",
    CORRECTED: "the distribution's own rule, corrected as docs/upstream proposes",
    LAST_RESORT: "this package's service, which may only reload",
    LOCKS: "this package's service, beside reloads at random moments",
}
"""The description of each in results."""
NEED_NO_PACKAGE = (WITHOUT, RULE, CORRECTED)
"""The sides on which this project's package is not installed."""
