"""The bigram network: a page of digits to the number of times each pair of digits stands in it.

Eberle et al. (2022), Section 6.2.1 and Fig. 11 B. Convolutions find the digits; a fixed head of
min, max and sum counts pairs of neighbours, so that the similarity of two pages is about what
their tables say. `BigramNetwork` is a plain sequence of layers that `bilrp.explain` takes apart.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilrp._checks import check_whole, is_whole
from bilrp._files import replaced
from bilrp._names import needs
from bilrp.engine.modules import RelevanceMap, Step
from bilrp.engine.registered import register
from bilrp.engine.rules import Rule

SHIFTS = (8, 10, 12)  # pixels between neighbouring digits, Section 6.2.1
_HERE = Path(__file__).resolve().parent
PLACES = (_HERE / "bigram.pt", _HERE.parents[1] / "data" / "bigram.pt")  # a wheel, a checkout


class Ink(nn.Module):
    """A page as a map of its ink: (N, 1 or 3, H, W) in [0, 1] to (N, 1, H, W), 0 is paper.

    1. Grey is the mean of the channels. The polarity: fine structure g - blur(g) has a negative
       third moment where it is darker than the paper, as ink is; otherwise the page is inverted.
    2. The paper b is the grey closing of g with a square, smoothed: it fills whatever is narrower
       than the square, so it follows stains and shade but not strokes. The depth is max(0, b - g).
    3. The contrast c = sum depth^3 / sum depth^2 is the depth of typical strokes, however many
       there are. The ink is depth / c without its lowest quarter, up to 1. c is at least
       `least_contrast`: a page without ink gives zeros instead of its magnified grain.

    For relevance the layer is a wire: what an ink pixel gets belongs to that pixel of the page,
    to its three colours in equal parts.

    Parameters
    ----------
    digit_height : float, optional
        Height in pixels of the characters of the pages on which the following layers were trained,
        as `character_height` measures it. Pages of another scale then cause a warning.
    paper : int
        Side of the square of the closing in pixels, odd and larger than any stroke is wide.
    least_contrast : float
        Smallest contrast that is taken for ink.

    Raises
    ------
    ValueError
        For parameters out of their range; in `forward` for anything but pages in [0, 1].

    Warns
    -----
    UserWarning
        If `digit_height` is given and the characters of a page are more than 1.4 times larger or
        smaller; the warning says by how much to resize.
    """

    def __init__(
        self, digit_height: float | None = None, paper: int = 15, least_contrast: float = 0.12
    ) -> None:
        super().__init__()
        if not is_whole(paper, 3) or paper % 2 == 0:
            raise ValueError(f"paper must be an odd number of pixels >= 3, got {paper!r}")
        if not 0 < least_contrast <= 1:
            raise ValueError(f"least_contrast must be in (0, 1], got {least_contrast}")
        if digit_height is not None and not 0 < digit_height < float("inf"):
            raise ValueError(f"digit_height must be a positive number or None, got {digit_height}")
        self.digit_height, self.paper, self.least_contrast = digit_height, paper, least_contrast

    def extra_repr(self) -> str:
        return f"digit_height={self.digit_height}"

    @torch.no_grad()
    def forward(self, page: Tensor) -> Tensor:
        _check_page(page)
        grey = page.mean(1, keepdim=True)
        fine = grey - _blur(grey, 2 * self.paper + 1)
        bright = (fine**3).sum((1, 2, 3), keepdim=True) > 0
        grey = torch.where(bright, 1 - grey, grey)

        n = self.paper
        smooth = _blur(grey, 3)  # else the closing would follow the brightest grains
        wide = F.max_pool2d(smooth, n, 1, n // 2)
        paper = _blur(-F.max_pool2d(-wide, n, 1, n // 2), n)
        depth = (paper - grey).clamp(min=0)

        squares = (depth**2).sum((1, 2, 3), keepdim=True)
        contrast = (depth**3).sum((1, 2, 3), keepdim=True) / squares.clamp(min=1e-12)
        ink = depth / contrast.clamp(min=self.least_contrast)
        ink = ((ink - 0.25) / 0.75).clamp(0, 1)
        ink = ink * (2 * contrast / self.least_contrast - 1).clamp(0, 1)
        self._warn_of_scale(ink)
        return ink

    def _warn_of_scale(self, ink: Tensor) -> None:
        if self.digit_height is None:
            return
        for page in ink:
            height = character_height(page)
            if height is not None and not 1 / 1.4 <= height / self.digit_height <= 1.4:
                warnings.warn(
                    f"the characters on this page are about {height:.0f} pixels tall; the digit "
                    f"maps were trained on {self.digit_height:.0f} pixels. Resize the page by "
                    f"the factor {self.digit_height / height:.2f} first",
                    UserWarning,
                    stacklevel=3,
                )


def character_height(ink: Tensor, least: int = 8) -> float | None:
    """Height in pixels of the tall characters in an ink map (1, H, W), None where there are none.

    Characters are connected parts of ink, 4 pixels tall or more, that are neither flat nor thin as
    rules and smudges are; at least `least` of them are needed. Three quarters are no taller than
    the result: small letters, small old-style figures and specks hardly matter to it.
    """
    with needs("book"):
        from scipy import ndimage

    parts, count = ndimage.label(ink[0].cpu().numpy() > 0.35, structure=np.ones((3, 3)))
    boxes = ndimage.find_objects(parts, count)
    sizes = [(rows.stop - rows.start, cols.stop - cols.start) for rows, cols in boxes]
    heights = [h for h, w in sizes if h >= 4 and 0.25 * h <= w <= 1.6 * h]
    return float(np.quantile(heights, 0.75)) if len(heights) >= least else None


class And(nn.Module):
    """Continuous AND of two neighbouring digits: (N, M, H, W) to (N, S M^2, H, W).

    Channel s M^2 + M j + k is, with tau_s the shift to the left by the s-th number of pixels,

        a_jk^(s) = min(a_j, tau_s(a_k)),    tau_s(a)(y, x) = a(y, x + shift_s), 0 outside.

    All relevance goes to the smaller of the two, the first where they are equal.

    Parameters
    ----------
    shifts : sequence of int
        Candidate distances of neighbours in pixels, all positive.
    maps : int, optional
        M, to refuse any other number. Default: as many as come.

    Notes
    -----
    The output holds S M^2 numbers per pixel: 300 for 10 digits and 3 shifts, 79 MB for one
    page of 256 x 256 pixels in float32. Give large pages one at a time.

    Source
    ------
    Eberle et al. (2022), Section 6.2.1; relevance by Eq. (3) and (6).
    """

    def __init__(self, shifts: Sequence[int] = SHIFTS, maps: int | None = None) -> None:
        super().__init__()
        self.shifts, self.maps = _checked_shifts(shifts), maps

    def extra_repr(self) -> str:
        return f"shifts={self.shifts}"

    def forward(self, a: Tensor) -> Tensor:
        _check_maps(a, "And")
        if self.maps not in (None, a.shape[1]):
            raise ValueError(
                f"digit_maps must give {self.maps} maps, one for each digit: (N, {self.maps}, H, "
                f"W); it gave the shape {tuple(a.shape)}"
            )
        shifted = (F.pad(a, (0, shift))[..., shift:] for shift in self.shifts)
        return torch.cat(
            [torch.minimum(a[:, :, None], b[:, None]).flatten(1, 2) for b in shifted], 1
        )


class Or(nn.Module):
    """Continuous OR over the shifts: (N, S C, H, W) to (N, C, H, W), a_c = max_s a_c^(s).

    All relevance goes to the largest, the first where several are.

    Parameters
    ----------
    count : int
        S, the number of alternatives.

    Source
    ------
    Eberle et al. (2022), Section 6.2.1; relevance by Eq. (3) and (6).
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        check_whole("count", count)
        self.count = count

    def extra_repr(self) -> str:
        return f"count={self.count}"

    def forward(self, a: Tensor) -> Tensor:
        return self._alternatives(a).max(1).values

    def _alternatives(self, a: Tensor) -> Tensor:
        _check_maps(a, "Or")
        if a.shape[1] % self.count:
            raise ValueError(
                f"Or(count={self.count}) needs {self.count} maps for each output; got "
                f"{a.shape[1]} maps, of shape {tuple(a.shape)}"
            )
        return a.unflatten(1, (self.count, -1))


