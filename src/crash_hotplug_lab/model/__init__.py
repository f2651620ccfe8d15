# SPDX-License-Identifier: MIT
"""An executable model of the whole system: kernel, loaders, hot-plug, updates and panics, in memory."""
