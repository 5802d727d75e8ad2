"""The leaderboard: every method on every truth, with every network that both can take.

``make leaderboard`` computes what is missing and writes assets/leaderboard.json. It may be stopped
at any time: each pair is kept in _build/leaderboard as soon as it is judged, under a checksum of
the code that decides its numbers. A row of the file that was not computed again stays there, with
the commit that it comes from.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import hashlib
import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilrp._files import replaced
from bilrp.compare.intervals import Interval, bootstrap, sharing_interval
from bilrp.compare.methods import METHODS, Method
from bilrp.compare.truths import TRUTHS, Pair, Truth, judge_removal
from bilrp.engine.rules import Gamma, Rules

PACKAGE = Path(__file__).resolve().parents[1]
KEPT = Path("_build/leaderboard")


@dataclass(frozen=True)
class Network:
    """A network of the leaderboard.

    Attributes
    ----------
    name : str
    load : callable
        Gives one model or several, which take turns over the pairs.
    prepare : callable
        From an image in [0, 1], or digits, to the model's input.
    rules : callable
        Gives the paper's rules for it, or where the paper has none, this package's.
    truths : tuple of str
        The truths that it can take.
    """

    name: str
    load: Callable[[], list[nn.Module]]
    prepare: Callable[[Tensor], Tensor]
    rules: Callable[[], Rules]
    truths: tuple[str, ...]


# Where features keep their places, y joins equal places of a map: what lies farther apart than
# these see has nothing in common for the network. Planted matches want features without places;
# whether a network follows a motion is asked of features that have them, as those of the paper.
IN_PLACE = ("warps", "films and stereo", "removal")
AVERAGED = ("planted match", "two planted", "removal")
ANYWHERE = ("planted match", "two planted", *IN_PLACE)  # of a network that ends in an average


def _vgg(layer: int, pooled: bool) -> Network:
    def load() -> list[nn.Module]:
        from bilrp.models.vgg import vgg16

        top = (nn.AdaptiveAvgPool2d(1), nn.Flatten()) if pooled else ()
        return [nn.Sequential(*vgg16(layer), *top).eval()]

    def prepare(x: Tensor) -> Tensor:
        from bilrp.models.vgg import normalize

        return normalize(x)

    def rules() -> Rules:
        from bilrp.models.vgg import vgg16_rules

        return vgg16_rules()

    name = f"VGG-16, layer {layer}{', pooled' if pooled else ''}"
    return Network(name, load, prepare, rules, AVERAGED if pooled else IN_PLACE)


def _efficientnet() -> Network:
    def load() -> list[nn.Module]:
        from bilrp.models.efficientnet import efficientnet_lite0

        return [efficientnet_lite0()]

    def prepare(x: Tensor) -> Tensor:
        from bilrp.models.efficientnet import efficientnet_lite0_input

        return efficientnet_lite0_input(x)

    return Network("EfficientNet-Lite0", load, prepare, lambda: Gamma(0.02), ANYWHERE)


def _bigrams() -> Network:
    def load() -> list[nn.Module]:
        from bilrp.models.bigram import BigramNetwork

        return [BigramNetwork.load()]

    return Network("bigram network", load, lambda x: x, lambda: Gamma(0.5), ("tables",))


# By formula, and by name in bilrp.models.toy.
TOYS = {"exp(-d/0.7)": "near", "exp(-d/1.5)": "wide", "one-hot + 0.3": "one-hot + 0.3"}


def _toy(vectors: str, biases: bool) -> Network:
    def load() -> list[nn.Module]:
        from bilrp.models.toy import VECTORS, as_model, train

        trained, _ = train(VECTORS[TOYS[vectors]], progress=False)
        half = len(trained) // 2  # the second half has biases
        return [
            as_model(layers).float() for layers in (trained[half:] if biases else trained[:half])
        ]

    def prepare(d: Tensor) -> Tensor:
        from bilrp.models.toy import VECTORS, embed

        return embed(d, VECTORS[TOYS[vectors]])

    name = f"toy, {vectors}, {'with' if biases else 'without'} biases"
    return Network(name, load, prepare, lambda: Gamma(0.09), ("toy digits",))


NETWORKS = {
    n.name: n
    for n in (
        *(_toy(vectors, biases) for vectors in TOYS for biases in (False, True)),
        *(_vgg(layer, pooled) for layer in (5, 10, 17, 24, 31) for pooled in (True, False)),
        _efficientnet(),
        _bigrams(),
    )
}


# --- one cell --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One method on one truth with one network."""

    truth: Truth
    network: Network
    method: Method

    @property
    def patch(self) -> int:
        """Side of the patches: slow methods get coarser ones."""
        return self.truth.coarse if self.method.slow else self.truth.patch

    @property
    def name(self) -> str:
        """For people and for files."""
        return f"{self.truth.name} -- {self.network.name} -- {self.method.name}"

    @property
    def path(self) -> Path:
        """Where its pairs are kept."""
        plain = "".join(c if c.isalnum() or c in ".+-" else "_" for c in self.name)
        return KEPT / f"{plain}.json"


