"""Exact BiLRP beside other libraries on VGG-16: time, memory and accuracy (`make bench`).

Every measurement runs in a process of its own, so that its peak memory is its own too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode

import bilrp
from bilrp.book.data import cats
from bilrp.engine.features import random_projection
from bilrp.engine.rules import Rule, rule_for

PATCH, PAPER_DIMS = 8, 100
# Bytes that one batch of zennit may take: much as one would write it, and what was fastest here.
ZENNIT_MEMORY = {"zennit": 5e9, "tuned": 0.3e9}
OURS = {
    "exact": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "projected": {"project": PAPER_DIMS},
}
TITLES = {
    "exact": "exact",
    "bfloat16": "exact, bfloat16 products",
    "projected": "ours, projected",
    "zennit": "zennit, projected",
    "tuned": "zennit tuned, projected",
    "autolrp": "autoLRP, projected",
}


# --- one measurement, in a child process -----------------------------------------------------


def timed(work: Callable[[], Tensor], device: str) -> tuple[Tensor, float]:
    """Result and seconds of `work()`, with everything the device still had to do."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    return result, time.perf_counter() - start


def convolutions(model: nn.Sequential) -> list[tuple[str, Tensor, Rule]]:
    """Name, weight and rule of each convolution, by the schedule of the paper."""
    rules, layers = bilrp.vgg16_rules(), model.named_children()
    return [
        (name, layer.weight, rule_for(rules, int(name) + 1))
        for name, layer in layers
        if isinstance(layer, nn.Conv2d)
    ]


def by_patches(relevance: Tensor, patch: int = PATCH) -> Tensor:
    """Relevance (K, 3, H, W) summed over patches: (K, patches)."""
    cells = relevance.sum(1).unflatten(2, (-1, patch)).unflatten(1, (-1, patch))
    return cells.sum((2, 4)).flatten(1)


def zennit_explain(model: nn.Sequential, pair: Tensor, dims: int, tuned: bool = False) -> Tensor:
    """The paper's projected BiLRP with zennit's hooks: the input repeated as a batch."""
    from zennit import rules as z
    from zennit.composites import NameMapComposite

    def hook(rule: Rule) -> z.Hook:
        if isinstance(rule, bilrp.ZB):
            return z.ZBox(rule.low[None], rule.high[None], stabilizer=1e-12)
        if tuned and rule.gamma == 0:  # LRP-0: one forward pass instead of the five of Gamma
            return z.Epsilon(1e-12)
        return z.Gamma(rule.gamma, stabilizer=1e-12)

    hooks = [([name], hook(rule)) for name, _, rule in convolutions(model)]
    hooks += [([n], z.Pass()) for n, m in model.named_children() if isinstance(m, nn.ReLU)]
    room = ZENNIT_MEMORY["tuned" if tuned else "zennit"]
    room = torch.cuda.mem_get_info()[0] / 2 if pair.is_cuda else room
    chunk = max(1, int(room / (38 * 64 * pair[0, 0].nbytes)))  # about 38 of the largest maps each
    projection = random_projection(dims, model(pair[:1]).numel(), seed=0).to(pair)
    factors = []
    with NameMapComposite(hooks).context(model) as modified:
        for x in pair:
            parts = []
            for rows in projection.split(chunk):
                batch = x.repeat(len(rows), 1, 1, 1).requires_grad_()
                out = modified(batch)
                relevance = rows.view(out.shape) * out.detach()
                parts.append(by_patches(torch.autograd.grad(out, batch, relevance)[0]))
            factors.append(torch.cat(parts))
    return factors[0].T @ factors[1]


def autolrp_explain(model: nn.Sequential, pair: Tensor, dims: int) -> Tensor:
    """autoLRP's own `bilrp`, with the paper's gammas by facts about the convolutions."""
    import autolrp

    model.requires_grad_(True)  # without it autoLRP finds no saved weights and falls to gradients
    schedule = {}
    for name, weight, rule in convolutions(model):
        if isinstance(rule, bilrp.ZB):
            box = {"low": float(rule.low.min()), "high": float(rule.high.max())}
            schedule["input_conv"] = ("zbox", box)
            continue

        def is_here(node, pointer: int = weight.data_ptr()) -> bool | None:
            saved = getattr(node, "_saved_weight", None)
            return True if saved is not None and saved.data_ptr() == pointer else None

        autolrp.register_analyzer(f"conv_{name}", is_here)
        gamma = ("gamma_montavon", {"gamma": rule.gamma}) if rule.gamma else "epsilon"
        schedule[f"conv_{name}"] = gamma
    return autolrp.bilrp(
        model,
        *pair.split(1),
        n_dims=dims,
        reduce_each=by_patches,
        config=autolrp.LRPConfig(rule={**autolrp.BASE, **schedule}),
        generator=torch.Generator().manual_seed(0),
    )


