"""Sphinx's settings; `docs/build.py` runs it."""

import os
import re
import sys

import latex2mathml.converter
from docutils import nodes

import mtlfunc as mf

for room in ("diagnostics", "optim", "random"):
    # Public under these names, files elsewhere: documentation tools import what they name.
    sys.modules.setdefault(f"mtlfunc.{room}", getattr(mf, room))

project = "mtlfunc"
author = "the mtlfunc authors"
project_copyright = "the mtlfunc authors, MIT licence"
version = release = mf.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
html_theme = "furo"
pygments_style = "default"
pygments_dark_style = "github-dark"
html_title = f"mtlfunc {release}"
html_show_sphinx = False
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["site.css"]
html_js_files = ["versions.js"]
html_baseurl = os.environ.get("DOCS_URL", "")  # what every version calls its canonical address
html_theme_options = {"navigation_with_keys": True}
default_role = "code"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
exclude_patterns = ["claims.md"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
html_math_renderer = "mathml"  # browsers draw it themselves: no script, no font, no network
myst_heading_anchors = 3
nb_execution_mode = "off"
napoleon_custom_sections = ["Source"]
napoleon_use_ivar = True
maximum_signature_line_length = 60
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("Scalar", "Select", "Params", "Batch", "State")}
autodoc_preserve_defaults = True
suppress_warnings = ["config.cache"]

DOCTEST = re.compile(r"((?:^[ ]*>>>.*\n(?:^[ ]*\S.*\n?)*)+)", re.MULTILINE)

STAR = re.compile(r"(\*\*\w(?:[^*\n]*\w)?\*\*|(?<=^ {4})\*+(?=\w+:))|\*", re.MULTILINE)
"""A star; in the group what stays: **emphasis**, and the stars of an argument's name."""


LOW = re.compile(
    r"((?<!\w)[^\W\d_][\u0300-\u036f]?|[∇ΣΠ‖]|(?<!\w)(?:arg)?(?:min|max|mean)(?=_\w\b))"
    r"_(\w{1,6})(?!\w)"
)
HIGH = re.compile(r"\^(?:\(([^()_^]*)\)|(-?[^\W_]+))")
"""What stands low or high in a formula: g_t, e^(-s), r^α."""


def plain(prose: str) -> str:
    """Prose with what reStructuredText would read as markup written out; `code` stays code, and
    what stands low or high in a formula is set so.
    """
    parts = re.split(r"`([^`]+)`", prose)
    marked = []
    for i, part in enumerate(parts):
        if i % 2:
            left = "\\ " if re.search(r"[\w)\]‖]$", parts[i - 1]) else ""
            right = "\\ " if re.match(r"[\w(\[‖]", parts[i + 1]) else ""
            marked.append(f"{left}`{' '.join(part.split())}`{right}")
        else:
            bare = part.replace("\\", "\\\\").replace("|", "\\|")
            bare = STAR.sub(lambda found: found[1] or r"\*", bare)
            bare = HIGH.sub(lambda found: rf"\ :sup:`{found[1] or found[2]}`\ ", bare)
            bare = LOW.sub(r"\1\\ :sub:`\2`\\ ", bare)
            marked.append(re.sub(r"_(?=\W|$)", r"\\_", bare))
    return "".join(marked)


def returned(text: str) -> str:
    """The section Returns as one field, so that a colon in it is not taken for a type."""
    found = re.search(r"(?m)^Returns:\n((?:(?: {4}.*)?\n)+)", text + "\n")
    if not found:
        return text
    body = found.group(1).rstrip().removeprefix("    ")
    return text.replace(found.group(0).rstrip(), f":returns: {body}")


def docstring(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain prose with `code`: only that is marked up."""
    parts = DOCTEST.split("\n".join(lines) + "\n")
    parts[::2] = [plain(part) for part in parts[::2]]
    lines[:] = returned("".join(parts)).split("\n")


def signature(app, what, name, obj, options, given: str | None, returns: str | None):
    """Aliases of types by their names alone."""
    names = re.compile(r"TypeAliasForwardRef\('(\w+)'\)")
    return tuple(text and names.sub(r"\1", text) for text in (given, returns))


def mathml(display: str):
    """How formulas are written: $inline$, or as a $$block$$."""

    def visit(self, node) -> None:
        formula = latex2mathml.converter.convert(node.astext(), display=display)
        self.body.append(f'<div class="math">{formula}</div>' if display == "block" else formula)
        raise nodes.SkipNode

    return visit, None


def setup(app) -> None:
    app.add_html_math_renderer("mathml", mathml("inline"), mathml("block"))
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring, priority=100)