class SumPool(nn.Module):
    """Sum over the page: (N, C, H, W) to (N, C), phi_c = sum_yx a_c(y, x).

    For a_c >= 0 this is the norm ||a_c||_1. Relevance is shared in proportion to what each place
    adds to the sum.

    Source
    ------
    Eberle et al. (2022), Section 6.2.1; relevance by Eq. (3) and (6).
    """

    def forward(self, a: Tensor) -> Tensor:
        _check_maps(a, "SumPool")
        return a.sum((2, 3))


class BigramNetwork(nn.Sequential):
    """Counts of all pairs of neighbouring digits on a page: (N, C, H, W) to (N, 100).

    A sequence of four named parts: `digits` (the given network), `both` (`And`), `any_shift` (`Or`)
    and `count` (`SumPool`). Feature 10 j + k counts digit j followed by digit k, in units of one
    blob's sum; the similarity of two pages is y = <phi(x), phi(x')>, of pages of any two sizes.

    Parameters
    ----------
    digit_maps : nn.Module
        Gives ten maps (N, 10, H, W), none of them negative, with a blob of activation where a digit
        of that kind is.
    shifts : sequence of int
        Candidate distances of neighbours in pixels.

    Raises
    ------
    ValueError
        If `digit_maps` is no module or gives another number of maps (found now, where it ends with
        a convolution, or at the first page), or shifts are not positive whole numbers.

    Examples
    --------
    >>> net = bilrp.BigramNetwork.load()
    >>> e = bilrp.explain(net, page, page2, rules=bilrp.Gamma(0.5), patch=8)

    Source
    ------
    Eberle et al. (2022), Section 6.2.1.
    """

    def __init__(self, digit_maps: nn.Module, shifts: Sequence[int] = SHIFTS) -> None:
        super().__init__()
        if not isinstance(digit_maps, nn.Module):
            raise ValueError(
                "digit_maps must be an nn.Module that gives ten maps (N, 10, H, W), got "
                f"{type(digit_maps).__name__}"
            )
        last = [m for m in digit_maps.modules() if isinstance(m, nn.Conv2d)][-1:]
        if last and last[0].out_channels != 10:
            raise ValueError(
                f"digit_maps must give 10 maps, one for each digit; its last convolution has "
                f"{last[0].out_channels} output channels"
            )
        self.digits, self.both = digit_maps, And(shifts, maps=10)
        self.any_shift, self.count = Or(len(self.both.shifts)), SumPool()

    def __getitem__(self, index: int | slice) -> nn.Module:
        """One part, or several as a plain `nn.Sequential`, such as net[:-1] without the sum."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)

    @classmethod
    def load(cls, path: str | Path | None = None) -> BigramNetwork:
        """The network of the book, trained on rendered tables; digits about 14 pixels tall.

        Takes pages in [0, 1], (N, 1, H, W) or (N, 3, H, W), dark on light or light on dark, with
        neighbouring digits 8 to 12 pixels apart; its first layer is `Ink`.

        Parameters
        ----------
        path : str or Path, optional
            A file written by `save`. Default: the one that comes with the book.

        Raises
        ------
        FileNotFoundError
            If the file is missing; says where it was looked for.
        """
        places = PLACES if path is None else (Path(path),)
        found = next((p for p in places if p.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                "no weights of the bigram network at "
                + " or ".join(map(str, places))
                + "; they are part of the book's repository (data/bigram.pt), and the chapter on "
                "the bigram network trains them with RETRAIN = True"
            )
        saved = torch.load(found, weights_only=True)
        with torch.random.fork_rng():  # weights that are drawn, and replaced
            convolutions = digit_convolutions()
        convolutions.load_state_dict(saved["weights"])
        digits = nn.Sequential(Ink(saved["digit_height"]), *convolutions)
        return cls(digits, saved["shifts"]).eval().requires_grad_(False)

    def save(self, path: str | Path) -> None:
        """Write the weights of a network made of `Ink` and `digit_convolutions()`, for `load`."""
        ink, *convolutions = self.digits.children()
        weights = nn.Sequential(*convolutions).state_dict()
        digit_convolutions().load_state_dict(weights)  # refuses what load could not read
        saved = dict(weights=weights, digit_height=ink.digit_height, shifts=self.both.shifts)
        with replaced(path) as new:
            torch.save(saved, new)


def digit_convolutions(width: int = 24) -> nn.Sequential:
    """An untrained stack from ink maps (N, 1, H, W) to digit maps (N, 10, H, W).

    Four convolutions without stride, the later ones dilated, see 21 x 21 pixels around each place;
    a fifth of 1 x 1 gives the ten maps. There are no biases: maps are in proportion to the ink,
    paper gives exactly 0, and explanations lose nothing (Eberle et al. 2022, Proposition 1).
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(16, width, 3, padding=2, dilation=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=3, dilation=3, bias=False),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=3, dilation=3, bias=False),
        nn.ReLU(),
        nn.Conv2d(2 * width, 10, 1, bias=False),
        nn.ReLU(),
    )


