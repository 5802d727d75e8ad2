"""How much of estimated Shapley interactions is chance: two seeds, compared (`make shapley`).

`by_flips` is made for games that are a dot product; shapiq, which is made for any game, fits all
pairs of players to a sample of values. A second table judges other methods at the patches of 16
pixels that Shapley interactions have in the leaderboard, where they have 8 themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bilrp.book import measured
from bilrp.compare import leaderboard, methods, metrics
from bilrp.compare.truths import TRUTHS

LAYERS = (5, 10, 17, 24, 31)
PATCH, PAIRS = 16, 5
ASSETS = Path(__file__).resolve().parents[1] / "assets"
SEEDS, BESIDE = "shapley_seeds.csv", "shapley_beside.csv"
OTHERS = ("BiLRP", "BiLRP, gamma 0.02", "integrated Jacobians, deep")
Features = Callable[[Tensor], dict[int, Tensor]]  # of coalitions (N, patches): layer -> (N, M)


def by_flips(phi: Features, phi2: Features, n: int, draws: int, seed: int) -> dict[int, Tensor]:
    """Interactions (n, n) of each layer, from 2 * draws * (n + 1) coalitions of each image."""
    return {
        k: methods.by_flips(
            lambda there, k=k: phi(there)[k], lambda there, k=k: phi2(there)[k], n, n, draws, seed
        )
        for k in LAYERS
    }


def by_shapiq(phi: Features, phi2: Features, n: int, budget: int, seed: int) -> dict[int, Tensor]:
    """The same by KernelSHAP-IQ, from `budget` coalitions of both images together."""
    import shapiq

    def game(coalitions: np.ndarray, layer: int) -> np.ndarray:
        there = torch.as_tensor(coalitions, dtype=torch.bool)
        a, b = phi(there[:, :n])[layer], phi2(there[:, n:])[layer]
        return (a * b).sum(1).double().numpy()

    found = {}
    for layer in LAYERS:
        fit = shapiq.KernelSHAPIQ(n=2 * n, max_order=2, index="k-SII", random_state=seed)
        fitted = fit.approximate(budget=budget, game=lambda c, layer=layer: game(c, layer))
        found[layer] = torch.tensor(fitted.get_n_order_values(2))[:n, n:]
    return found


def features_of(network: nn.Sequential, x: Tensor) -> Features:
    """Of all layers, averaged over places, with the patches that are not there covered."""
    batch = x[None]
    cover, masks = methods._cover(batch, PATCH)
    known: dict[bytes, dict[int, Tensor]] = {}  # the coalitions of a seed are always the same

    def features(there: Tensor) -> dict[int, Tensor]:
        key = there.contiguous().numpy().tobytes()
        if key not in known:
            known[key] = computed(there)
        return known[key]

    @torch.no_grad()
    def computed(there: Tensor) -> dict[int, Tensor]:
        found: dict[int, list[Tensor]] = {}
        for some in there.split(16):
            hidden = torch.einsum("np,p...->n...", (~some).to(batch), masks.to(batch))
            maps = batch + hidden * (cover - batch)
            maps = maps.contiguous(memory_format=torch.channels_last)
            for k, layer in enumerate(network, start=1):
                maps = layer(maps)
                if k in LAYERS:
                    found.setdefault(k, []).append(maps.mean((2, 3)))
        return {k: torch.cat(v) for k, v in found.items()}

    return features


def planted(count: int = PAIRS, layer: int = 31) -> list[tuple[Features, Features]]:
    """The first planted pairs of the leaderboard, under VGG-16 up to a layer."""
    (cell,) = leaderboard.cells("planted match", "VGG-16, layer 31, pooled", "Shapley interactions")
    (model,) = leaderboard.models(leaderboard.NETWORKS[f"VGG-16, layer {layer}"])
    network = nn.Sequential(*model).to(memory_format=torch.channels_last)
    assert cell.patch == PATCH
    return [
        tuple(features_of(network, cell.network.prepare(x)) for x in (p.x, p.x2))
        for p in leaderboard.judgeable(cell, count)
    ]


def agreement(estimate: Callable[[int], dict[int, Tensor]]) -> dict[int, float]:
    """Cosine of the interactions of seed 0 with those of seed 1, by layer."""
    one, other = estimate(0), estimate(1)
    return {k: metrics.cosine(one[k], other[k]) for k in LAYERS}


def rows() -> list[dict]:
    """Each estimator on each pair: coalitions of an image, and agreement of two seeds."""
    found = []
    for number, (phi, phi2) in enumerate(planted()):
        estimates = {
            ("shapiq", 1024): lambda seed, a=phi, b=phi2: by_shapiq(a, b, 16, 1024, seed),
            ("flips", 60 * 17): lambda seed, a=phi, b=phi2: by_flips(a, b, 16, 30, seed),
        }
        if number == 0:
            estimates["shapiq", 8192] = lambda seed, a=phi, b=phi2: by_shapiq(a, b, 16, 8192, seed)
        for (name, coalitions), estimate in estimates.items():
            row = {"estimator": name, "coalitions": coalitions, "pair": number}
            found.append(row | {f"layer {k}": v for k, v in agreement(estimate).items()})
            print(found[-1], flush=True)
    return found


def beside(truth: str, network: str, method: str, count: int = 50) -> list[dict]:
    """Of the first planted pairs: score minus null and AUC, at the patches of slow methods."""
    coarse = replace(methods.METHODS[method], slow=True)
    cell = leaderboard.Cell(TRUTHS[truth], leaderboard.NETWORKS[network], coarse)
    found = []
    for k, pair in enumerate(leaderboard.judgeable(cell, count)):
        r = leaderboard.judge(cell, pair, k)
        row = {"truth": truth, "network": network, "method": method, "pair": k}
        found.append(row | {"above": r["score"] - r["null"], "auc": r["auc"]})
    return found


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ASSETS)
    parser.add_argument("--table", default="*", choices=("*", SEEDS, BESIDE))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table in ("*", SEEDS):
        measured.write(options.folder / SEEDS, rows(), "make shapley")
    if options.table in ("*", BESIDE):
        networks = [f"VGG-16, layer {k}, pooled" for k in LAYERS]
        cells = product(("planted match", "two planted"), networks, OTHERS)
        found = [row for cell in tqdm(list(cells), unit="cell") for row in beside(*cell)]
        measured.write(options.folder / BESIDE, found, "make shapley")


if __name__ == "__main__":
    main()
