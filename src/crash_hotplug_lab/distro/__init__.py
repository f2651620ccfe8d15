# SPDX-License-Identifier: MIT
"""Full Debian guests: image, driver, judge."""