class Wire(RelevanceMap):
    """Relevance map of `Ink`: pixel by pixel, colours in equal parts."""

    def __init__(self, step: Step, page: Tensor) -> None:
        super().__init__(step, step.module(page))
        self.channels = page.shape[1]

    def pull(self, relevance: Tensor) -> Tensor:
        return (relevance / self.channels).expand(-1, self.channels, -1, -1)

    def push(self, u: Tensor) -> Tensor:
        return u.mean(1, keepdim=True)

    def prune(self, live: Tensor) -> Tensor:
        return live.expand(-1, self.channels, -1, -1)


class Links(RelevanceMap):
    """A relevance map as a list of links: output `target` gives `share` of its own to `source`.

    Only living outputs have links: of the hundreds of maps of a bigram network, almost all is zero.

    Parameters
    ----------
    a : Tensor (N, ...)
        Input of the layer.
    source, target : Tensor (L,) of int
        Numbers of inputs and outputs, flattened with the batch.
    share : Tensor (L,), optional
        Default: 1, all to the source.
    """

    def __init__(
        self,
        step: Step,
        a: Tensor,
        output: Tensor,
        source: Tensor,
        target: Tensor,
        share: Tensor | None = None,
    ) -> None:
        super().__init__(step, output)
        self.shape, self.source, self.target, self.share = a.shape, source, target, share

    def pull(self, relevance: Tensor) -> Tensor:
        return self._along(relevance, self.target, self.source, self.shape)

    def push(self, u: Tensor) -> Tensor:
        return self._along(u, self.source, self.target, self.output.shape)

    def prune(self, live: Tensor) -> Tensor:
        keep = live.reshape(-1)[self.target]
        self.source, self.target = self.source[keep], self.target[keep]
        if self.share is not None:
            self.share = self.share[keep]
        live_in = torch.zeros(self.shape, dtype=torch.bool, device=live.device)
        live_in.view(-1)[self.source] = True
        return live_in

    def _along(self, v: Tensor, start: Tensor, end: Tensor, shape: torch.Size) -> Tensor:
        # Any number of relevances may be at work at ONE input; else one belongs to each input.
        rows = v.shape[0] if shape[0] == 1 else 1
        moved = v.reshape(rows, -1).index_select(1, start)
        if self.share is not None:
            moved = moved * self.share
        out = v.new_zeros(rows, shape.numel())
        return out.scatter_add_(1, end.expand(rows, -1), moved).view(v.shape[0], *shape[1:])


