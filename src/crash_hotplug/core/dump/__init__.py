# SPDX-License-Identifier: MIT
"""Dumps of a crashed kernel: the formats in which they are saved, and what the audit reports about them."""