def peak_memory(device: str, reset: bool = False) -> float:
    """Most memory taken since the last reset, in MB: of the process, or of the GPU's tensors."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e6
    with suppress(OSError):  # Linux; unlike ru_maxrss this does not count the parent process
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
        return int(status.split()[0]) * 1024 / 1e6
    return float("nan")


def machine_peak(device: str) -> dict[str, float]:
    """FLOP/s of the machine's best 2048 x 2048 float32 matrix product."""
    a = torch.randn(2048, 2048, device=device)
    return {"speed": 2 * 2048**3 / min(timed(lambda: a @ a, device)[1] for _ in range(12))}


def measure(name: str, layer: int, options: argparse.Namespace) -> dict[str, float]:
    """Run one way of explaining the two cats; its explanation goes to the file `options.keep`."""
    device, dims = options.device, options.dims
    images, breeds = cats(options.size)
    chosen = [breeds.index("tabby cat"), breeds.index("Siamese cat")]
    others = [i for i in range(len(breeds)) if i not in chosen]
    pair, warm_up = (bilrp.normalize(images[which]).to(device) for which in (chosen, others[:2]))
    model, rules = bilrp.vgg16(layer).to(device), bilrp.vgg16_rules()

    def ours(x: Tensor, **how: object) -> Tensor:
        return bilrp.explain(model, *x, rules, patch=PATCH, **how).matrix

    before = peak_memory(device, reset=True)
    if name in OURS:
        ours(warm_up, **OURS[name])
        runs = [timed(lambda: ours(pair, **OURS[name]), device) for _ in range(3)]
        explanation, seconds = runs[0][0], statistics.median(seconds for _, seconds in runs)
    else:
        tuned = partial(zennit_explain, tuned=True)
        explain = {"zennit": zennit_explain, "tuned": tuned, "autolrp": autolrp_explain}[name]
        explain(model, warm_up, 1)
        explanation, seconds = timed(lambda: explain(model, pair, dims), device)
        seconds *= PAPER_DIMS / dims
    found = {"seconds": seconds, "memory": peak_memory(device), "before": before}
    torch.save(explanation.detach().double().flatten().cpu(), options.keep)
    if name == "exact":
        with FlopCounterMode(display=False) as counter:
            ours(pair)
        found["flop"] = counter.get_total_flops()
    if name == "tuned":  # with the same matrix W as ours
        same = ours(pair, project=dims)
        found["check"] = float((explanation - same).abs().max() / same.abs().max())
    return found


# --- all measurements and the table ----------------------------------------------------------


def in_child(name: str, layer: int, options: argparse.Namespace, keep: Path) -> dict:
    """`measure` in a process of its own; {"error": reason} if it fails."""
    print(f"layer {layer}, {name} ...", file=sys.stderr, end=" ", flush=True)
    start = time.perf_counter()
    command = [sys.executable, __file__, "--one", name, "--layers", str(layer), "--keep", str(keep)]
    for option in ("size", "dims", "device"):
        command += [f"--{option}", str(getattr(options, option))]
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"{time.perf_counter() - start:.0f} s in all", file=sys.stderr)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
    return {"error": last if done.returncode > 0 else f"ended by signal {-done.returncode}"}


