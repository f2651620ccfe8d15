# SPDX-License-Identifier: MIT
"""Timing of updates in place and full reloads, with ptrace."""
