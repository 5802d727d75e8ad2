"""Every classification model of torchvision, explained: what holds, at what cost (`make zoo`).

Each model runs in a process of its own, within a time and a memory limit. What was found is kept in
_build/zoo, one file a model, and is not computed again while the engine's code is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
import torchvision.models as tm
from torch import Tensor, nn

import bilrp
from bilrp.book.measured import commit_of

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "_build" / "zoo"
LARGE = 150e6  # parameters from which a model runs in float32

# Sides of the images in pixels: the smallest even number that a family takes, at least 32.
SIDES = {"alexnet": 64, "inception": 76, "maxvit": 224}
# Vision transformers are built for images of two by two patches.
PATCHES = {"vit_b_16": 16, "vit_b_32": 32, "vit_l_16": 16, "vit_l_32": 32, "vit_h_14": 14}

# One small model of each family: what the tests run, and the other library.
FAMILIES = (
    "resnet18", "vgg11", "densenet121", "mobilenet_v3_small", "efficientnet_b0", "regnet_x_400mf",
    "shufflenet_v2_x0_5", "squeezenet1_0", "convnext_tiny", "vit_b_32", "swin_t", "googlenet",
)  # fmt: skip


# --- a model and two inputs --------------------------------------------------------------------


def side(name: str) -> int:
    """Height and width of the images for a model."""
    if name in PATCHES:
        return 2 * PATCHES[name]
    return next((s for family, s in SIDES.items() if name.startswith(family)), 32)


def parameters(name: str) -> int:
    return tm.get_model_weights(name).DEFAULT.meta["num_params"]


def dtype_of(name: str) -> torch.dtype:
    return torch.float32 if parameters(name) > LARGE else torch.float64


def images(name: str, count: int = 2) -> Tensor:
    """Random images in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    size = (count, 3, side(name), side(name))
    return torch.rand(size, generator=generator, dtype=torch.float64).to(dtype_of(name))


def built(name: str) -> nn.Module:
    """The model with seeded random weights in which nothing is zero or constant."""
    torch.manual_seed(0)
    options: dict[str, object] = {"image_size": side(name)} if name in PATCHES else {}
    if name.startswith(("googlenet", "inception")):
        options["init_weights"] = False  # the other way takes a minute
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tm.get_model(name, weights=None, **options).to(dtype_of(name)).eval()
    return randomise(model, images(name, 8))


@torch.no_grad()
def randomise(model: nn.Module, batch: Tensor) -> nn.Module:
    """Random numbers for all that starts as constant: heads, biases, norms, layer scales.

    Statistics of batch norms are those of random images, then changed at random: wholly random, the
    image's share of a deep network's features would vanish.
    """
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        first = p.flatten()[0]
        if bool((p == first).all()):
            if first == 0:
                p.normal_(0, 0.1 if p.dim() == 1 else p[0].numel() ** -0.5, generator=generator)
            elif float(first) < 0.1:  # layer scale
                p.uniform_(0.1, 1, generator=generator)
            else:
                p.mul_(torch.empty_like(p).uniform_(0.5, 1.5, generator=generator))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [m.momentum for m in norms]
    for m in norms:
        m.momentum = None
        m.train().reset_running_stats()
    if norms:
        model(batch)
    for m, momentum in zip(norms, before, strict=True):
        m.momentum = momentum
        m.eval()
        size = m.running_var.sqrt()
        m.running_mean += size * torch.empty_like(size).normal_(0, 0.3, generator=generator)
        m.running_var *= torch.empty_like(size).uniform_(0.5, 2, generator=generator)
    return model