def column(layer: int, options: argparse.Namespace, peak: dict) -> tuple[dict[str, str], list[str]]:
    """One layer's cells by the titles of their rows, and the reasons of what failed."""
    names = [n for n in TITLES if n != "autolrp" or not options.skip_autolrp]
    with tempfile.TemporaryDirectory() as folder:
        files = {n: Path(folder) / n for n in names}
        found = {n: in_child(n, layer, options, files[n]) for n in names}
        kept = {n: torch.load(files[n]) for n in names if "error" not in found[n]}
    for n in kept if "exact" in kept else ():
        found[n]["cosine"] = float(cosine_similarity(kept[n], kept["exact"], dim=0))
    cells = {}

    def row(title: str, form: str, value: float) -> None:
        cells[title] = "failed" if value != value else format(value, form)

    def get(name: str, key: str) -> float:
        return found[name].get(key, float("nan"))

    seconds = get("exact", "seconds")
    for n in [*names[3:], "projected"]:
        row(f"time of {TITLES[n]} / time of exact", ".3g", get(n, "seconds") / seconds)
    for n in OURS:
        row(f"seconds, {TITLES[n]}", ".3g", get(n, "seconds"))
    for n in names[1:]:
        row(f"cosine to exact, {TITLES[n]}", ".5f", get(n, "cosine"))
    row("zennit - ours with the same W, largest / largest", ".1e", get("tuned", "check"))
    for n in names:
        row(f"peak MB, {TITLES[n]}", ".0f", get(n, "memory"))
    row("peak MB, before any explanation", ".0f", get("exact", "before"))
    row("GFLOP, exact", ".1f", get("exact", "flop") / 1e9)
    best = peak.get("speed", float("nan")) / 1e9
    title = f"GFLOP/s, exact (a large matrix product: {best:.0f})"
    row(title, ".1f", get("exact", "flop") / seconds / 1e9)
    return cells, [f"{n}, layer {layer}: {r['error']}" for n, r in found.items() if "error" in r]


def table(columns: dict[int, dict[str, str]]) -> str:
    """Aligned Markdown: a row for each quantity, a column for each layer."""
    titles = next(iter(columns.values()))
    rows = [["", *(f"layer {layer}" for layer in columns)]]
    rows += [[title, *(cells[title] for cells in columns.values())] for title in titles]
    left, *right = (max(map(len, cells)) for cells in zip(*rows, strict=True))
    rows.insert(1, ["-" * left, *("-" * (width - 1) + ":" for width in right)])
    aligned = ([r[0].ljust(left), *map(str.rjust, r[1:], right)] for r in rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in aligned)


def heading(options: argparse.Namespace) -> str:
    """When, on what machine and on what pictures."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), None)
    return (
        f"{date.today()}; {cpu or platform.processor()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, device {options.device}, "
        f"torch {torch.__version__}; VGG-16, tabby and Siamese cat at "
        f"{options.size} x {options.size} pixels, patches of {PATCH} x {PATCH}."
    )


def notes(options: argparse.Namespace) -> list[str]:
    """What the table does not say by itself."""
    lines = [
        "Times are of one explanation of two images: ours the median of three, the others one run, "
        "all after a warm-up.",
        f"Projected: the features multiplied by a random matrix W to K = {PAPER_DIMS} dimensions.",
        "zennit: its Gamma and ZBox, the input repeated as a batch of at most 5 GB. Tuned: batches "
        "of 0.3 GB, which fit the processor's cache better, and Epsilon where gamma is 0.",
    ]
    if not options.skip_autolrp:
        lines.append(
            "autoLRP: its own `bilrp`, the same gammas. Its z^B has one box for all three colours, "
            "and its biases keep a share `|b| / (|z| + |b|)`: these are not quite the same rules."
        )
    if options.dims != PAPER_DIMS:
        lines.append(
            f"zennit and autoLRP ran {options.dims} projected dimensions: their times are scaled "
            f"by {PAPER_DIMS}/{options.dims}, and their cosines are of {options.dims} dimensions."
        )
    return lines


def main() -> None:
    """Print the table; with --one, print one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", "--layer", default="5,10,17,24,31", help="such as 31 or 5,10")
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--dims", type=int, default=PAPER_DIMS, help="dimensions the others run")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--skip-autolrp", action="store_true", help="always so on a GPU")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--one", choices=("peak", *TITLES), help="measure only this; prints JSON")
    parser.add_argument("--keep", default=os.devnull, help="with --one: the explanation, as .npy")
    options = parser.parse_args()
    options.skip_autolrp |= options.device == "cuda"
    layers = [int(layer) for layer in options.layers.split(",")]
    if options.one == "peak":
        print(json.dumps(machine_peak(options.device)))
    elif options.one:
        print(json.dumps(measure(options.one, layers[0], options)))
    else:
        peak = in_child("peak", layers[0], options, Path(os.devnull))
        results = {layer: column(layer, options, peak) for layer in layers}
        columns = {layer: cells for layer, (cells, _) in results.items()}
        lines = notes(options) + [reason for _, failed in results.values() for reason in failed]
        below = "\n".join(f"- {line}" for line in lines)
        text = f"{heading(options)}\n\n{table(columns)}\n\n{below}"
        print(text)
        if options.output:
            options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
