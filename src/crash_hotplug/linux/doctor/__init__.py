# SPDX-License-Identifier: MIT
"""Read and change the configuration that handles hot-plug on a machine."""