@register(Ink)
def _wire(step: Step, a: Tensor, rule: Rule | None, product: torch.dtype | None) -> RelevanceMap:
    return Wire(step, a)


@register(And)
def _smaller(step: Step, a: Tensor, rule: Rule | None, product: torch.dtype | None) -> RelevanceMap:
    output = step.module(a)
    a = a.contiguous()
    m, height, width = a.shape[1:]
    target = output.reshape(-1).nonzero()[:, 0]
    rest, x = target.div(width, rounding_mode="floor"), target % width
    rest, y = rest.div(height, rounding_mode="floor"), rest % height
    rest, k = rest.div(m, rounding_mode="floor"), rest % m
    rest, j = rest.div(m, rounding_mode="floor"), rest % m
    shifts = torch.tensor(step.module.shifts, device=a.device)
    page, s = rest.div(len(shifts), rounding_mode="floor"), rest % len(shifts)
    x2 = x + shifts[s]
    left = ((page * m + j) * height + y) * width + x
    right = ((page * m + k) * height + y) * width + x2.clamp(max=width - 1)
    flat = a.view(-1)
    beyond = x2 >= width
    second = flat[right].masked_fill(beyond, 0)
    source = torch.where((flat[left] <= second) | beyond, left, right)
    return Links(step, a, output, source, target)


