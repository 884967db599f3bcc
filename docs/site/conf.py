"""How `make site` builds the site, from the pages of this repository as they are.

The source folder is a copy of the checkout, with the first page and the reference beside the README: a page links to
others as it does in the repository. Sphinx, and not Zensical: link check, docstrings and notebooks are parts of it.
"""

import importlib.metadata
from typing import Any

project = "Lengthwise"
author = "The authors of Lengthwise"
release = importlib.metadata.version("lengthwise")
version = release
root_doc = "index"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
include_patterns = [
    "index.md",
    "reference.md",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/rules/*.md",
    "deploy/README.md",
    "benchmarks/README.md",
    "benchmarks/results/*.md",
    "benchmarks/leaks/*.md",
    "findings/README.md",
    "examples/*.ipynb",
]

# Anchors as GitHub makes them; links to files that are no page become downloads.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "auto"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True
# Blocks of what a command prints are of no language; pictures in the README have captions in a paragraph.
highlight_language = "none"
suppress_warnings = ["myst.header", "misc.highlighting_failure"]

default_role = "code"  # what stands in single backticks in a docstring
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1).*", r"http://testserver.*"]

html_theme = "furo"
html_title = "Lengthwise"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4ee", "color-brand-content": "#7cc4ee"},
}
copybutton_exclude = ".linenos, .gp, .go"


def _without_module_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Drops the docstring of a module, which is written for who reads the code."""
    if what == "module":
        lines.clear()


def setup(app: Any) -> None:
    """Connects what Sphinx calls."""
    app.connect("autodoc-process-docstring", _without_module_docstring)