def cells(
    truth: str = "*", network: str = "*", method: str = "*", methods: dict | None = None
) -> Iterator[Cell]:
    """All cells whose names fit; wildcards are those of file names."""
    for t in TRUTHS.values():
        for n in NETWORKS.values():
            for m in (METHODS if methods is None else methods).values():
                fits = (fnmatch.fnmatch(*p) for p in ((t.name, truth), (n.name, network)))
                if t.name in n.truths and all(fits) and fnmatch.fnmatch(m.name, method):
                    yield Cell(t, n, m)


@cache
def models(network: Network) -> list[nn.Module]:
    """The networks of a name, loaded or trained once."""
    return network.load()


@cache
def pairs_of(truth: Truth, count: int) -> list[Pair]:
    """The first pairs of a truth."""
    return truth.pairs(count)


def judgeable(cell: Cell, count: int) -> list[Pair]:
    """The first pairs of a cell; those of which no true pair is left at its patch are passed over.

    What moves by half a small patch need not show at a coarse one.
    """
    if cell.patch == cell.truth.patch or cell.truth.judge is judge_removal:  # has no true pairs
        return pairs_of(cell.truth, count)
    asked = count
    while True:
        pairs = pairs_of(cell.truth, asked)
        found = [p for p in pairs if bool(p.true(cell.patch).any())]
        if len(found) >= count or len(pairs) < asked:
            return found[:count]
        asked *= 2


def judge(cell: Cell, pair: Pair, number: int) -> dict:
    """Explain one pair and judge it: the record of `Truth.judge`, seconds, group, what varied."""
    several = models(cell.network)
    model = several[number % len(several)]
    inputs = cell.network.prepare(pair.x), cell.network.prepare(pair.x2)
    wants_rules = "rules" in inspect.signature(cell.method.function).parameters
    context: dict[str, Any] = {"rules": cell.network.rules()} if wants_rules else {}
    start = time.process_time()
    scores = cell.method(model, *inputs, cell.patch, **context)
    seconds = time.process_time() - start
    record = cell.truth.judge(scores, pair, cell.patch, model, inputs)
    rounded = {k: round(v, 5) for k, v in record.items()}
    return {**rounded, "seconds": round(seconds, 3), "group": pair.group, **pair.about}


def compute(cell: Cell, count: int, until: float = float("inf")) -> dict:
    """Judge the cell's first pairs, going on from those that are kept.

    Returns
    -------
    dict
        "pairs", a list of records, and "refused", why the method cannot do this, or None.
    """
    kept: dict[str, Any] = {"key": code_key(cell.method), "pairs": [], "refused": None}
    with suppress(FileNotFoundError, json.JSONDecodeError, TypeError, KeyError):  # or damaged
        found = json.loads(cell.path.read_text(encoding="utf-8"))
        kept = found if found["key"] == kept["key"] else kept
    if kept["refused"] or len(kept["pairs"]) >= count:
        return kept
    pairs = judgeable(cell, count)
    for number in range(len(kept["pairs"]), min(count, len(pairs))):
        if kept["refused"] or time.time() > until:
            break
        try:
            kept["pairs"].append(judge(cell, pairs[number], number))
        except ValueError as error:
            if number:
                raise  # what it can do once it must do always
            kept["refused"] = str(error)
        write(cell.path, kept)
    return kept


