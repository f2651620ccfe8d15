# SPDX-License-Identifier: MIT
"""The privileged room: everything that touches a Linux machine, live or as a saved tree (``--sysroot``)."""
