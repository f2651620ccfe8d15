# SPDX-License-Identifier: MIT
"""The code that changes the loaded crash image: system calls, loads, updates, reloads, and their estimated time."""
