"""A small Sphinx extension: what the book's pages need beyond jupyter-book.

- The download menu of a chapter offers its notebook.
- Below a chapter stands how long its cells ran (processor time, which other work does not change).
- Saved widget state is left out: it is kilobytes that no page of this book uses, since each widget
  brings its own HTML.
- The bibliography gets no ARIA roles that contradict its elements.
- Two directives, `gallery` and `gallery-errors`, put the gallery on its page and the errors that
  were measured for it. Its data are computed where they are not there yet (tools/gallery.py) and
  copied beside the pages.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

# Roles that docutils gives to a bibliography, and that screen readers are told not to expect there.
ROLES = (' role="list"', ' role="doc-biblioentry"')
TOOLS = Path(__file__).parent
GALLERY_PAGE, GALLERY_DATA = "chapters/gallery", TOOLS.parent / "_build" / "gallery"
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


GALLERY = """\
<link rel="stylesheet" href="../_static/gallery/gallery.css?{code}">
<div class="bilrp-gallery" data-gallery="{names}" data-version="{version}">
<p class="trouble">Here two pictures would answer when you point at them. For that, JavaScript must
be switched on, and the folder <code>_static/gallery</code> must lie beside the pages. Without it,
the notebooks of the book answer the same questions.</p></div>
<script src="../_static/gallery/gallery.js?{code}" defer></script>
"""


@cache
def gallery() -> dict[str, Any]:
    """Compute the gallery where that has not been done; its version, names and measured errors."""
    subprocess.run([sys.executable, str(TOOLS / "gallery.py")], check=True)
    return json.loads((GALLERY_DATA / "about.json").read_text(encoding="utf-8"))


class Gallery(SphinxDirective):
    """The gallery: a sentence for readers without scripts, and what the scripts fill."""

    def run(self) -> list[nodes.Node]:
        about = gallery()
        names = " ".join(about["collections"])
        html = GALLERY.format(version=about["version"], code=about["code"], names=names)
        return [nodes.raw("", html, format="html")]


class GalleryErrors(SphinxDirective):
    """How far the gallery's scores are from the engine's, as measured when it was computed."""

    def run(self) -> list[nodes.Node]:
        head = ["What", "Layer", "Gamma", "Directions", "Pairs", "Median", "At most"]
        rows = [
            [r["of"], r["layer"], r["gamma"], r["directions"], r["pairs"]]
            + [
                f"{100 * r[of]:.2g} %" if r[of] > 1e-4 else "below 0.01 %"
                for of in ("median", "most")
            ]
            for r in gallery()["errors"]
        ]
        cells = [[f"<td>{cell}</td>" for cell in row] for row in rows]
        html = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
        title = "".join(f'<th scope="col">{cell}</th>' for cell in head)
        html = (
            '<div class="pst-scrollable-table-container"><table class="table">'
            f"<thead><tr>{title}</tr></thead><tbody>{html}</tbody></table></div>"
        )
        return [nodes.raw("", html, format="html")]


def outdated_gallery(app: Sphinx, env: Any, _added: Any, _changed: Any, _removed: Any) -> list[str]:
    """The page is read each time: it names the version of its data."""
    return [name for name in (GALLERY_PAGE,) if name in env.found_docs]


def add_gallery(app: Sphinx, error: Exception | None) -> None:
    """Put the gallery's files where its page looks for them."""
    if error or app.builder.format != "html" or GALLERY_PAGE not in app.env.found_docs:
        return
    gallery()
    shutil.copytree(GALLERY_DATA, Path(app.outdir) / "_static" / "gallery", dirs_exist_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    # before the theme, which fills its menus from the context
    app.connect("html-page-context", add_to_page, priority=100)
    # after myst-nb, which adds the state
    app.connect("html-page-context", leave_out_state, priority=900)
    app.connect("build-finished", add_notebooks)
    app.add_directive("gallery", Gallery)
    app.add_directive("gallery-errors", GalleryErrors)
    app.connect("env-get-outdated", outdated_gallery)
    app.connect("build-finished", add_gallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
