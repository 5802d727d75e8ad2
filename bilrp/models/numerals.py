"""Roman and Arabic numerals: two encoders of different kinds whose alignment is known.

One encoder reads letters (MDCXVI) with an LSTM, the other digits (1616) with a small transformer.
They are trained so that <f(letters), g(digits)> counts the places, thousands to ones, at which both
have the same digit other than zero: a zero has no letters. Their features are indicators of digits
at places. So we know which letters should be
joined with which digit. `python -m bilrp.models.numerals` trains them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from bilrp._checks import is_whole
from bilrp._files import replaced

LETTERS, DIGITS, LARGEST, PLACES = "IVXLCDM", "0123456789", 3999, 4
SEEDS = (0, 1, 2)
FEATURES = 9 * PLACES  # one for each digit but zero at each place
_VALUES = dict(zip(LETTERS, (1, 5, 10, 50, 100, 500, 1000), strict=True))
_HERE = Path(__file__).resolve().parent
FILES = (_HERE / "numerals.pt", _HERE.parents[1] / "data" / "numerals.pt")  # a wheel, a checkout


def roman(number: int) -> str:
    """The Roman numeral of a number from 1 to 3999, such as "MDCXVI".

    Raises
    ------
    ValueError
        For anything else.
    """
    return "".join(letter for letter, _, _ in _spelled(number))


def letters(numeral: str) -> list[tuple[str, int, int]]:
    """Letter, place (0 for ones, 3 for thousands) and signed value of each letter of a numeral.

    The I of IX counts -1: it is taken away from the X.

    Raises
    ------
    ValueError
        If it is empty, too long, has letters other than I, V, X, L, C, D and M, or is not the
        numeral of any number from 1 to 3999; says what was found.
    """
    if not isinstance(numeral, str) or not numeral:
        raise ValueError(f'give a Roman numeral such as "MDCXVI", got {numeral!r}')
    if unknown := sorted(set(numeral) - set(LETTERS)):
        hint = "; use capital letters" if not set(numeral.upper()) - set(LETTERS) else ""
        raise ValueError(f"{numeral!r} has {unknown}: a Roman numeral is made of {LETTERS}{hint}")
    if len(numeral) > 15:  # MMMDCCCLXXXVIII
        raise ValueError(f"{numeral!r} has {len(numeral)} letters; no numeral has more than 15")
    values = [_VALUES[letter] for letter in numeral]
    signed = [-v if v < w else v for v, w in zip(values, [*values[1:], 0], strict=True)]
    number = sum(signed)
    if not 1 <= number <= LARGEST or roman(number) != numeral:
        like = f": {number} is {roman(number)}" if 1 <= number <= LARGEST else ""
        raise ValueError(f"{numeral!r} is not a Roman numeral from I to MMMCMXCIX{like}")
    return _spelled(number)


def _spelled(number: int) -> list[tuple[str, int, int]]:
    if not is_whole(number, 1, LARGEST):
        raise ValueError(f"give a whole number from 1 to {LARGEST}, got {number!r}")
    found = []
    for place in reversed(range(PLACES)):
        one, five, ten = list((LETTERS + "??")[2 * place : 2 * place + 3])
        digit = number // 10**place % 10
        text = ["", one, one * 2, one * 3, one + five, five, five + one, five + one * 2,
                five + one * 3, one + ten][digit]  # fmt: skip
        minus = digit in (4, 9)
        for at, letter in enumerate(text):
            found.append((letter, place, -_VALUES[letter] if minus and not at else _VALUES[letter]))
    return found


def places(number: int) -> Tensor:
    """The digits of a number, ones first: (4,) of int64."""
    return torch.tensor([number // 10**place % 10 for place in range(PLACES)])


def roman_tokens(numeral: str) -> Tensor:
    """A Roman numeral as the letters' encoder takes it, (T,) of int64. Errors as `letters`."""
    return torch.tensor([LETTERS.index(letter) for letter, _, _ in letters(numeral)])


def arabic_tokens(numeral: str) -> Tensor:
    """An Arabic numeral as the digits' encoder takes it, (T,) of int64, such as "1616".

    Raises
    ------
    ValueError
        If it is no string of one to four digits, begins with 0, or is more than 3999.
    """
    if not isinstance(numeral, str) or not numeral:
        raise ValueError(f'give an Arabic numeral such as "1616", got {numeral!r}')
    if unknown := sorted(set(numeral) - set(DIGITS)):
        raise ValueError(f"{numeral!r} has {unknown}: an Arabic numeral is made of {DIGITS}")
    if len(numeral) > PLACES or numeral[0] == "0" or int(numeral) > LARGEST:
        raise ValueError(f"give a number from 1 to {LARGEST} without leading zeros, got {numeral}")
    return torch.tensor([int(digit) for digit in numeral])


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """How many places agree in a digit other than zero, for places (N, 4) and (N', 4): (N, N')."""
    both = first[:, None] == second[None]
    return (both & (first[:, None] > 0)).sum(2).float()


