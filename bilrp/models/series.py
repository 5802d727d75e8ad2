"""Simulated recordings of eight electrodes, with bursts of known rhythm, place and time.

Nothing here was recorded from anybody: background noise with a 1/f spectrum, shared among
electrodes that are near each other, and short bursts of three rhythms. A small network is trained
so that the similarity of two recordings counts their pairs of bursts of the same rhythm, wherever
and whenever they are. `python -m bilrp.models.series` trains it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bilrp._files import replaced

ELECTRODES = ("Fp1", "Fp2", "C3", "C4", "P3", "P4", "O1", "O2")
# seen from above, in radii of the head
_PLACES = (
    (-0.3, 1), (0.3, 1), (-0.6, 0), (0.6, 0), (-0.5, -0.5), (0.5, -0.5), (-0.3, -1), (0.3, -1),
)  # fmt: skip
RATE, LENGTH = 64, 256  # samples a second, samples: four seconds
RHYTHMS = {"alpha": 10.0, "sigma": 14.0, "beta": 20.0}  # in Hz
MOST, DURATION = 3, 40  # bursts of a recording, samples of a burst
WINDOW = 16  # samples of an owner's window: a quarter of a second
SEEDS = (0, 1, 2)
_HERE = Path(__file__).resolve().parent
FILES = (_HERE / "series.pt", _HERE.parents[1] / "data" / "series.pt")  # a wheel, a checkout


@dataclass(frozen=True, eq=False)
class Recordings:
    """Simulated recordings and what is in them.

    Attributes
    ----------
    x : Tensor (N, 8, 256)
        Electrodes by samples; the background has a variance of about 1.
    bursts : Tensor (N, 3, 8, 256)
        The signal of each burst alone, zero where there are fewer.
    rhythm : Tensor (N, 3) of int64
        Of each burst: 0 alpha, 1 sigma, 2 beta, -1 none.
    """

    x: Tensor
    bursts: Tensor
    rhythm: Tensor

    def counts(self) -> Tensor:
        """Bursts of each rhythm, (N, 3)."""
        return (self.rhythm[:, :, None] == torch.arange(len(RHYTHMS))).sum(1).float()

    def energy(self) -> Tensor:
        """Shares of each burst's energy by owner, (N, 3, 128): each burst's add up to 1 (or 0)."""
        pooled = self.bursts.square().unflatten(3, (-1, WINDOW)).sum(4).flatten(2)
        return pooled / pooled.sum(2, keepdim=True).clamp(min=1e-12)


def owners() -> Tensor:
    """Who owns each sample, (8, 256): one owner an electrode and a quarter of a second."""
    window = torch.arange(LENGTH) // WINDOW
    return torch.arange(len(ELECTRODES))[:, None] * (LENGTH // WINDOW) + window


def simulate(n: int, generator: torch.Generator, amplitude: float = 3.0) -> Recordings:
    """Draw recordings: zero to three bursts each, at random electrodes, times and phases.

    Parameters
    ----------
    n : int
    generator : torch.Generator
    amplitude : float
        Of a burst at its electrode on average, where the background's deviation is 1; neighbours
        have the less of it the farther they are.
    """
    g, places = generator, torch.tensor(_PLACES)
    near = torch.exp(-torch.cdist(places, places).square() / 0.5)
    white = torch.fft.rfft(torch.randn(n, len(places), LENGTH, generator=g))
    frequency = torch.fft.rfftfreq(LENGTH, 1 / RATE)
    pink = torch.fft.irfft(white / frequency.clamp(min=1.0).sqrt(), LENGTH)
    mixed = torch.linalg.cholesky(0.5 * near + 0.5 * torch.eye(len(places))) @ pink
    mixed = mixed / mixed.std((1, 2), keepdim=True)

    rhythm = torch.randint(len(RHYTHMS), (n, MOST), generator=g)
    there = torch.arange(MOST) < torch.randint(MOST + 1, (n, 1), generator=g)
    start = torch.randint(LENGTH - DURATION, (n, MOST), generator=g)
    phase, loud = torch.rand(2, n, MOST, generator=g)
    at = torch.randint(len(places), (n, MOST), generator=g)
    t = torch.arange(LENGTH) - start[..., None]
    hann = torch.where((t >= 0) & (t < DURATION), torch.sin(math.pi * t / DURATION) ** 2, 0.0)
    hertz = torch.tensor(list(RHYTHMS.values()))[rhythm][..., None]
    wave = torch.sin(2 * math.pi * (hertz * t / RATE + phase[..., None])) * hann
    wave = wave * (amplitude * (0.75 + 0.5 * loud) * there)[..., None]
    bursts = near[at][..., None] * wave[:, :, None]
    return Recordings(mixed + bursts.sum(1), bursts, torch.where(there, rhythm, -1))


def truth(first: Recordings, second: Recordings, i: int, j: int) -> Tensor:
    """Who should own y: each pair of bursts of one rhythm gives 1, by the bursts' energy.

    Returns
    -------
    Tensor (128, 128)
        For recording i of the first and j of the second; the sum is the number of such pairs.
    """
    a, b = first.rhythm[i], second.rhythm[j]
    same = ((a[:, None] == b) & (a[:, None] >= 0)).float()
    return first.energy()[i].T @ same @ second.energy()[j]


def network() -> nn.Sequential:
    """An untrained network: recordings (N, 8, 256) to three features (N, 3)."""
    return nn.Sequential(
        nn.Conv1d(len(ELECTRODES), 16, 17, padding=8),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Conv1d(16, 24, 9, padding=4),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Conv1d(24, 24, 9, padding=4),
        nn.ReLU(),
        nn.Conv1d(24, len(RHYTHMS), 1),
        nn.ReLU(),
        nn.AvgPool1d(LENGTH // 4),
        nn.Flatten(),
    )


def _started() -> nn.Sequential:
    net = network()
    with torch.no_grad():
        bias = net[8].bias
        assert isinstance(bias, Tensor)
        bias.fill_(0.5)  # alive: a feature that begins dead stays so
    return net


def load(seed: int = 0, path: str | Path | None = None) -> nn.Sequential:
    """A trained network; seeds 0, 1 and 2 come with the book.

    Raises
    ------
    FileNotFoundError
        If the file of weights is missing; says where it was looked for.
    ValueError
        For another seed.
    """
    paths = FILES if path is None else (Path(path),)
    found = next((p for p in paths if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            "no weights of the series network at " + " or ".join(map(str, paths)) + "; they are "
            "part of the book's repository (data/series.pt), and python -m bilrp.models.series "
            "trains them"
        )
    saved = torch.load(found, weights_only=True)
    if seed not in saved:
        raise ValueError(f"seed must be one of {sorted(saved)}, got {seed!r}")
    with torch.random.fork_rng():  # weights that are drawn, and replaced
        net = network()
    net.load_state_dict(saved[seed])
    return net.eval().requires_grad_(False)


def train(seed: int, steps: int = 400, side: int = 48, rate: float = 8e-3) -> nn.Sequential:
    """Train on fresh recordings in each step: features to count the bursts of each rhythm, products
    of features to count pairs, in all pairs of `side` recordings with as many others.
    """
    g = torch.Generator().manual_seed(1000 + seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = _started()
    adam = torch.optim.Adam(net.parameters(), lr=rate)
    plan = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=steps)
    for _ in range(steps):
        drawn = simulate(2 * side, g)
        phi, counts = net(drawn.x), drawn.counts()
        wanted = counts[:side] @ counts[side:].T
        pairs = (phi[:side] @ phi[side:].T - wanted).square().mean()
        loss = pairs + (phi - counts).square().mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        plan.step()
    return net.eval().requires_grad_(False)


def error(net: nn.Module, n: int = 400, seed: int = 77) -> tuple[float, float]:
    """On fresh recordings: mean squared error of y, and its part of the variance of the truth."""
    drawn = simulate(n, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        phi = net(drawn.x)
    counts, half = drawn.counts(), n // 2
    wanted = counts[:half] @ counts[half:].T
    mse = float((phi[:half] @ phi[half:].T - wanted).square().mean())
    return mse, mse / float(wanted.var())


def _main() -> None:
    torch.set_num_threads(1)  # the same sums in the same order on every machine of a kind
    weights = {}
    for seed in SEEDS:
        net = train(seed)
        mse, part = error(net)
        print(f"seed {seed}: mean squared error {mse:.3f}, {part:.1%} of the variance")
        weights[seed] = net.state_dict()
    with replaced(FILES[-1]) as new:
        torch.save(weights, new)


if __name__ == "__main__":
    _main()
