# SPDX-License-Identifier: MIT
"""The effect of udev rules, settings files and systemd units on the next hot-plug; pure functions."""
