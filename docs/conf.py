"""The site of docs/: `make docs` builds it into docs/_build. Nothing is loaded from elsewhere,
neither while it is built nor by its pages.

Three things are made here: the notebooks' pages, the modules' pages (autosummary, from the packages
as they are), and docstrings as reStructuredText. Docstrings of this repository are plain text:
`code` in single backticks, and what is indented stays as it is.
"""

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import plotly.offline
from nbclient import NotebookClient
from plotly.graph_objects import Figure
from sphinx.application import Sphinx

from scaling import __version__

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ROOT / "docs" / "tutorial"
PLOTLY = "application/vnd.plotly.v1+json"
# What each notebook needs to be executed: a variable, the folder that it names, a file there.
NEEDS = {
    "01_lr_transfer": ("STUDY", "studies/quickstart", "rows.csv"),
    "02_scaling_law": ("STUDY", "studies/quickstart", "rows.csv"),
    "03_tokenizers": ("STUDY", "studies/quickstart", "loss_by_position.json"),
    "04_probes": ("STUDY", "studies/representations", "probes.csv"),
    "05_published_results": ("TABLES", "notebooks/tables", "toto_scaling_digitised.csv"),
    "06_beyond_compute": ("TABLES", "notebooks/tables", "multipowerlaw_12_curves.csv"),
}

project, release = "scaling", __version__
copyright = "the authors of scaling, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]
default_role = "code"
smartquotes = False
myst_heading_anchors = 3
nb_execution_mode = "off"  # executed below, because a figure's page must not fetch its script
nb_mime_priority_overrides = [("html", "text/html", 0)]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False  # those of torch are not ours
autosummary_generate = True
# Types of other libraries have no page here, and no network is asked for theirs.
nitpick_ignore_regex = [(r"py:.*", r".*")]
suppress_warnings = ["ref.python"]  # a type that two modules list has two pages
html_theme = "furo"
html_title = f"scaling {release}"
html_copy_source = html_show_sourcelink = False


def executed(name: str) -> tuple[Any, str]:
    """The notebook, with its outputs where what it needs is here; and which of both, in words."""
    variable, default, file = NEEDS[name]
    given = os.environ.get(variable, default)
    folder = (ROOT / given).resolve()
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    if not tags.has("execute"):  # noqa: F821  Sphinx gives it
        return notebook, "Shown without outputs: `make docs` executes it where its input is."
    if not (folder / file).exists():
        return notebook, f"Shown without outputs: there was no `{given}/{file}`."
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(SHOWN)}})
    client.execute(env=os.environ | {variable: str(folder), "PLOTLY_RENDERER": "plotly_mimetype"})
    script = '<script src="../_static/plotly.min.js"></script>'  # before the page's first figure
    for output in (one for cell in notebook.cells for one in cell.get("outputs", [])):
        if PLOTLY in output.get("data", {}):
            figure = Figure(output["data"].pop(PLOTLY), skip_invalid=True)
            output["data"]["text/html"] = script + figure.to_html(
                full_html=False, include_plotlyjs=False, include_mathjax=False
            )
            script = ""
    return notebook, f"Executed on `{given}`."


def write_notebooks(app: Sphinx, config: Any) -> None:
    for name in NEEDS:
        notebook, said = executed(name)
        notebook.cells[0].source += f"\n\n*{said}*"
        for cell in notebook.cells:
            cell.pop("id", None)
        notebook.nbformat_minor = 4
        text = nbformat.writes(notebook)
        path = SHOWN / f"{name}.ipynb"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def add_plotly(app: Sphinx, exception: Exception | None) -> None:
    """The script of figures; without a network, so from the package."""
    if exception is None and tags.has("execute"):  # noqa: F821
        (Path(app.outdir) / "_static" / "plotly.min.js").write_text(plotly.offline.get_plotlyjs())


def as_rst(text: str) -> list[str]:
    """A plain docstring as reStructuredText: paragraphs, indented blocks as they are, examples."""
    blocks: list[str] = re.split(r"\n\s*\n", text.strip("\n"))
    made: list[str] = []
    for block in blocks:
        lines, example = block.split("\n"), block.lstrip().startswith(">>>")
        quoted: list[str] = []
        if example:
            made += [*(line.strip() for line in lines), ""]
            continue
        for line in [*lines, ""]:
            if line.startswith(" ") or (quoted and line.startswith("- ")):
                quoted.append(line)
                continue
            if quoted:
                made += ["", "::", "", *("    " + one for one in quoted), ""]
                quoted = []
            if line.startswith("- "):  # a list stays as it is laid out
                quoted.append(line)
                continue
            parts = re.split(r"`+([^`]+)`+", line)  # every second one is code
            parts[::2] = [re.sub(r"([*_|\\])", r"\\\1", part) for part in parts[::2]]
            parts[1::2] = [f"``{part}``" for part in parts[1::2]]
            made.append("".join(parts))
    return made


def plain_docstrings(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    lines[:] = as_rst("\n".join(lines)) if any(lines) else []


def setup(app: Sphinx) -> None:
    app.connect("config-inited", write_notebooks)
    app.connect("build-finished", add_plotly)
    app.connect("autodoc-process-docstring", plain_docstrings)