@register(Or)
def _largest(step: Step, a: Tensor, rule: Rule | None, product: torch.dtype | None) -> RelevanceMap:
    assert isinstance(step.module, Or)
    alternatives = step.module._alternatives(a)
    output, winner = alternatives.max(1)  # the first of several
    each = output[0].numel()
    target = output.reshape(-1).nonzero()[:, 0]
    page = target.div(each, rounding_mode="floor")
    winner = winner.reshape(-1)[target]
    source = (page * step.module.count + winner) * each + target % each
    return Links(step, a, output, source, target)


@register(SumPool)
def _sum(step: Step, a: Tensor, rule: Rule | None, product: torch.dtype | None) -> RelevanceMap:
    output = step.module(a)
    values = a.reshape(-1)
    source = values.nonzero()[:, 0]
    target = source.div(a[0, 0].numel(), rounding_mode="floor")
    share = values[source] / output.reshape(-1)[target]
    share = share.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # where a signed sum is 0
    return Links(step, a, output, source, target, share)


def _blur(x: Tensor, size: int) -> Tensor:
    """Mean over a square; over its part within the page at the border."""
    return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)


def _checked_shifts(shifts: Sequence[int]) -> tuple[int, ...]:
    what = "shifts must be one or more whole numbers of pixels >= 1, such as (8, 10, 12)"
    if isinstance(shifts, str | int) or not isinstance(shifts, Sequence) or len(shifts) == 0:
        raise ValueError(f"{what}; got {shifts!r}")
    if not all(is_whole(s) for s in shifts):
        raise ValueError(f"{what}; got {shifts!r}")
    return tuple(shifts)


def _check_maps(a: Tensor, layer: str) -> None:
    if a.dim() != 4:
        raise ValueError(f"{layer} needs maps (N, C, H, W), got the shape {tuple(a.shape)}")


def _check_page(page: Tensor) -> None:
    if page.dim() != 4 or page.shape[1] not in (1, 3) or page[0].numel() == 0:
        raise ValueError(
            "a page is (N, 1, H, W) in grey or (N, 3, H, W) in colour, got the shape "
            f"{tuple(page.shape)}"
        )
    if not page.is_floating_point():
        raise ValueError(f"a page holds floating-point numbers in [0, 1], got {page.dtype}")
    low, high = float(page.min()), float(page.max())
    if not (low >= -1e-4 and high <= 1 + 1e-4):
        raise ValueError(
            f"a page holds values in [0, 1], found {low:.4g} to {high:.4g}; divide pixels by 255, "
            "and do not normalise"
        )
