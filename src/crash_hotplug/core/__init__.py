# SPDX-License-Identifier: MIT
"""The pure core: ranges, the elfcorehdr, machines, images, comparisons.  No input or output happens here."""
