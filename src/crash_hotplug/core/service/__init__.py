# SPDX-License-Identifier: MIT
"""The watch service's own rules: when to look, what to remember, what to tell."""
