"""Pictures with several digits at random places, and two small networks that compare them.

The similarity of two pictures is the number of pairs of equal digits, one from each. So the truth
is known for every pair of patches: Section 4 of Eberle et al. (2022), with pictures for rows of
digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bilrp._checks import check_whole
from bilrp._files import replaced
from bilrp._names import needs

SIDE, PATCH = 24, 4  # pixels of a picture and of a patch
DIGITS, KINDS = 3, 5  # digits in a picture, and of how many kinds: 0 to 4
_CELL = 8  # pixels of a digit
_HELD_OUT = 200  # of the 901 digits: never seen in training
_HERE = Path(__file__).resolve().parent
PLACES = (_HERE / "digit_scenes.pt", _HERE.parents[1] / "data" / "digit_scenes.pt")


@dataclass(frozen=True, eq=False)
class Scenes:
    """Pictures of digits and what is where.

    Parameters
    ----------
    pixels : Tensor (N, 1, 24, 24)
        Ink, 0 to 1; where digits overlap, the darker one is seen.
    digits : Tensor (N, 3) of int64
        Which digits.
    ink : Tensor (N, 3, 6, 6)
        How the visible ink of each digit is spread over the patches; each sums to one.
    """

    pixels: Tensor
    digits: Tensor
    ink: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def counts(self) -> Tensor:
        """How often each digit occurs, (N, 5): the features of a network that makes no error."""
        return nn.functional.one_hot(self.digits, KINDS).sum(1).float()


def similarity(first: Scenes, second: Scenes) -> Tensor:
    """Pairs of equal digits, one from each picture: (N,) for N pairs."""
    return (first.counts() * second.counts()).sum(1)


def truth(first: Scenes, second: Scenes) -> Tensor:
    """The true explanation of each pair, (N, 6, 6, 6, 6); sums to `similarity`.

    Every pair of equal digits contributes one, spread over pairs of patches as the ink of the two
    is spread over patches.
    """
    equal = (first.digits[:, :, None] == second.digits[:, None]).float()
    return torch.einsum("nij,niab,njcd->nabcd", equal, first.ink, second.ink)


def _digits() -> tuple[Tensor, Tensor]:
    with needs("book"):
        from sklearn.datasets import load_digits

    bunch = load_digits(n_class=KINDS)
    return torch.from_numpy(bunch.images).float() / 16, torch.from_numpy(bunch.target).long()


def scenes(number: int, seed: int, held_out: bool = True) -> Scenes:
    """Draw pictures at random: three digits each, anywhere, overlapping or not.

    Parameters
    ----------
    number : int
        How many pictures.
    seed : int
        Equal seeds give equal pictures.
    held_out : bool
        Whether the handwriting is from the 200 digits that no network was trained on, or from
        the other 701.

    Raises
    ------
    ValueError
        If number is not a whole number of at least 1.

    Source
    ------
    The digits are scikit-learn's `load_digits`, 8 x 8 pixels (E. Alpaydin and C. Kaynak, UCI).
    """
    check_whole("number", number)
    return _drawn(number, torch.Generator().manual_seed(seed), held_out, *_digits())


def _drawn(
    number: int, generator: torch.Generator, held_out: bool, images: Tensor, labels: Tensor
) -> Scenes:
    pool = slice(-_HELD_OUT, None) if held_out else slice(0, -_HELD_OUT)
    images, labels = images[pool], labels[pool]
    which = torch.randint(len(images), (number, DIGITS), generator=generator)
    steps = (SIDE - _CELL) // 2 + 1  # places are two pixels apart
    corner = 2 * torch.randint(steps, (2, number, DIGITS, 1, 1), generator=generator)
    row = corner[0] + torch.arange(_CELL)[:, None]
    place = (row * SIDE + corner[1] + torch.arange(_CELL)).flatten(2)
    layers = torch.zeros(number, DIGITS, SIDE * SIDE)
    layers.scatter_(2, place, images[which].flatten(2))
    seen, winner = layers.max(1)
    visible = layers * (winner[:, None] == torch.arange(DIGITS)[:, None])
    per_patch = visible.view(number, DIGITS, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).sum((3, 5))
    ink = per_patch / per_patch.sum((2, 3), keepdim=True).clamp(min=1e-6)
    return Scenes(seen.view(number, 1, SIDE, SIDE), labels[which], ink)


# --- two networks ---------------------------------------------------------------------------


def cnn() -> nn.Sequential:
    """Convolutions with ReLU, and a sum over all places: (N, 1, 24, 24) to (N, 5)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(64, KINDS, 1), nn.ReLU()),
        *(nn.Flatten(2), Total(2)),
    )


class Total(nn.Module):
    """Sum over one dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(..., n, ...) to (..., ...)."""
        return x.sum(self.dim)