def truth(numeral: str, digits: str, by: str = "value") -> Tensor:
    """Who should own y: each agreeing place gives 1 to the pairs of its letters and its digit.

    Parameters
    ----------
    numeral, digits : str
        Such as "MDCXVI" and "1616".
    by : str
        How the letters of a place share: "value", by what each adds (X of IX 10/9, I -1/9);
        "equal", all alike.

    Returns
    -------
    Tensor (letters, digits)
        The sum is the number of places that agree.
    """
    if by not in ("value", "equal"):
        raise ValueError(f'by must be "value" or "equal", got {by!r}')
    arabic_tokens(digits)
    spelled, second = letters(numeral), [int(v) for v in digits]
    number = sum(value for _, _, value in spelled)
    made = torch.zeros(len(spelled), len(second))
    for i, (_, place, value) in enumerate(spelled):
        at, digit = len(second) - 1 - place, number // 10**place % 10
        if at >= 0 and second[at] == digit:
            alike = [p for _, p, _ in spelled].count(place)
            made[i, at] = value / (digit * 10**place) if by == "value" else 1 / alike
    return made


def indicators(digits: Tensor) -> Tensor:
    """What the features are trained to be: for places (N, 4), one where a digit stands, (N, 36)."""
    return nn.functional.one_hot(digits, 10)[..., 1:].flatten(1).float()


class Letters(nn.Module):
    """Letters (N, T) of int64 to features (N, K): an LSTM, from left to right, its last state.

    `lengths` (N,) says where the numerals of a padded batch end.
    """

    def __init__(self, width: int = 48, features: int = FEATURES) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), 16)
        self.cells = nn.LSTM(16, width, batch_first=True)
        self.head = nn.Linear(width, features)
        with torch.no_grad():
            bias = self.cells.bias_ih_l0
            assert isinstance(bias, Tensor)
            bias[width : 2 * width] = 1.0  # begin by forgetting little

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.encode(self.embedding(tokens), lengths)

    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Features of embedded letters (N, T, 16)."""
        return torch.relu(self.scores(x, lengths))

    def scores(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The features before their ReLU."""
        states, _ = self.cells(x)
        last = states[:, -1] if lengths is None else states[torch.arange(len(x)), lengths - 1]
        return self.head(last)


class Block(nn.Module):
    """Attention and a small network of its own for each token, both beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(),
                                   nn.Linear(2 * width, width))  # fmt: skip

    def forward(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        a = self.norm(x)
        x = x + self.attention(a, a, a, key_padding_mask=pad, need_weights=False)[0]
        return x + self.inner(self.norm2(x))


class Digits(nn.Module):
    """Digits (N, T) of int64, the first one first, to features (N, K): a transformer of two blocks.

    Positions are counted from the left, so a digit's place has to be found by looking at the
    others. `pad` (N, T) of bool marks what fills a batch up, on the right.
    """

    def __init__(self, width: int = 32, heads: int = 4, features: int = FEATURES) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(DIGITS), width)
        self.position = nn.Parameter(0.5 * torch.randn(PLACES, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(2)])
        self.head = nn.Linear(width, features)

    def forward(self, tokens: Tensor, pad: Tensor | None = None) -> Tensor:
        return self.encode(self.embedding(tokens), pad)

    def encode(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """Features of embedded digits (N, T, width)."""
        return torch.relu(self.scores(x, pad))

    def scores(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """The features before their ReLU."""
        x = x + self.position[: x.shape[1]]
        for block in self.blocks:
            x = block(x, pad)
        if pad is not None:
            x = x.masked_fill(pad[..., None], 0)
        return self.head(x.sum(1))


Encoders = tuple[Letters, Digits]


def numeral_encoders(seed: int = 0, path: str | Path | None = None) -> Encoders:
    """The trained pair (letters, digits) for `bilrp.explain((f, g), roman, arabic)`.

    Parameters
    ----------
    seed : int
        Which of the three trainings: 0, 1 or 2.
    path : str or Path, optional
        A file written by `save`. Default: the one that comes with the book.

    Raises
    ------
    FileNotFoundError
        If the file is missing; says where it was looked for.
    ValueError
        For another seed.
    """
    paths = FILES if path is None else (Path(path),)
    found = next((p for p in paths if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            "no weights of the numeral encoders at " + " or ".join(map(str, paths)) + "; they are "
            "part of the book's repository (data/numerals.pt), and "
            "python -m bilrp.models.numerals trains them"
        )
    saved = torch.load(found, weights_only=True)
    if seed not in saved:
        raise ValueError(f"seed must be one of {sorted(saved)}, got {seed!r}")
    with torch.random.fork_rng():  # weights that are drawn, and replaced
        pair = Letters(), Digits()
    for model, weights in zip(pair, saved[seed], strict=True):
        model.load_state_dict(weights)
        model.eval().requires_grad_(False)
    return pair


def held_out() -> Tensor:
    """Numbers, a fifth of 1 to 3999, that no training sees."""
    order = torch.randperm(LARGEST, generator=torch.Generator().manual_seed(1616)) + 1
    return order[: LARGEST // 5].sort().values


def padded(numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Numbers as batches: letters (N, T), lengths (N,), digits (N, 4), padding (N, 4)."""
    spelled = [roman_tokens(roman(n)) for n in numbers]
    digits = [arabic_tokens(str(n)) for n in numbers]
    letters_, digits_ = (
        nn.utils.rnn.pad_sequence(v, batch_first=True) for v in (spelled, [*digits, torch.zeros(4)])
    )
    lengths = torch.tensor([len(v) for v in spelled])
    digits_ = digits_[:-1].long()
    pad = torch.arange(PLACES) >= torch.tensor([[len(v)] for v in digits])
    return letters_, lengths, digits_, pad


