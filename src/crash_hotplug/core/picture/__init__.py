# SPDX-License-Identifier: MIT
"""Pictures of a verdict: memory and CPUs by state, as SVG."""
