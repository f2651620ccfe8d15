"""The sides that a full Debian guest is run from: who brings its crash image up to date.

Imports nothing: the command line names them without the lab's extra packages.
"""

WITHOUT, WITH, RELOAD, RULE, LAST_RESORT = "without", "with", "reload", "rule", "last-resort"
SIDES = {
    WITHOUT: "Debian's own rule",
    WITH: "this package's service",
    RELOAD: "update --strategy reload, by hand",
    RULE: "Debian's own rule, let through udev's sandbox",
    LAST_RESORT: "this package's service, which may only reload",
}
"""What each is, for people."""
