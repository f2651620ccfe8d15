# SPDX-License-Identifier: MIT
"""Programs behind single figures of the documents: kills at every system call, costs, a storm of events."""
