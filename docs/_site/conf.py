# SPDX-License-Identifier: MIT
"""Sphinx's configuration; tools/build_docs.py stages the pages and starts Sphinx."""

from __future__ import annotations

import os

project = "crash-hotplug"
author = "The crash-hotplug authors"
project_copyright = author
release = os.environ["CRASH_HOTPLUG_VERSION"]

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
smartquotes = False  # "--fix" is an option, and no dash
highlight_language = "text"

html_theme = "furo"
html_title = f"crash-hotplug {release}"
html_static_path = ["."]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
