# SPDX-License-Identifier: MIT
"""The watch service's side of the machine: uevents, systemd, metrics, and its looks."""
