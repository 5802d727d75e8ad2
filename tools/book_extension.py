"""A small Sphinx extension: what the book's pages need beyond jupyter-book.

- The download menu of a chapter offers its notebook.
- Below a chapter stands how long its cells ran (processor time, which other work does not change).
- Saved widget state is left out: it is kilobytes that no page of this book uses, since each widget
  brings its own HTML.
- The bibliography gets no ARIA roles that contradict its elements.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

# Roles that docutils gives to a bibliography, and that screen readers are told not to expect there.
ROLES = (' role="list"', ' role="doc-biblioentry"')
STATE = "application/vnd.jupyter.widget-state+json"


def add_to_page(app: Sphinx, page: str, _template: str, context: dict[str, Any], tree: Any) -> None:
    """Change the context that a page is rendered with."""
    if tree is None:
        return
    if (Path(app.srcdir) / f"{page}.ipynb").exists():
        context["ipynb_source"] = f"{page}.ipynb"
    for role in ROLES:
        context["body"] = context["body"].replace(role, "")
    ran = getattr(app.env, "nb_metadata", {}).get(page, {}).get("exec_data")
    if ran and ran.get("runtime"):
        context["body"] += (
            f'<p class="ran">The cells of this page took {ran["runtime"]:.0f} s of processor time '
            "when the book was built, on one core.</p>"
        )


def leave_out_state(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: Any
) -> None:
    """Drop the state of live widgets from a page."""
    files = context["script_files"]
    files[:] = [f for f in files if getattr(f, "attributes", {}).get("type") != STATE]


def add_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Put the notebooks where the download menu looks for them."""
    if error or app.builder.format != "html":
        return
    for page in app.env.found_docs:
        notebook = Path(app.srcdir) / f"{page}.ipynb"
        if notebook.exists():
            target = Path(app.outdir) / "_sources" / f"{page}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(notebook, target)


def setup(app: Sphinx) -> dict[str, bool]:
    # before the theme, which fills its menus from the context
    app.connect("html-page-context", add_to_page, priority=100)
    # after myst-nb, which adds the state
    app.connect("html-page-context", leave_out_state, priority=900)
    app.connect("build-finished", add_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
