"""Two networks and their depth: face to face, a stereo pair, faces to tell apart, films.

What `tests.lite0` measures beside planted matches, each with its controls.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilrp
from bilrp import controls, data, metrics
from bilrp.engine.rules import Rules

BLOCKS = (3, 5, 8, 11, 15, 16)


def soft_boxes(grid: int) -> list[Tensor]:
    """How much of each patch lies within the box around a cat's face, (grid, grid) each."""
    found = []
    for top, bottom, left, right in data.CAT_FACES:
        inside = torch.zeros(128, 128)
        inside[top:bottom, left:right] = 1
        found.append(F.avg_pool2d(inside[None], 128 // grid)[0])
    return found


def face_to_face(model: nn.Module, prepare: Callable, rules: Rules, patch: int) -> list[dict]:
    """Of each pair of five cats: positive relevance from face to face, its nulls, the cosine."""
    cats = [*data.cats(128)[0], data.photo("photos/chelsea.png", 128)[0]]
    factors = [bilrp.factor(model, prepare(x), rules, patch=patch) for x in cats]
    boxes = soft_boxes(128 // patch)
    found = []
    for i in range(5):
        for j in range(i + 1, 5):
            e = factors[i].explain(factors[j])
            both = boxes[i][:, :, None, None] * boxes[j]
            R = e.relevance.double().clamp(min=0)
            null = controls.marginal_null(e.relevance)
            size = float(factors[i].features.norm() * factors[j].features.norm())
            found.append(
                dict(
                    cats=[i, j],
                    share=float((R * both).sum() / R.sum()),
                    marginals=float((null * both).sum() / null.sum()),
                    area=float(both.mean()),
                    cosine=e.similarity / size,
                    carried=float(e.ledger[0, 0]) / e.similarity,
                )
            )
    return found


def stereo(model: nn.Module, prepare: Callable, rules: Rules) -> dict:
    """Positive relevance on true partners of the stereo pair at 128 pixels, patches of 8.

    By rows of patches of the left photo, as shares of all positive relevance, so that an interval
    can be drawn over rows: on true partners, what the two nulls put there, and on those true
    partners that have an opposite, and on their opposites. Beside them the share of each row.
    """
    pair = data.stereo(128)
    row, col = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    partner = torch.where(pair.valid, col - pair.disparity, torch.nan)
    true = metrics.correspondence(row, partner, patch=8, size=(128, 128)) > 0.2
    factors = [bilrp.factor(model, prepare(v[0]), rules, patch=8) for v in (pair.left, pair.right)]
    R = factors[0].explain(factors[1]).relevance.double().clamp(min=0)
    R = R / R.sum()
    tables = dict(share=R, marginals=controls.marginal_null(R), locality=controls.locality_null(R))
    found = {name: (table * true).sum((1, 2, 3)).tolist() for name, table in tables.items()}
    found |= dict(row=R.sum((1, 2, 3)).tolist(), true=[], opposite=[])
    for k in range(len(R)):
        alone, pairs = torch.zeros_like(R), torch.zeros_like(true)
        alone[k], pairs[k] = R[k], true[k]
        moved = controls.opposite_displacement(alone, pairs)
        found["true"].append(moved.true * found["row"][k])
        found["opposite"].append(moved.opposite * found["row"][k])
    rows = {name: [float(f"{v:.5g}") for v in values] for name, values in found.items()}
    return rows | {"area": float(true.double().mean())}


@torch.no_grad()
def block_features(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Features after some blocks of a Lite0, flattened; "all" is the whole network."""
    found = {}
    for name, layer in model.named_children():
        x = layer(x)
        if name.removeprefix("block").isdigit() and int(name[5:]) in BLOCKS:
            found[name[5:]] = x.flatten(1)
    return found | {"all": x}


def compact(f: Tensor) -> Tensor:
    """As many features as there are examples, with the same dot products."""
    size, axes = torch.linalg.eigh(f.double() @ f.double().T)
    return axes * size.clamp(min=0).sqrt()


def faces_over_depth(features: dict[str, Tensor], people: Tensor, seeds: int = 5) -> dict:
    """Accuracy of a linear SVM, two pictures of each person to train on, by split."""
    found: dict[str, list[float]] = {}
    for name, f in features.items():
        small = compact(f)
        for seed in range(seeds):
            draw = torch.Generator().manual_seed(seed)
            train = torch.zeros(len(people), dtype=torch.bool)
            for one in people.unique():
                members = (people == one).nonzero()[:, 0]
                train[members[torch.randperm(len(members), generator=draw)[:2]]] = True
            accuracy = bilrp.svm_accuracy(small, people, train)
            found.setdefault(name, []).append(round(accuracy, 4))
    return found


def invariance_over_depth(features: dict[str, Tensor], films: data.FilmScenes) -> dict:
    """Inv as in Eq. (7), and what it hangs on.

    "left out": without one scene each, for how far the number hangs on it. "length one": of
    features divided by their lengths. "near", "all": of these the two means, so cosines, of which
    Inv is the ratio. "positive": of what is positive in the features, as behind a ReLU.
    """

    def inv(f: Tensor, kept: Tensor | slice = slice(None)) -> float:
        value = bilrp.invariance(f[kept], films.scene[kept], films.frame[kept])
        return float(f"{value:.5g}")

    found = {}
    for name, f in features.items():
        one = f / f.norm(dim=1, keepdim=True)
        mean = float(one.double().mean(0).square().sum())
        found[name] = {
            "Inv": inv(f),
            "left out": [inv(f, films.scene != k) for k in range(len(films.names))],
            "length one": inv(one),
            "near": round(inv(one) * mean, 4),
            "all": round(mean, 4),
            "positive": inv(f.clamp(min=0)),
        }
    return found
