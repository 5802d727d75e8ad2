"""Where gamma pays on the toy digits: three choices of digit vectors, with and without biases.

python -m tests.toy_sweep    writes assets/toy_sweep.json; chapter 05 shows it

Thirty networks are trained (about a minute and a half of CPU time), as chapter 05 trains its ten.
On each, gamma is chosen on 500 pairs of rows and judged on 2,000 others.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from bilrp.book.measured import commit_of
from bilrp.compare import metrics
from bilrp.models import toy

TARGET = Path(__file__).resolve().parents[1] / "assets" / "toy_sweep.json"
SEEDS = 5
GAMMAS = (0, 0.003, 0.006, 0.01, 0.02, 0.03, 0.05, 0.07, 0.09, 0.13, 0.2, 0.35, 0.6, 1)
TUNE, TEST = slice(0, 500), slice(500, 2500)
FRESH = 20_000  # pairs that the error is measured on


def pairs(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (2, N, 60) of pairs of rows with a match, and their true explanations (N, 6, 6)."""
    drawn = toy.rows(2600, 300)
    truth = toy.matches(*drawn)
    some = truth.sum((1, 2)) > 0
    return toy.embed(drawn[:, some], vectors), truth[some]


def mean_squared_error(layers: toy.Layers, vectors: Tensor) -> float:
    """Of the similarity, on fresh pairs of rows."""
    fresh = toy.rows(FRESH, 200)
    phi, phi2 = (toy.features(layers, toy.embed(d, vectors)) for d in fresh)
    return float(((phi * phi2).sum(1) - toy.matches(*fresh).sum((1, 2))).square().mean())


def explained(layers: toy.Layers, x: Tensor, gamma: float) -> Tensor:
    """BiLRP of pairs of rows: (2, N, 60) -> (N, 6, 6)."""
    return toy.factors(layers, x[0], gamma) @ toy.factors(layers, x[1], gamma).mT


def kept(layers: toy.Layers, x: Tensor) -> list[float]:
    """For each layer, the part of the digits' contributions that does not cancel, 0..1."""
    part = x[:, None] * torch.eye(toy.PLACES).repeat_interleave(toy.DIGITS, 1)
    shares = []
    for w, b in layers:
        x = torch.relu(x @ w + b)
        on = (x > 0)[:, None]
        net, gross = (part @ w) * on, (part.abs() @ w.abs()) * on
        shares.append(round(float(net.abs().sum() / gross.sum()), 4))
        part = net
    return shares


def outside(R: Tensor, truth: Tensor) -> list[float]:
    """Of all magnitudes: negative scores, and positive ones where nothing matches."""
    size = R.abs().sum((1, 2))
    wrong = (R.clamp(max=0).abs(), R.clamp(min=0) * (truth == 0))
    return [round(float((part.sum((1, 2)) / size).mean()), 4) for part in wrong]


def measured(layers: toy.Layers, vectors: Tensor) -> dict:
    """What the table says of one network."""
    x, truth = pairs(vectors)
    found = {gamma: explained(layers, x, gamma) for gamma in GAMMAS}
    tuned = {gamma: metrics.acs(R[TUNE], truth[TUNE]) for gamma, R in found.items()}
    judged = {gamma: metrics.acs(R[TEST], truth[TEST]) for gamma, R in found.items()}
    return {
        "mse": mean_squared_error(layers, vectors),
        "acs": [round(value, 5) for value in judged.values()],
        "chosen": max(GAMMAS, key=tuned.get),
        "outside": [outside(R[TEST], truth[TEST]) for R in found.values()],
        "kept": kept(layers, x[0, TEST]),
    }


def main() -> None:
    """Train, measure, and write the table."""
    commit = commit_of()
    networks = []
    for name, vectors in toy.VECTORS.items():
        layers, _ = toy.train(vectors, seeds=SEEDS)
        for k, network in enumerate(layers):
            where = {"vectors": name, "biases": k >= SEEDS, "seed": k % SEEDS}
            networks.append(where | measured(network, vectors))
            print(where, networks[-1]["mse"], networks[-1]["chosen"], flush=True)
    head = {"date": str(date.today()), "commit": commit, "command": "python -m tests.toy_sweep"}
    rows = ",\n".join(json.dumps(row) for row in networks)
    text = json.dumps(head | {"gammas": GAMMAS})[:-1] + f', "networks": [\n{rows}\n]}}\n'
    json.loads(text)
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
