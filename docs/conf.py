"""How Sphinx makes the documentation site of the repository's own pages: `make site` writes it to `build/site`.

Sources are where they are read on any host of repositories too (`docs/`, `zeek/`, `training/`, the model cards), so
that the links between them are the same in both. Nothing of the site asks another host for anything.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "tapline"
copyright = "the tapline contributors; BSD-3-Clause"
root_doc = "docs/index"
extensions = ["myst_nb", "rest_routes"]

include_patterns = [
    "docs/*.md",
    "docs/notebooks/*",
    "zeek/README.md",
    "zeek/plugin/README.md",
    "training/*.md",
    "benchmarks/README.md",
    "models/zoo/*/*/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "NOTICE.md",
]
exclude_patterns = [".*", "build", "src", "tests", "service", "docs/extensions"]

myst_enable_extensions = ["colon_fence", "linkify"]
myst_linkify_fuzzy_links = False
myst_heading_anchors = 4
nb_execution_mode = "off"  # a test runs the notebooks, and what they give is kept in them
nb_mime_priority_overrides = [("html", "text/html", 5)]

html_theme = "furo"
html_title = "tapline"
html_extra_path = ["site"]
html_static_path = ["static"]
html_css_files = ["tapline.css"]
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
linkcheck_ignore = [r"https?://(127\.0\.0\.1|localhost)[:/]", r"https://host/"]
linkcheck_timeout = 20
