# SPDX-License-Identifier: MIT
"""The architectures of model machines: a record of each, its boot, its loaders and the start of its capture kernel."""