def write(path: Path, content: object) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # lists of numbers in a line each
    text = re.sub(
        r"\[[-\d.,\se]+\]", lambda m: "".join(m[0].split()), json.dumps(content, indent=1)
    )
    with replaced(path) as new:
        new.write_text(f"{text}\n", encoding="utf-8")


@cache
def code_key(method: Method | None = None) -> str:
    """Checksum of the code that decides the numbers; comments and docstrings aside.

    For one method, functions that others are registered by do not count: a new one makes nothing
    old. A method that is registered elsewhere counts with its own source.
    """
    total = hashlib.sha256()
    files = [*PACKAGE.glob("engine/*.py"), *PACKAGE.glob("models/*.py")]
    names = ("altered", "baselines", "controls", "methods", "metrics", "truths")
    files += [PACKAGE / "compare" / f"{name}.py" for name in names]
    files += [PACKAGE / "_pictures.py", *(PACKAGE / "book" / f"{n}.py" for n in ("data", "tables"))]
    for network in (_vgg, _efficientnet, _bigrams, _toy):
        total.update(inspect.getsource(network).encode())
    for path in sorted(files):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if method and path.stem == "methods":
            tree.body = [n for n in tree.body if _registers(n) in (None, method.name)]
        for node in ast.walk(tree):
            if _has_doc(node):
                node.body[0].value.value = ""  # type: ignore[attr-defined]
        total.update(ast.dump(tree).encode())
    if method:
        function = getattr(method.function, "func", method.function)  # of a partial
        if function.__module__ != Method.__module__:
            total.update(inspect.getsource(function).encode())
    return total.hexdigest()[:16]


def _registers(node: ast.stmt) -> str | None:
    """The name that a function is registered under by its decorator, if it is."""
    for call in getattr(node, "decorator_list", ()):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "add_method":
            return ast.literal_eval(call.args[0])
    return None


def _has_doc(node: ast.AST) -> bool:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return isinstance(node, kinds) and ast.get_docstring(node) is not None


# --- the table -------------------------------------------------------------------------------


