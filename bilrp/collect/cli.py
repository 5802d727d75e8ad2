"""The command `bilrp`: explain two photos, index a folder, search it, find its themes.

Exit codes: 0 done; 1 something is wrong with a file, a store or the data, and the message says
what to do; 2 the command was not understood; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bilrp
from bilrp._names import needs
from bilrp.collect.inputs import BadInput, Photos, read_photo
from bilrp.engine.factors import Factor
from bilrp.engine.rules import Rules

CROPPED = (
    "Of each photo the centre square was taken, turned as its EXIF data say, and resized to "
    "{size} x {size} pixels; one that is less than half as large is refused."
)


class Wrong(Exception):
    """What the user should read; ends the command with exit code 1."""


@dataclass(frozen=True)
class Network:
    """A network that the command knows by name."""

    name: str
    make: Callable[[], nn.Module]
    rules: Callable[[], Rules | None]
    prepare: Callable[[Tensor], Tensor]
    size: int
    patch: int
    layers: dict[str, str]


def network(name: str) -> Network:
    """The network that a name such as "vgg16:31" means.

    Raises
    ------
    Wrong
        If there is none of this name.
    """
    kind, _, rest = name.partition(":")
    number = int(rest) if rest.isdecimal() else None
    if kind == "vgg16" and number is not None and 1 <= number <= 31:
        make = partial(bilrp.vgg16, number)
        return Network(name, make, bilrp.vgg16_rules, bilrp.normalize, 128, 8, bilrp.VGG16_NAMES)
    if kind == "efficientnet_lite0" and (not rest or (number and number <= 16)):
        make = partial(bilrp.efficientnet_lite0, number)
        return Network(name, make, lambda: None, bilrp.efficientnet_lite0_input, 224, 16, {})
    raise Wrong(
        f"there is no network {name!r}: vgg16:LAYER with LAYER from 1 to 31, such as vgg16:31, or "
        "efficientnet_lite0, or efficientnet_lite0:BLOCK with BLOCK from 1 to 16"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    known: tuple[type[Exception], ...] = (Wrong, BadInput, OSError, ModuleNotFoundError, ValueError)
    try:
        with needs("collect"):
            from bilrp.book.registry import DataError
            from bilrp.collect.records import StoreError
        known = (*known, DataError, StoreError)
        options.run(options)
    except known as error:
        print(f"bilrp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bilrp: interrupted; a store goes on from here at the next run", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bilrp",
        description="What makes a deep network call two photos similar? Explanations of pairs, "
        "search in a folder, and the kinds of reasons that a collection has.",
        epilog="A store goes on where it ended, whatever stopped it. All pages are single files "
        "that need no network.",
    )
    parser.add_argument("--version", action="version", version=f"bilrp {bilrp.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any], None], text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(run=run)
        return found

    model: dict[str, Any] = dict(
        default="vgg16:31",
        metavar="NAME",
        help="vgg16:LAYER or efficientnet_lite0[:BLOCK] (default: %(default)s)",
    )
    size: dict[str, Any] = dict(
        type=_positive, metavar="PIXELS", help="side of the square that the network gets"
    )
    output: dict[str, Any] = dict(
        type=Path, required=True, metavar="PAGE", help="the page to write, .html"
    )
    at: dict[str, Any] = dict(type=Path, required=True, metavar="FOLDER", help="the store")
    kinds: dict[str, Any] = dict(
        choices=("cosine", "dot"), default="cosine", help="(default: %(default)s)"
    )

    one = command("explain", explain, "Explain the similarity of two photos, pair by pair.")
    one.add_argument("first", type=Path)
    one.add_argument("second", type=Path)
    one.add_argument("-o", "--output", **output)
    one.add_argument("--model", **model)
    one.add_argument("--size", **size)
    one.add_argument("--similarity", **kinds)

    two = command("index", index, "Put the features of all photos of a folder into a store.")
    two.add_argument("folder", type=Path)
    two.add_argument("--store", **at)
    two.add_argument("--model", **model)
    two.add_argument("--size", **size)
    two.add_argument(
        "--chunk", type=_positive, default=32, metavar="N", help="photos at once (default: 32)"
    )
    two.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a Dask cluster whose workers see the same files; default: this machine",
    )

    three = command("search", search, "Find the most similar photos of a store, and say why.")
    three.add_argument("photo", type=Path)
    three.add_argument("--store", **at)
    three.add_argument("-k", type=_positive, default=5, metavar="N", help="hits (default: 5)")
    three.add_argument("-o", "--output", **output)
    three.add_argument("--similarity", **kinds)

    four = command("themes", themes, "Find the kinds of reasons that make neighbours similar.")
    four.add_argument("--store", **at)
    four.add_argument("-o", "--output", **output)
    four.add_argument(
        "--count",
        type=_positive,
        metavar="N",
        help="themes; default: as many as the explanations fall into, 2 to 8",
    )
    four.add_argument(
        "--pairs",
        type=_positive,
        default=200,
        metavar="N",
        help="explain at most so many pairs of neighbours (default: 200)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number >= 1 is needed, not {text!r}")
    return int(text)


def explain(options: Any) -> None:
    """`bilrp explain a.jpg b.jpg -o page.html`."""
    from bilrp.collect import report

    _writable(options.output)
    chosen = network(options.model)
    size = _size(options.size, chosen)
    x, x2 = (_photo(path, size) for path in (options.first, options.second))
    model, rules = chosen.make(), chosen.rules()
    factors = [bilrp.factor(model, chosen.prepare(v), rules, patch=chosen.patch) for v in (x, x2)]
    e = factors[0].explain(factors[1], options.similarity)
    names = (options.first.name, options.second.name)
    parts = [
        f"<p>Similarity ({options.similarity}): {e.similarity:.4g}. Point at a patch to see its "
        "partners.</p>",
        report.explained(e, x, x2, names, chosen.layers),
        _foot(chosen.name, factors[0], size),
    ]
    page = report.page(options.output, f"{names[0]} and {names[1]}", parts)
    print(f"similarity {e.similarity:.4g}; see {page}")


def index(options: Any) -> None:
    """`bilrp index FOLDER --store S`."""
    from bilrp.collect.building import build

    chosen = network(options.model)
    size = _size(options.size, chosen)
    photos = Photos.of(options.folder, size, chosen.prepare)
    recipe = {"model": chosen.name, "size": size, "folder": str(options.folder.resolve())}
    made = build(
        options.store,
        photos,
        chosen.make,
        chosen.rules(),
        patch=chosen.patch,
        chunk=options.chunk,
        scheduler=options.scheduler,
        recipe=recipe,
    )
    print(f"{len(made) - len(made.bad)} photos are in {options.store}")
    for i, why in made.bad.items():
        print(f"left out: {made.names[i]} {why}")
    if made.bad:
        print(f"{len(made.bad)} left out; mend them and run again, nothing else is done twice")


def search(options: Any) -> None:
    """`bilrp search photo.jpg --store S -o page.html`."""
    from bilrp.collect import report
    from bilrp.collect.contrasts import contrast
    from bilrp.collect.search import nearest

    _writable(options.output)
    store, chosen, photos = _opened(options.store)
    x = _photo(options.photo, photos.size)
    photo = options.photo.resolve()  # of a link, what it leads to
    here = Photos(photo.parent, (photo.name,))
    copies = set(store.copies(here.digest(0)))
    for i in copies:
        print(f"{store.names[i]} is this very photo and is left out")
    k = min(options.k, len(store) - len(copies | set(store.bad)))
    if k < 1:
        raise Wrong(f"{options.store} holds no other photo than this one: index more")
    hits = nearest(store, store.query(chosen.prepare(x)), k, options.similarity, without=copies)
    query = bilrp.factor(store.model, chosen.prepare(x), store.rules, patch=store.about.patch)
    rows, parts, factors = [], [], []
    for n, (i, score) in enumerate(
        zip(hits.indices[0].tolist(), hits.scores[0].tolist(), strict=True), start=1
    ):
        name = store.names[i]
        rows.append((f"{n}", name, score))
        factors.append(store.factor(i))
        e = query.explain(factors[-1], options.similarity)
        parts.append(
            f"<section><h2>Hit {n}: {escape(name)}</h2>"
            + report.explained(e, x, photos.pixels(i), ("Query", name), chosen.layers)
            + "</section>"
        )
        print(f"{n}  {score:.4g}  {name}")
    if k > 1:
        c = contrast(query, factors[0], factors[1], options.similarity)
        shown = [x, *(photos.pixels(int(i)) for i in hits.indices[0, :2])]
        names = ["Query", rows[0][1], rows[1][1]]
        why = f"<section><h2>Why {escape(names[1])} and not {escape(names[2])}?</h2>"
        parts.insert(1, why + report.contrasted(c, shown, names) + "</section>")
    parts.insert(0, report.table(rows, ("", "photo", options.similarity)))
    parts.append(_foot(chosen.name, query, photos.size))
    print(f"see {report.page(options.output, f'Similar to {options.photo.name}', parts)}")


def themes(options: Any) -> None:
    """`bilrp themes --store S -o page.html`."""
    from bilrp.collect import report
    from bilrp.collect.themes import find_themes, neighbours

    _writable(options.output)
    store, chosen, photos = _opened(options.store)
    used = len(store) - len(store.bad)
    if used < 2:
        raise Wrong(f"of {options.store} only {used} can be used, a theme needs pairs: index more")
    pairs = neighbours(store)
    taken = pairs[:: -(-len(pairs) // options.pairs)]
    if len(taken) < 4:
        raise Wrong(f"{len(taken)} pairs are too few to group: index more photos")
    groups = find_themes(store, taken, options.count, progress=True)
    said = f"{len(taken)} of {len(pairs)} pairs of a photo and its nearest neighbour"
    parts = [
        f"<p>{said}, grouped by which features their strong pairs of patches share. Themes in "
        "which few patches carry much come first: look there for stamps, frames and the like. A "
        "theme says what photos have in common, not whether that is wrong.</p>"
    ]
    for n, group in enumerate(groups, start=1):
        shown = []
        for i, j in group.pairs[:3]:
            e = store.factor(i).explain(store.factor(j), "cosine")
            what = f"{store.names[i]} and {store.names[j]}"
            shown.append((e, photos.pixels(i), photos.pixels(j), what))
        parts.append(f"<section><h2>Theme {n}</h2>{report.theme(group, shown)}</section>")
        print(f"theme {n}: {len(group.pairs)} pairs, half on {group.patches:.0%} of the patches")
    parts.append(_foot(chosen.name, store.factor(taken[0][0]), photos.size))
    print(f"see {report.page(options.output, f'Themes of {options.store.name}', parts)}")


def _size(wanted: int | None, chosen: Network) -> int:
    size = chosen.size if wanted is None else wanted
    if size % 32 or size < 32:
        raise Wrong(f"--size must be a multiple of 32, got {size}: try {max(32, size // 32 * 32)}")
    return size


def _photo(path: Path, size: int) -> Tensor:
    try:
        return read_photo(path, size)
    except BadInput as error:
        raise Wrong(f"{path} {error}") from error


def _writable(page: Path) -> None:
    """Before any work: is there a place for the page, and would it write over no other file?"""
    if page.suffix.lower() not in (".html", ".htm"):
        raise Wrong(f"{page} is not the name of a page: give one that ends in .html")
    if page.is_dir() or not page.resolve().parent.is_dir():
        raise Wrong(f"{page} cannot be written: give a file in a folder that exists")


def _opened(path: Path) -> tuple[Any, Network, Photos]:
    """A store that `bilrp index` has made, with its network and its photos."""
    from bilrp.collect.records import About
    from bilrp.collect.store import Store

    recipe = About.read(path).recipe
    kinds = {"model": str, "size": int, "folder": str}
    if not all(isinstance(recipe.get(name), kind) for name, kind in kinds.items()):
        raise Wrong(f"{path} was not made by `bilrp index`: open it in Python, with its model")
    chosen = network(recipe["model"])
    names = Store(path).names
    photos = Photos(Path(recipe["folder"]), tuple(names), recipe["size"], chosen.prepare)
    if not photos.root.is_dir():
        raise Wrong(
            f"the photos of this store were in {photos.root}, which is not there now: if they have "
            f"moved, run `bilrp index NEW_FOLDER --store {path}` as at first, nothing is made twice"
        )
    model = chosen.make()
    rules = chosen.rules()
    rules = bilrp.default_rules(model) if rules is None else rules
    return Store(path, model, rules, photos), chosen, photos


def _foot(name: str, f: Factor, size: int) -> str:
    """How the page was made."""
    return (
        f"<footer><p>{CROPPED.format(size=size)}</p><p>Network {escape(name)}, fingerprint "
        f"{f.identity.model}. Rules: {escape(f.identity.rules)}. Made with bilrp "
        f"{bilrp.__version__}, torch {escape(torch.__version__)}; explanations are exact (BiLRP, "
        "Eberle et al. 2022).</p></footer>"
    )


if __name__ == "__main__":
    sys.exit(main())
