"""Rows of digits whose similarity is the number of equal pairs, and small networks that count them.

The toy problem of Eberle et al. (2022), Section 4: its true explanation is known. The paper says
that the vectors of the digits are correlated and not how, so there are three choices here.
"""

from __future__ import annotations

from itertools import pairwise
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from bilrp._names import needs

PLACES, DIGITS = 6, 10
SIZES = (PLACES * DIGITS, 100, 100, 50)  # the paper's network

_number = torch.arange(DIGITS)
_apart = (_number[:, None] - _number).abs()
VECTORS = {
    "near": torch.exp(-_apart / 0.7),
    "wide": torch.exp(-_apart / 1.5),
    "one-hot + 0.3": torch.eye(DIGITS) + 0.3,
}

# From the bottom: weights (inputs, outputs) and biases (outputs,)
Layers = list[tuple[Tensor, Tensor]]


def rows(n: int, seed: int) -> Tensor:
    """Pairs of rows of digits drawn at random: (2, n, 6), int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(DIGITS, (2, n, PLACES), generator=generator)


def matches(d: Tensor, d2: Tensor) -> Tensor:
    """The true explanation: 1 where two digits are equal; (..., 6) and (..., 6) -> (..., 6, 6)."""
    return (d[..., :, None] == d2[..., None, :]).float()


def embed(d: Tensor, vectors: Tensor) -> Tensor:
    """Rows of digits (..., 6) as network inputs (..., 60), by the vectors (10, 10) of the digits.

    Raises
    ------
    ValueError
        If a row holds anything but the whole numbers 0 to 9.
    """
    if d.is_floating_point() or not d.numel() or int(d.min()) < 0 or int(d.max()) >= len(vectors):
        raise ValueError(f"rows hold whole numbers from 0 to {len(vectors) - 1}, got {d}")
    return vectors[d].flatten(-2)


def first_weights(seed: int, variance: float) -> list[Tensor]:
    """Weights (inputs, outputs) of each layer before training, of variance `variance` / inputs."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, m, generator=g) * (variance / n) ** 0.5 for n, m in pairwise(SIZES)]


def train(
    vectors: Tensor,
    steps: int = 4500,
    variance: float = 0.5,
    rate: float = 5e-3,
    side: int = 64,
    seeds: int = 5,
    only: int | None = None,
    progress: bool = True,
) -> tuple[list[Layers], Tensor]:
    """Networks that count equal pairs, all trained at once as one batch of matrices.

    Adam on the squared error of all `side` x `side` similarities of two batches of random rows. The
    learning rate grows over the first tenth of the steps and falls to zero along a cosine.

    Parameters
    ----------
    vectors : Tensor (10, 10)
        Of the ten digits; `VECTORS` has three choices.
    steps, side : int
        Steps of training, and rows in each of the two batches of a step.
    variance, rate : float
        Of the first weights, times inputs; the largest learning rate.
    seeds : int
        Two networks for each of the seeds 0 ... seeds - 1, one without biases and one with them. A
        seed decides the first weights; it gets training rows of its own, the same for both.
    only : int, optional
        Train the two networks of this seed alone, on the rows that it gets among all of them.
    progress : bool
        Show a bar.

    Returns
    -------
    networks : list of layers
        Those without biases first. A network is a list of (weights, biases); see `as_model`.
    losses : Tensor (steps, networks)

    Raises
    ------
    ValueError
        For vectors of another shape, no steps, no seeds, or an `only` that is not among them.
    """
    if vectors.shape != (DIGITS, DIGITS):
        raise ValueError(f"vectors are (10, 10), one row a digit, got {tuple(vectors.shape)}")
    if min(steps, side, seeds) < 1 or only not in (None, *range(seeds)):
        raise ValueError(f"need {steps=}, {side=}, {seeds=} of at least 1, and {only=} among seeds")
    which = range(seeds) if only is None else [only]
    n = len(which)
    first = [first_weights(seed, variance) for seed in which]
    W = [torch.stack(w * 2).requires_grad_() for w in zip(*first, strict=True)]
    B = [torch.zeros(2 * n, 1, m, requires_grad=True) for m in SIZES[1:]]
    biased = torch.tensor([0.0, 1.0]).repeat_interleave(n)[:, None, None]
    adam = torch.optim.Adam(W + B, lr=rate, fused=True)
    plan = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda k: min(1, 10 * k / steps) * (1 + cos(pi * k / steps)) / 2
    )
    g = torch.Generator().manual_seed(100)
    losses = []
    for _ in (bar := _steps(steps, progress)):
        drawn = torch.randint(DIGITS, (seeds, 2 * side, PLACES), generator=g)
        d = drawn[list(which)].repeat(2, 1, 1)
        count = one_hot(d, DIGITS).sum(2).float()  # equal pairs are products of counts
        a = embed(d, vectors)
        for w, b in zip(W, B, strict=True):
            a = torch.relu(torch.baddbmm(b * biased, a, w))
        error = a[:, :side] @ a[:, side:].mT - count[:, :side] @ count[:, side:].mT
        loss = error.square().mean((1, 2))
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        plan.step()
        losses.append(loss.detach())
        if progress and len(losses) % 50 == 1:
            bar.set_postfix(worst=f"{float(losses[-1].max()):.1e}")
    layers = [(w.detach(), (b * biased).detach()[:, 0]) for w, b in zip(W, B, strict=True)]
    return [[(w[k], b[k]) for w, b in layers] for k in range(2 * n)], torch.stack(losses)


def features(layers: Layers, x: Tensor) -> Tensor:
    """Inputs (..., 60) to features (..., 50)."""
    for w, b in layers:
        x = torch.relu(x @ w + b)
    return x


def as_model(layers: Layers) -> nn.Sequential:
    """The same network as a module in float64, frozen, for `bilrp.explain(..., groups=10)`."""
    parts: list[nn.Module] = []
    for w, b in layers:
        linear = nn.Linear(w.shape[0], w.shape[1], dtype=torch.float64)
        linear.load_state_dict({"weight": w.T, "bias": b})
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts).requires_grad_(False)


def factors(layers: Layers, x: Tensor, gamma: float) -> Tensor:
    """What each digit contributes to each feature, of many inputs: (N, 60) -> (N, 6, 50).

    The factor A of `bilrp.factor`, with one matrix product a layer for all inputs.
    """
    part = x[:, None] * torch.eye(PLACES).repeat_interleave(DIGITS, 1).to(x)
    for w, b in layers:
        z = x @ (w + gamma * w.clamp(min=0)) + (b + gamma * b.clamp(min=0))
        x = torch.relu(x @ w + b)
        part = part @ (w + gamma * w.clamp(min=0)) * torch.where(x > 0, x / z, 0)[:, None]
    return part


def _steps(steps: int, progress: bool):
    if not progress:
        return range(steps)
    with needs("vgg"):
        from tqdm import trange
    return trange(steps, desc="training", unit="step")