def summary(cell: Cell, kept: dict) -> dict:
    """A row of the table: means with their intervals, and the chief number of each pair."""
    row = {
        "truth": cell.truth.name,
        "network": cell.network.name,
        "method": cell.method.name,
        "patch": cell.patch,
        "pairs": len(kept["pairs"]),
    }
    if kept["refused"]:
        return {**row, "refused": kept["refused"]}
    records = kept["pairs"]
    groups = [r["group"] for r in records]
    row |= intervals([r["score"] for r in records], [r["null"] for r in records], groups)
    if "auc" in records[0]:
        row["auc"] = [round(sum(r["auc"] for r in records) / len(records), 4)]
    row["area"] = round(sum(r.get("area", 0) for r in records) / len(records), 4)
    row["seconds"] = sorted(r["seconds"] for r in records)[len(records) // 2]
    row["scores"] = [r["score"] for r in records]
    row["nulls"] = [r["null"] for r in records]
    return row


def intervals(scores: list[float], nulls: list[float], groups: list) -> dict[str, list[float]]:
    """Means over pairs of the scores, the nulls and what is above them, with their intervals."""
    score, null = (torch.tensor(t, dtype=torch.float64) for t in (scores, nulls))
    columns = {"score": score, "null": null, "above": score - null}
    return {
        key: [round(v, 4) for v in (interval(t, groups) or [float(t.mean())])]
        for key, t in columns.items()
    }


def interval(values: Tensor, groups: list) -> Interval | None:
    """The mean over pairs and its 95 % interval; None for fewer than five pairs or groups.

    Parameters
    ----------
    values : Tensor (pairs,)
    groups : list
        `Pair.group` of each.
    """
    if isinstance(groups[0], list | tuple):
        return sharing_interval(values, groups) if len(groups) >= 5 else None
    if len(set(groups)) < 5:  # an interval of fewer would pretend
        return None
    return bootstrap(values, seed=0, groups=torch.tensor(groups))


def collect(command: str) -> dict:
    """The whole table from what is kept: rows that are computed, and cells that are not."""
    from bilrp.book.measured import commit_of

    kept = ((cell, compute(cell, 0)) for cell in cells())
    rows = [summary(cell, found) for cell, found in kept if found["pairs"] or found["refused"]]
    return {
        "commit": commit_of(PACKAGE.parent),
        "code": code_key(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "torch": torch.__version__.partition("+")[0],
        "rows": rows,
        "not_run": not_run(rows),
    }


def not_run(rows: list[dict]) -> dict[str, dict[str, list[str]]]:
    """The methods, by truth and network, of the cells that have no row; "all" for all of them."""
    listed = {name_of(row) for row in rows}
    missing: dict[str, dict[str, list[str]]] = {}
    for cell in cells():
        t, n, m = cell.truth.name, cell.network.name, cell.method.name
        if (t, n, m) not in listed:
            missing.setdefault(t, {}).setdefault(n, []).append(m)
    return {
        t: {n: ["all"] if len(left) == len(METHODS) else left for n, left in networks.items()}
        for t, networks in missing.items()
    }


def name_of(row: dict) -> tuple[str, str, str]:
    """Truth, network and method of a row."""
    return row["truth"], row["network"], row["method"]


def with_earlier(table: dict, earlier: dict) -> dict:
    """A table, and those rows of an earlier one that were not computed again, with their commit."""
    rows = {name_of(r): {"commit": earlier["commit"], **r} for r in earlier["rows"]}
    rows |= {name_of(r): r for r in table["rows"]}
    names = [(c.truth.name, c.network.name, c.method.name) for c in cells()]
    both = [rows[name] for name in names if name in rows]
    return {**table, "rows": both, "not_run": not_run(both)}


def rows_of(table: dict, truth: str, network: str) -> list[dict]:
    """Rows of the table that were computed, the best first: by score minus its null."""
    found = [r for r in table["rows"] if (r["truth"], r["network"]) == (truth, network)]
    return sorted((r for r in found if "score" in r), key=lambda r: -r["above"][0])


def lines(rows: list[dict], width: int = 37) -> str:
    """Rows as printed lines: means, in brackets their 95 % intervals over pairs."""

    def cell(values: list[float] | None, length: int) -> str:
        if values is None:
            return " " * length
        bounds = f" [{values[1]:.3f}, {values[2]:.3f}]" if len(values) == 3 else ""
        return f"{values[0]:.3f}{bounds}".rjust(length)

    head = f"{'method':{width}}{'n':>3}{'patch':>6}{'score':>7}{'null':>7}{'score - null':>24}"
    found = [head + f"{'AUC':>7}{'s':>7}"]
    for r in rows:
        found.append(
            f"{r['method']:{width}}{r['pairs']:3}{r['patch']:6}{cell(r['score'][:1], 7)}"
            f"{cell(r['null'][:1], 7)}{cell(r['above'], 24)}"
            f"{cell(r['auc'][:1] if 'auc' in r else None, 7)}{r['seconds']:7.1f}"
        )
    return "\n".join(found)


def main(arguments: list[str] | None = None) -> int:
    """Compute the leaderboard of methods; goes on where it was stopped."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(
        prog="python -m bilrp.compare.leaderboard", description=main.__doc__
    )
    for name in ("truth", "network", "method"):
        parser.add_argument(f"--{name}", default="*", help="only those that fit, such as 'BiLRP*'")
    parser.add_argument("--pairs", type=int, default=50, help="pairs of each cell (50)")
    parser.add_argument("--slow-pairs", type=int, help="pairs for slow methods (as many)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--output", type=Path, help="write the table of all that is kept to here")
    options = parser.parse_args(arguments)
    until = time.time() + options.seconds
    chosen = list(cells(options.truth, options.network, options.method))
    if not chosen:
        parser.error("no truth, network and method of these names go together")
    with tqdm(chosen, unit="cell") as progress:
        for cell in progress:
            progress.set_description(cell.name, refresh=False)
            slow = cell.method.slow and options.slow_pairs is not None
            compute(cell, options.slow_pairs if slow else options.pairs, until)
    if options.output:
        given = sys.argv[1:] if arguments is None else arguments
        table = collect(" ".join(["python -m bilrp.compare.leaderboard", *given]))
        if options.output.is_file():
            earlier = json.loads(options.output.read_text(encoding="utf-8"))
            table = with_earlier(table, earlier)
        write(options.output, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
