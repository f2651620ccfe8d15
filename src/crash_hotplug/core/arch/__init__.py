# SPDX-License-Identifier: MIT
"""The architectures: a record of each, and the form in which each tells its capture kernel where the header is."""
