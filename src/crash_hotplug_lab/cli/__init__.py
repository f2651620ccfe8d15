# SPDX-License-Identifier: MIT
"""The command line of the lab: one module for each command, imported when it runs."""