def quadrants(size: int) -> Tensor:
    """Four owners: the quarters of an image."""
    half = (torch.arange(size) >= size // 2).long()
    return 2 * half[:, None] + half


# --- what is measured --------------------------------------------------------------------------


@torch.no_grad()
def measured(model: nn.Module, pair: Tensor, gamma_zero: bool = True) -> dict[str, float]:
    """Explain a pair of images by a model, and compare with the model itself."""
    groups = quadrants(pair.shape[-1])
    plain = [model(x[None]).flatten().double() for x in pair]
    y = float(plain[0] @ plain[1])

    start = time.process_time()  # of one thread, so that it does not matter what else runs
    factors = bilrp.factor(model, list(pair), groups=groups)
    e = factors[0].explain(factors[1])
    seconds = time.process_time() - start

    found = {"y": abs(e.similarity - y) / abs(y), "seconds": seconds}
    found["ledger"], found["default"] = ledger(factors, y)
    found["pixels"] = float(e.ledger[0, 0]) / y
    found["push"] = push_and_pull(model, pair[0], groups, factors[0].values)
    rules = bilrp.default_rules(model)
    found["gamma"] = rules.gamma
    found["zero"] = found["default"]
    if rules.gamma and gamma_zero:
        factors = bilrp.factor(model, list(pair), bilrp.Gamma(0.0), groups=groups)
        error, found["zero"] = ledger(factors, y)
        found["ledger"] = max(found["ledger"], error)
    return found


def ledger(factors: list[bilrp.Factor], y: float) -> tuple[float, float]:
    """Of all pairs of owners: what their sum misses, over magnitudes; magnitudes over |y|."""
    rows = [torch.cat([f.values, f.absorbed]).double() for f in factors]
    pairs = rows[0] @ rows[1].T
    size = float(pairs.abs().sum())
    return abs(float(pairs.sum()) - y) / size, size / abs(y)


def push_and_pull(model: nn.Module, x: Tensor, groups: Tensor, values: Tensor) -> float:
    """How far two random sums of features, pulled back, are from the parts that were pushed."""
    trace = bilrp.Trace(model, x[None], bilrp.default_rules(model))
    c = torch.randn(2, values.shape[1], generator=torch.Generator().manual_seed(2)).to(values)
    relevance = trace.pull_rows(c.view(2, *trace.features.shape))[0].sum((1, 2))
    pulled = torch.stack([(relevance * (groups == g)).sum((1, 2)) for g in range(4)])
    size = values.abs() @ c.abs().T
    return float((pulled - values @ c.T).abs().max() / size.max())


def rival(name: str) -> dict[str, float]:
    """autoLRP on one image, for each of three features: its default, and its gamma 0.1."""
    import autolrp

    model, x = built(name).requires_grad_(True), images(name)[:1]
    gamma = {n: ("gamma", {"gamma": 0.1}) for n in ("ConvolutionBackward", "AddmmBackward")}
    found: dict[str, float] = {}
    for key, rule in {"base": autolrp.BASE, "gamma": {**autolrp.BASE, **gamma}}.items():
        sums, sizes, times = [], [], []
        for k in model(x).detach().flatten().abs().topk(3).indices:
            start = time.process_time()
            wrapped = autolrp.tensor(x.clone())
            seed = model(wrapped)[0, k]
            seed.lrp(config=autolrp.LRPConfig(rule=rule))
            times.append(time.process_time() - start)
            r = wrapped.relevance.double()
            sums.append(float(r.sum() / seed.detach()))
            sizes.append(float(r.abs().sum() / seed.detach().abs()))
        found[f"{key} sum"], found[f"{key} size"] = map(statistics.median, (sums, sizes))
        found["seconds"] = min(times)
    return found


# --- each model in a process of its own ----------------------------------------------------------


def engine() -> str:
    """Checksum of what the numbers depend on: the engine's code, and this file."""
    files = [*sorted((ROOT / "bilrp" / "engine").glob("*.py")), Path(__file__)]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


def in_child(name: str, what: str, options: argparse.Namespace) -> dict:
    """`measured` or `rival` in a child process; {"error": reason} if it fails."""
    file, state = KEPT / f"{name}-{what}.json", engine()
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept.pop("engine") == state:
            return kept
    command = [sys.executable, "-m", "tests.zoo", "--one", name, "--what", what]
    command += ["--gigabytes", str(options.gigabytes)]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60 * options.minutes
        )
        if done.returncode == 0:
            found = json.loads(done.stdout.splitlines()[-1])
        else:
            last = (done.stderr.strip() or f"ended with {done.returncode}").splitlines()[-1]
            found = {"error": last}
    except subprocess.TimeoutExpired:
        found = {"error": f"not done in {options.minutes} minutes"}
    print(
        f"{name}, {what}: {time.perf_counter() - start:.0f} s {found}", file=sys.stderr, flush=True
    )
    KEPT.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"engine": state, **found}), encoding="utf-8")
    return found


def one(name: str, what: str, gigabytes: float) -> dict:
    """What a child process does."""
    import resource  # not on Windows

    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measured(built(name), images(name)) if what == "ours" else rival(name)


