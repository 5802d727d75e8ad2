"""Exact BiLRP of ResNet-50 and ViT-B/16 at full size, pushed and pulled, beside what others do.

`make bench-networks` writes assets/benchmark_networks.md. Times are processor time on one thread:
other work on the machine changes them little. Each way runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision.models as tm
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import bilrp
from bilrp.engine.features import pull_projected, random_projection
from bilrp.engine.owners import owners_of
from tests.benchmark import by_patches, peak_memory
from tests.nets import without_batch_norms, zennit_resnet
from tests.zoo import heading_of_machine, randomise

SIZE, PATCH = 224, 16
RULE = bilrp.Gamma(0.0)
FEATURES = {"resnet50": 2048, "vit_b_16": 768}
WAYS = {
    "push": "exact, pushed (what `explain` does)",
    "pull": "exact, every feature pulled back",
    "projected": "ours, projected",
    "other": "zennit (ResNet) or gradient x input with frozen parts (ViT), projected",
}


def network(name: str) -> nn.Module:
    """The network with its features after pooling; random weights and statistics."""
    torch.manual_seed(0)
    model = getattr(tm, name)(weights=None)
    if name == "resnet50":
        model.fc = nn.Identity()
    else:
        model.heads = nn.Identity()
    return randomise(model.eval(), images(4)).requires_grad_(False)


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, SIZE, SIZE, generator=generator)


class Frozen(TorchFunctionMode):
    """Attention weights, spreads of norms and slopes of activations as constants.

    The gradient of a network run in this mode, times the input, is LRP-0 with CP-LRP for products:
    the same relevance by another road, written without the package.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.layer_norm:
            x, _, weight, bias, eps = (*args, *(kwargs.get(k) for k in ("weight", "bias")), 1e-5)[
                :5
            ]
            eps = kwargs.get("eps", args[4] if len(args) > 4 else eps)
            spread = (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt().detach()
            return (x - x.mean(-1, keepdim=True)) / spread * weight + bias
        if func is F.gelu:
            out = func(*args, **kwargs)
            return args[0] * (out / args[0]).detach()
        if func is F.multi_head_attention_forward:
            return self.attention(*args[:7], *args[11:13]), None
        return func(*args, **kwargs)

    @staticmethod
    def attention(query, _key, _value, _size, heads, w, b, w_out, b_out) -> Tensor:
        q, k, v = (
            t.unflatten(2, (heads, -1)).permute(1, 2, 0, 3)
            for t in F.linear(query, w, b).chunk(3, -1)
        )  # (N, heads, T, d)
        mixing = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]), -1).detach()
        return F.linear((mixing @ v).permute(2, 0, 1, 3).flatten(2), w_out, b_out)


def by_others(name: str, model: nn.Module, x: Tensor, w: Tensor, batch: int = 4) -> Tensor:
    """Relevance of rows of projected features by patches, (K, patches)."""
    parts = []
    for rows in w.split(batch):
        if name == "resnet50":
            found = zennit_resnet(model, x[0], rows)
        else:
            many = x.repeat(len(rows), 1, 1, 1).requires_grad_()
            with Frozen():
                out = model(many)
            found = many.detach() * torch.autograd.grad(out, many, rows)[0]
        parts.append(by_patches(found, PATCH))
    return torch.cat(parts)


def measured(name: str, way: str, dims: int) -> dict[str, float]:
    """Processor seconds of one pair, 2 factors and their product; of `dims` rows where pulled."""
    torch.set_num_threads(1)
    model, (x, x2) = network(name), images(2)
    owners = owners_of(x[None], PATCH, None)
    theirs = without_batch_norms(model) if name == "resnet50" and way == "other" else model
    before = peak_memory("cpu", reset=True)
    start = time.process_time()
    found: dict[str, float] = {}
    if way == "push":
        e = bilrp.explain(model, x, x2, RULE, patch=PATCH)
        found["seconds"] = time.process_time() - start
        size = float(e.relevance.abs().sum())
        found["ledger"] = abs(float(e.ledger.sum()) - e.similarity) / max(size, abs(e.similarity))
        found["y"] = abs(float(model(x[None]) @ model(x2[None]).T) / e.similarity - 1)
    else:
        count = FEATURES[name]
        w = torch.eye(count)[:dims] if way == "pull" else random_projection(dims, count, 0)
        if way == "other":
            rows = by_others(name, theirs, x[None], w)
        else:
            trace = bilrp.Trace(model, x[None], RULE)
            rows = pull_projected(trace, owners, w, None)[0].T
        wanted = count if way == "pull" else 1000
        found["seconds"] = 2 * wanted / dims * (time.process_time() - start)
        exact = bilrp.factor(model, x, RULE, patch=PATCH).dense() @ w.T
        found["check"] = float((rows.T - exact).abs().max() / exact.abs().max())
    return {**found, "memory": peak_memory("cpu"), "before": before}


def main() -> None:
    """Write the table; with --one, print one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, default=16, help="rows that the slow ways run")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "WAY"))
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measured(*options.one, options.dims)))
        return
    found: dict[tuple[str, str], dict] = {}
    for name in FEATURES:
        for way in WAYS:
            command = [sys.executable, "-m", "tests.benchmark_networks", "--one", name, way]
            command += ["--dims", str(options.dims)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}, {way}: {done.stderr[-2000:]}")
            found[name, way] = json.loads(done.stdout.splitlines()[-1])
            print(name, way, found[name, way], file=sys.stderr, flush=True)
    text = page(found, options.dims)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def page(found: dict[tuple[str, str], dict], dims: int) -> str:
    lines = [
        heading_of_machine("make bench-networks"),
        "",
        "| | " + " | ".join(FEATURES) + " |",
        "| --- | " + "---: | " * len(FEATURES),
    ]

    def row(title: str, values: list[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(values) + " |")

    row("features", [str(n) for n in FEATURES.values()])
    for way, title in WAYS.items():
        many = "" if way in ("push", "pull") else ", 1,000 dimensions"
        row(f"seconds, {title}{many}", [shown(found[n, way]["seconds"]) for n in FEATURES])
    for way in list(WAYS)[1:]:
        for many in (1000, 100) if way != "pull" else (1000,):
            ratios = [
                found[n, way]["seconds"] * many / 1000 / found[n, "push"]["seconds"]
                for n in FEATURES
            ]
            what = "all features" if way == "pull" else f"{many:,} dimensions"
            row(f"time of {WAYS[way]}, {what} / time of exact", [shown(r) for r in ratios])
    for way in list(WAYS)[1:]:
        checks = [f"{found[n, way]['check']:.0e}" for n in FEATURES]
        row(f"largest difference to exact, {WAYS[way]}", checks)
    for key, title in {"y": "error of y, exact", "ledger": "error of the ledger, exact"}.items():
        row(title, [f"{found[n, 'push'][key]:.0e}" for n in FEATURES])
    for way, title in WAYS.items():
        row(f"peak MB, {title}", [f"{found[n, way]['memory']:.0f}" for n in FEATURES])
    lines += [
        "",
        f"- One pair of random images at {SIZE} x {SIZE}, patches of {PATCH} x {PATCH}, random "
        "weights and statistics, gamma 0, float32, processor time of one thread.",
        f"- What is pulled ran {dims} rows of one image; times are scaled to all rows of both.",
        "- The differences are of those rows to the exact factor times the same matrix.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
