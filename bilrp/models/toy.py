"""Small networks that count equal digits: similarities whose true explanation is known."""

from __future__ import annotations

from itertools import pairwise
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

SIZES = (60, 100, 100, 50)

# One vector of ten non-negative numbers for each digit; the paper says that they are correlated,
# not how.
_APART = (torch.arange(10)[:, None] - torch.arange(10)).abs()
DIGIT_VECTORS = {
    "exp(-d/0.7)": torch.exp(-_APART / 0.7),
    "exp(-d/1.5)": torch.exp(-_APART / 1.5),
    "one-hot + 0.3": torch.eye(10) + 0.3,
}


def matches(d: Tensor, d2: Tensor) -> Tensor:
    """Which digits are equal, (..., 6) and (..., 6) to bool (..., 6, 6)."""
    return d[..., :, None] == d2[..., None, :]


def toy_networks(
    vectors: Tensor, biases: bool, seeds: int = 5, steps: int = 4500
) -> list[nn.Sequential]:
    """Networks 60-100-100-50 with <phi(x), phi(x')> near the number of equal pairs of digits.

    Trained together, on all pairs of 64 rows with 64 others in each step.

    Parameters
    ----------
    vectors : Tensor (10, 10)
        One row a digit; an input is six of them, (60,).
    biases : bool
    seeds : int
        How many networks, from seeds 0, 1, ...
    steps : int
        Of Adam; the learning rate grows over the first tenth and falls along a cosine.

    Returns
    -------
    list of nn.Sequential
        In eval mode, without gradients, float32.

    Raises
    ------
    ValueError
        For vectors of another shape, or numbers below 1.

    Source
    ------
    Eberle et al. (2022), Section 4; recipe of the chapter on toy digits.
    """
    if vectors.shape != (10, 10) or seeds < 1 or steps < 1:
        raise ValueError(
            f"vectors must be (10, 10), seeds and steps at least 1; got {tuple(vectors.shape)}, "
            f"{seeds} and {steps}"
        )
    starts = [torch.Generator().manual_seed(seed) for seed in range(seeds)]
    W = []
    for n, m in pairwise(SIZES):
        W.append(torch.stack([torch.randn(n, m, generator=g) / (2 * n) ** 0.5 for g in starts]))
    B = [torch.zeros(seeds, 1, m) for m in SIZES[1:]]
    learned = [t.requires_grad_() for t in (*W, *(B if biases else ()))]
    adam = torch.optim.Adam(learned, lr=5e-3, fused=True)
    plan = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda k: min(1, 10 * k / steps) * (1 + cos(pi * k / steps)) / 2
    )
    generator = torch.Generator().manual_seed(100)
    with torch.enable_grad():
        for _ in range(steps):
            d = torch.randint(10, (seeds, 128, 6), generator=generator)
            count = one_hot(d, 10).sum(2).float()  # equal pairs are products of counts
            a = vectors[d].flatten(2)
            for w, b in zip(W, B, strict=True):
                a = torch.relu(torch.baddbmm(b, a, w))
            error = a[:, :64] @ a[:, 64:].mT - count[:, :64] @ count[:, 64:].mT
            adam.zero_grad()
            error.square().mean((1, 2)).sum().backward()
            adam.step()
            plan.step()
    return [_network([(w[n], b[n, 0]) for w, b in zip(W, B, strict=True)]) for n in range(seeds)]


def _network(layers: list[tuple[Tensor, Tensor]]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for w, b in layers:
        linear = nn.Linear(*w.shape)
        linear.load_state_dict({"weight": w.detach().T, "bias": b.detach()})
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts).eval().requires_grad_(False)