def train(seed: int, steps: int = 500, side: int = 192, rate: float = 8e-3) -> Encoders:
    """Train a pair of encoders on fresh draws of numbers, `side` for each encoder and step.

    Features learn to be `indicators`, and their products to be `agreement` in all pairs. The digits
    of a number are drawn one by one, zero in a quarter of the cases, so that short numbers are not
    rare; half of the Arabic numerals are of the same numbers as Roman ones.
    """
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        f, h = Letters(), Digits()
    weights = [*f.parameters(), *h.parameters()]
    adam = torch.optim.Adam(weights, lr=rate)
    plan = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda k: min(1, 20 * k / steps) * (1 + math.cos(math.pi * k / steps)) / 2
    )
    batches = padded(range(1, LARGEST + 1))
    digits = torch.stack([places(n) for n in range(1, LARGEST + 1)])
    free = torch.ones(LARGEST + 1, dtype=torch.bool)
    free[0] = free[held_out()] = False

    def draw(n: int) -> Tensor:
        drawn = torch.randint(1, 10, (4 * n, PLACES), generator=g)
        drawn[:, 3] = (drawn[:, 3] - 1) % 3 + 1
        drawn = drawn * (torch.rand(drawn.shape, generator=g) > 0.25)
        numbers = drawn @ 10 ** torch.arange(PLACES)
        return numbers[free[numbers]][:n] - 1

    for _ in range(steps):
        at = draw(side)
        at2 = torch.cat([at[torch.randperm(side, generator=g)[: side // 2]], draw(side // 2)])
        longest = int(batches[1][at].max())
        z = f.scores(f.embedding(batches[0][at, :longest]), batches[1][at])
        z2 = h.scores(h.embedding(batches[2][at2]), batches[3][at2])
        phi, phi2 = torch.relu(z), torch.relu(z2)
        loss = (phi @ phi2.T - agreement(digits[at], digits[at2])).square().mean()
        for scores, numbers in ((z, at), (z2, at2)):
            there = indicators(digits[numbers])  # before the ReLU: what is dead can still learn
            missed = there * (scores - 1) + (1 - there) * torch.relu(scores)
            loss = loss + missed.square().sum(1).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        plan.step()
    return f.eval().requires_grad_(False), h.eval().requires_grad_(False)


def error(pair: Encoders, numbers: Tensor, seed: int = 0) -> tuple[float, float]:
    """Over all pairs of these numbers: mean squared error of y, and share that rounds wrongly."""
    first, lengths, second, pad = padded(numbers.tolist())
    digits = torch.stack([places(n) for n in numbers.tolist()])
    with torch.no_grad():
        y = pair[0](first, lengths) @ pair[1](second, pad).T
    wanted = agreement(digits, digits)
    return float((y - wanted).square().mean()), float((y.round() != wanted).float().mean())


def save(pairs: dict[int, Encoders], path: str | Path) -> None:
    """Write trained pairs by seed, for `numeral_encoders`."""
    with replaced(path) as new:
        torch.save({s: [m.state_dict() for m in pair] for s, pair in pairs.items()}, new)


def _main() -> None:
    torch.set_num_threads(1)  # the same sums in the same order on every machine of a kind
    pairs = {}
    for seed in SEEDS:
        pairs[seed] = train(seed)
        mse, wrong = error(pairs[seed], held_out())
        print(f"seed {seed}: held-out pairs, mean squared error {mse:.4f}, {wrong:.2%} wrong")
    save(pairs, FILES[-1])


if __name__ == "__main__":
    _main()