class Attention(nn.Module):
    """Self-attention with several heads, written out: (N, T, d) to (N, T, d).

    Source
    ------
    Vaswani et al. (2017), Section 3.2.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax weights (N, heads, T, T), which tokens look at which; and values."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1), v

    def forward(self, x: Tensor) -> Tensor:
        """Each token becomes a mixture of the values of all."""
        weights, values = self.weights(x)
        return self.out((weights @ values).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One block of a transformer: attention, then a layer for each token; a shortcut around both.

    Source
    ------
    Dosovitskiy et al. (2021), Eq. (2) and (3).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, d) to (N, T, d)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A small vision transformer: (N, 1, 24, 24) to (N, 5); 36 tokens, one a patch.

    Every token has five non-negative features at the end; the picture's are their sums.

    Source
    ------
    Dosovitskiy et al. (2021), without a class token.
    """

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, PATCH, PATCH)
        self.position = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, KINDS), nn.ReLU(), Total(1))
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Patches, positions, blocks, head."""
        tokens = self.embed(x).flatten(2).mT + self.position
        return self.head(self.blocks(tokens))


NETWORKS = {"cnn": cnn, "vit": ViT}

# Steps of training. On one core a network takes one to two minutes.
STEPS = {"cnn": 3000, "vit": 3600}
SEEDS = (0, 1, 2)


def train(kind: str, seed: int, steps: int | None = None, side: int = 32) -> nn.Module:
    """Train one network: its features' dot products shall be the numbers of equal digits.

    From `side` pictures and `side` others all side x side similarities count at once. Their error
    alone hardly moves a network that knows nothing yet; so beside it stands a hint, ten times the
    error of the features as counts of the digits.

    Parameters
    ----------
    kind : str
        "cnn" or "vit".
    seed : int
        Of the first weights and of the pictures.
    steps : int, optional
        Default: `STEPS`.
    side : int

    Raises
    ------
    ValueError
        For another kind.
    """
    net, steps = _untrained(kind, seed), steps or STEPS[kind]
    images, labels = _digits()
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.01)
    plan = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda k: min(1, 20 * (k + 1) / steps) * (1 + math.cos(math.pi * k / steps)) / 2
    )
    for _ in range(steps):
        batch = _drawn(2 * side, generator, False, images, labels)
        phi, counts = net(batch.pixels), batch.counts()
        error = phi[:side] @ phi[side:].T - counts[:side] @ counts[side:].T
        loss = error.square().mean() + 10 * (phi - counts).square().mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        plan.step()
    return net.eval().requires_grad_(False)


def _untrained(kind: str, seed: int) -> nn.Module:
    if kind not in NETWORKS:
        raise ValueError(f"kind must be one of {', '.join(NETWORKS)}, got {kind!r}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: nn.Module = NETWORKS[kind]()  # type: ignore[operator]
    last = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-1]
    with torch.no_grad():  # a small start: features are sums over many places
        last.weight.mul_(0.1)
        assert last.bias is not None
        last.bias.fill_(0.01)
    return net


def digit_network(kind: str, seed: int = 0, path: str | Path | None = None) -> nn.Module:
    """One of the book's trained networks, for pictures (N, 1, 24, 24) as `scenes` draws them.

    Parameters
    ----------
    kind : str
        "cnn" or "vit".
    seed : int
        Which training; `trained` lists them.
    path : str or Path, optional
        Default: the file that comes with the book.

    Returns
    -------
    nn.Module
        In eval mode, without gradients.

    Raises
    ------
    ValueError
        For another kind or seed.
    FileNotFoundError
        If the file is missing; says where it was looked for.
    """
    net = _untrained(kind, seed)
    saved = _saved(path)
    if f"{kind} {seed}" not in saved:
        raise ValueError(f"{kind} with seed {seed!r} is none of those trained: {', '.join(saved)}")
    net.load_state_dict(saved[f"{kind} {seed}"])
    return net.eval().requires_grad_(False)


def trained() -> list[tuple[str, int]]:
    """Kinds and seeds of the networks that come with the book (FileNotFoundError without them)."""
    pairs = (name.split() for name in _saved(None))
    return [(kind, int(seed)) for kind, seed in pairs]


def _saved(path: str | Path | None) -> dict[str, dict[str, Tensor]]:
    places = PLACES if path is None else (Path(path),)
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            "no weights of the digit networks at "
            + " or ".join(map(str, places))
            + "; they are part of the book's repository (data/digit_scenes.pt), and `make digits` "
            "trains them"
        )
    return torch.load(found, weights_only=True)


def main() -> None:
    """Train those that are missing, of each kind three: `python -m bilrp.models.digit_scenes`."""
    saved = _saved(PLACES[-1]) if PLACES[-1].is_file() else {}
    for kind in NETWORKS:
        for seed in SEEDS:
            if f"{kind} {seed}" not in saved:
                saved[f"{kind} {seed}"] = train(kind, seed).state_dict()
                with replaced(PLACES[-1]) as new:
                    torch.save(dict(sorted(saved.items())), new)
                print(f"{kind}, seed {seed}: trained", flush=True)


if __name__ == "__main__":
    main()
