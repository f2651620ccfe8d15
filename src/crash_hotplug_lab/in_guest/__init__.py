# SPDX-License-Identifier: MIT
"""Programs that run inside a guest, and the modules that they share: watched.py and image_states.py."""