# --- the table -----------------------------------------------------------------------------------

HEAD = (
    "model", "side", "format", "error of y", "error of ledger", "push - pull", "pixels, %", "gamma",
    "size, gamma 0", "size, default", "seconds",
)  # fmt: skip
RIVAL = ("model", "size", "sum", "size, gamma .1", "sum, gamma .1", "seconds")


def cells(name: str, ours: dict) -> list[str]:
    """One row of the table."""
    kind = str(dtype_of(name)).removeprefix("torch.")
    start = [name, str(side(name)), kind]
    if "error" in ours:
        return [*start, f"refused: {ours['error']}", *[""] * 7]
    row = [*start, *(f"{ours[k]:.0e}" for k in ("y", "ledger", "push"))]
    row += [f"{100 * ours['pixels']:.1f}", f"{ours['gamma']:g}"]
    return row + [f"{ours[k]:.3g}" for k in ("zero", "default", "seconds")]


def rival_cells(name: str, theirs: dict) -> list[str]:
    """One row of the table of autoLRP."""
    if "error" in theirs:
        return [name, "refused", *[""] * 4]
    keys = ("base size", "base sum", "gamma size", "gamma sum", "seconds")
    return [name, *(f"{theirs[k]:.3g}" for k in keys)]


def table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    """Aligned Markdown."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [list(head), ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])], *rows]
    aligned = ([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])] for r in lines)
    return "\n".join(f"| {' | '.join(r)} |" for r in aligned)


def page(results: dict[str, tuple[dict, dict | None]], names: list[str]) -> str:
    """Heading and both tables, in the order of the names."""
    done = [n for n in names if n in results]
    missing = [n for n in names if n not in results]
    parts = [heading(results, len(names)), table(HEAD, [cells(n, results[n][0]) for n in done])]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.")
    rivals = [rival_cells(n, theirs) for n in done if (theirs := results[n][1]) is not None]
    if rivals:
        parts += ["autoLRP on one small network of each family:", table(RIVAL, rivals)]
        parts += [
            f"{n}: {theirs['error']}."
            for n in done
            if (theirs := results[n][1]) is not None and "error" in theirs
        ]
    return "\n\n".join(parts) + "\n"


def commit() -> str:
    """The commit, and whether files differ from it."""
    git = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "bilrp", "tests/zoo.py"]
    changed = subprocess.run(git).returncode
    return commit_of(ROOT) + (" and changes" if changed else "")


def heading_of_machine(command: str) -> str:
    """When, of which commit, on which machine and with which libraries."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), None)
    return (
        f"{date.today()}, commit {commit()}, `{command}`; {cpu or platform.processor()}, "
        f"one thread, torch {torch.__version__}, torchvision {version('torchvision')}."
    )


def heading(results: dict[str, tuple[dict, dict | None]], count: int) -> str:
    """When, by what, and what came out on the whole."""
    good = [ours for ours, _ in results.values() if "error" not in ours]
    return f"{heading_of_machine('make zoo')} {len(good)} of {len(results)} models explained" + (
        f", {count - len(results)} not run yet." if count > len(results) else "."
    )


def main() -> None:
    """Write the table; with --one, print one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", help="such as resnet18,vgg11; default: all")
    parser.add_argument("--minutes", type=float, default=20, help="limit for one model")
    parser.add_argument("--gigabytes", type=float, default=12, help="limit for one model")
    parser.add_argument("--skip-autolrp", action="store_true")
    parser.add_argument("--output", type=Path, help="write the table to this file")
    parser.add_argument("--one", help="measure only this model; prints JSON")
    parser.add_argument("--what", default="ours", choices=("ours", "autolrp"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options.what, options.gigabytes)))
        return
    names = options.models.split(",") if options.models else tm.list_models(module=tm)
    os.environ["OMP_NUM_THREADS"] = "1"
    results: dict[str, tuple[dict, dict | None]] = {}
    for number, name in enumerate(sorted(names, key=parameters), start=1):
        print(f"{number} of {len(names)}: {name}", file=sys.stderr, flush=True)
        other = name in FAMILIES and not options.skip_autolrp
        theirs = in_child(name, "autolrp", options) if other else None
        results[name] = in_child(name, "ours", options), theirs
        text = page(results, names)
        if options.output:
            options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
