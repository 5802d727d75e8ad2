"""How much of estimated Shapley interactions is chance: two seeds, compared (`make shapley`).

The game of two images is a dot product, v(S, S') = <phi(S), phi'(S')>, so the interaction index of
a patch of each is the mean, over p from 0 to 1 and coalitions that hold each patch with chance p,
of <what the one adds to phi(S), what the other adds to phi'(S')>. `by_flips` draws that directly:
in each drawn pair of coalitions every patch is flipped once. shapiq, which is made for any game,
fits all pairs of players to a sample of values.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bilrp.book import measured
from bilrp.compare import leaderboard, methods, metrics

LAYERS = (5, 10, 17, 24, 31)
PATCH, PAIRS = 16, 5
ASSETS = Path(__file__).resolve().parents[1] / "assets"
SEEDS, JUDGED = "shapley_seeds.csv", "shapley_judged.csv"
Features = Callable[[Tensor], dict[int, Tensor]]  # of coalitions (N, patches): layer -> (N, M)


def by_flips(phi: Features, phi2: Features, n: int, draws: int, seed: int) -> dict[int, Tensor]:
    """Interactions (n, n) of each layer, from draws * (n + 1) coalitions of each image."""
    generator = torch.Generator().manual_seed(seed)
    chance = (torch.arange(draws) + torch.rand(draws, generator=generator)) / draws
    sides = []
    for features in (phi, phi2):
        drawn = torch.rand(draws, n, generator=generator) < chance[:, None]
        flipped = drawn[:, None] ^ torch.eye(n, dtype=torch.bool)
        found = features(torch.cat([drawn[:, None], flipped], 1).flatten(0, 1))
        sign = torch.where(drawn, 1.0, -1.0)[..., None]  # what is there was taken out
        parts = {k: f.double().view(draws, n + 1, -1) for k, f in found.items()}
        sides.append({k: sign * (f[:, :1] - f[:, 1:]) for k, f in parts.items()})
    return {k: torch.einsum("tim,tjm->ij", sides[0][k], sides[1][k]) / draws for k in sides[0]}


def by_shapiq(phi: Features, phi2: Features, n: int, budget: int, seed: int) -> dict[int, Tensor]:
    """The same by KernelSHAP-IQ, from `budget` coalitions of both images together."""
    import shapiq

    values: dict[bytes, dict[int, np.ndarray]] = {}  # the coalitions of a seed are always the same

    def game(coalitions: np.ndarray, layer: int) -> np.ndarray:
        key = coalitions.tobytes()
        if key not in values:
            there = torch.as_tensor(coalitions, dtype=torch.bool)
            a, b = phi(there[:, :n]), phi2(there[:, n:])
            values[key] = {k: (a[k] * b[k]).sum(1).double().numpy() for k in a}
        return values[key][layer]

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

    @torch.no_grad()
    def features(there: Tensor) -> dict[int, Tensor]:
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


def planted(
    count: int = PAIRS, truth: str = "planted match", layer: int = 31
) -> list[tuple[Features, Features]]:
    """The first planted pairs of the leaderboard, under VGG-16 up to a layer."""
    (cell,) = leaderboard.cells(truth, "VGG-16, layer 31, pooled", "Shapley interactions")
    (model,) = leaderboard.models(leaderboard.NETWORKS[f"VGG-16, layer {layer}"])
    network = nn.Sequential(*model).to(memory_format=torch.channels_last)
    assert cell.patch == PATCH
    return [
        tuple(features_of(network, cell.network.prepare(x)) for x in (p.x, p.x2))
        for p in leaderboard.judgeable(cell, count)
    ]


def judged(truth: str, count: int = 50) -> list[dict]:
    """What estimates by flips have above their null, by layer, with intervals over photos."""
    (cell,) = leaderboard.cells(truth, "VGG-16, layer 31, pooled", "Shapley interactions")
    pairs = leaderboard.judgeable(cell, count)
    records: dict[int, list[dict]] = {k: [] for k in LAYERS}
    for pair, (phi, phi2) in zip(pairs, planted(count, truth), strict=True):
        for k, scores in by_flips(phi, phi2, 16, 60, seed=0).items():
            record = cell.truth.judge(scores.view(4, 4, 4, 4).float(), pair, PATCH, None, None)
            records[k].append({**record, "group": pair.group})
        print(truth, len(records[31]), flush=True)
    found = []
    for k, of in records.items():
        lists = ([r[key] for r in of] for key in ("score", "null", "group"))
        means = leaderboard.intervals(*lists)
        row = {"truth": truth, "layer": k, "pairs": len(of), "score": means["score"][0]}
        row |= dict(zip(("above", "low", "high"), means["above"], strict=True))
        found.append(row | {"auc": round(sum(r["auc"] for r in of) / len(of), 4)})
    return found


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
            ("flips", 60 * 17): lambda seed, a=phi, b=phi2: by_flips(a, b, 16, 60, seed),
        }
        if number == 0:
            estimates["shapiq", 8192] = lambda seed, a=phi, b=phi2: by_shapiq(a, b, 16, 8192, seed)
        for (name, coalitions), estimate in estimates.items():
            row = {"estimator": name, "coalitions": coalitions, "pair": number}
            found.append(row | {f"layer {k}": v for k, v in agreement(estimate).items()})
            print(found[-1], flush=True)
    return found


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ASSETS)
    parser.add_argument("--table", default="*", choices=("*", SEEDS, JUDGED))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table in ("*", SEEDS):
        measured.write(options.folder / SEEDS, rows(), "make shapley")
    if options.table in ("*", JUDGED):
        found = [r for truth in ("planted match", "two planted") for r in judged(truth)]
        measured.write(options.folder / JUDGED, found, "make shapley")


if __name__ == "__main__":
    main()
