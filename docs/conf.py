"""How the site is built (`make docs`): MyST pages, docstrings, what the commands say of themselves.

Nothing is fetched: no other project's index, no font, no script of a third party.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import generated  # noqa: E402

from fmoe.version import VERSION  # noqa: E402

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "fmoe"
author = "the fmoe authors"
project_copyright = author
version = release = VERSION

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # a changelog-like log has levels of its own

# Docstrings are plain text with single backticks.
default_role = "code"
autodoc_typehints = "none"  # their unions are longer than what they say; docstrings give shapes
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "model_config"}
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # torch's and pydantic's names are other projects'

smartquotes_action = "qe"  # two dashes begin an option

html_theme = "furo"
html_title = "fmoe"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
highlight_language = "text"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = r"\$ |> "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"


def fill(_app: Sphinx, _page: str, source: list[str]) -> None:
    """`<!-- generated: NAME -->` in a page becomes what the code says."""
    source[0] = generated.filled(source[0])


def as_literals(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Plain text to reStructuredText: what would be markup there is none here."""
    for number, line in enumerate(lines):
        parts = re.split(r"(``?[^`]+``?)", line)
        parts[::2] = [re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", as_literals)
