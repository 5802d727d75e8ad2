"""Who owns the input: patches of an image, tokens, or any groups of features."""

from __future__ import annotations

import math
from contextlib import suppress

import torch
from torch import Tensor

from bilrp.engine.shadow import exact, place_and_format, same_chance, shadow


def check_finite(x: Tensor) -> None:
    """ValueError if the input holds NaN or infinity."""
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinite values; clean them before explaining")


class Groups:
    """Groups of input features, as owners: u is their indicator.

    Parameters
    ----------
    batch : Tensor (1, ...)
        The input.
    groups : int, Tensor of int, or None
        A number of consecutive features; the group id of each feature, of each row (T,) of rows
        (T, d), or of each place for all channels: (L,) of a signal (C, L), (H, W) of an image,
        (T, H, W) of a film. None for one owner a feature of a vector, a token of a sequence.

    Raises
    ------
    ValueError
        For groups that do not fit the input.
    """

    def __init__(self, batch: Tensor, groups: int | Tensor | None) -> None:
        shape = batch.shape[1:]
        if groups is None and len(shape) > 1 and len(shape) != 3:
            if len(shape) != 2:
                raise ValueError(
                    f"say who owns an input of the shape {tuple(shape)}: groups=, a tensor of "
                    f"whole numbers >= 0 of that shape or {tuple(shape[1:])}"
                )
            groups = torch.arange(shape[0])
        if groups is None or (isinstance(groups, int) and not isinstance(groups, bool)):
            size = 1 if groups is None else groups
            if size < 1 or shape.numel() % size:
                raise ValueError(
                    f"groups={groups} consecutive features must divide the {shape.numel()} "
                    "features of the input"
                )
            self.ids = torch.arange(shape.numel()).div(size, rounding_mode="floor").view(shape)
        else:
            self.ids = _checked(groups, shape).expand(shape)
        self.grid: tuple[int, ...] = (int(self.ids.max()) + 1,)

    def indicator(self, numbers: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
        """1 at the features of each group, (len(numbers), 1, ...)."""
        own = self.ids == numbers.view(-1, *[1] * self.ids.dim())
        return own[:, None].to(device=like.device, dtype=dtype)

    def pool(self, relevance: Tensor) -> Tensor:
        """Sum relevance (K, ...) over groups: (groups, K)."""
        out = relevance.new_zeros(self.grid[0], len(relevance))
        return out.index_add_(0, self.ids.flatten().to(out.device), relevance.flatten(1).T)


def _checked(groups: object, shape: torch.Size) -> Tensor:
    try:
        ids = torch.as_tensor(groups).cpu()
        ids = ids.long() if ids.dtype in (torch.uint16, torch.uint32, torch.uint64) else ids
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"groups must be a number, or whole numbers >= 0; got {type(groups).__name__}"
        ) from error
    per_row = len(shape) == 2 and ids.shape == shape[:1]
    fits = ids.shape == shape or per_row or (len(shape) > 1 and ids.shape == shape[1:])
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not fits or not whole or int(ids.min()) < 0:
        accepted = [shape, shape[:1], shape[1:]] if len(shape) == 2 else [shape, shape[1:]]
        also = " or ".join(str(tuple(s)) for s in accepted[: 1 if len(shape) == 1 else 3])
        raise ValueError(
            f"groups must be a number, or whole numbers >= 0 of shape {also}; got {ids.dtype} of "
            f"shape {tuple(ids.shape)}"
        )
    if int(ids.max()) > 1000 + 100 * ids.numel():
        raise ValueError(
            f"groups has the id {int(ids.max())} and {ids.unique().numel()} different ones; number "
            "them from 0 on, as groups.unique(return_inverse=True)[1] does"
        )
    return (ids[:, None] if per_row else ids).long()


class Patches(Groups):
    """Square patches of an image."""

    def __init__(self, batch: Tensor, patch: int) -> None:
        height, width = batch.shape[2:]
        if patch < 1 or height % patch or width % patch:
            both = math.gcd(height, width)
            fits = [d for d in range(1, both + 1) if both % d == 0]
            raise ValueError(
                f"patch={patch} does not divide the image of {height} x {width} pixels; "
                f"{', '.join(map(str, fits))} would, or resize the image"
            )
        self.patch = patch
        rows, cols = torch.arange(height) // patch, torch.arange(width) // patch
        ids = rows[:, None] * (width // patch) + cols
        self.ids = ids.expand(batch.shape[1:])
        self.grid = (height // patch, width // patch)

    def pool(self, relevance: Tensor) -> Tensor:
        relevance = relevance.flatten(0, 1) if relevance.dim() == 5 else relevance
        summed = relevance.sum(1).unflatten(2, (-1, self.patch)).unflatten(1, (-1, self.patch))
        return summed.sum((2, 4)).flatten(1).T


def owners_of(batch: Tensor, patch: int, groups: int | Tensor | None) -> Groups:
    """The owners that the arguments of `bilrp.explain` mean."""
    if groups is None and batch.dim() == 4 and batch.is_floating_point():
        return Patches(batch, patch)
    return Groups(batch, groups)


def one_input(x: Tensor, model: torch.nn.Module) -> Tensor:
    """A single input as the model takes it, with a batch dimension of 1.

    A tensor is one input: a vector (d,), an image (C, H, W), tokens (T, d) or (T,) of whole
    numbers; a leading 1 is its batch dimension. Where the model begins with a convolution, the
    number of dimensions tells whether there is one.

    Raises
    ------
    ValueError
        If it is no tensor of numbers, or a batch.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if x.dtype == torch.bool or x.is_complex() or x.dtype == torch.uint8:
        raise ValueError(
            "x must hold floating-point numbers, or the whole numbers (int64) of tokens; got "
            f"{x.dtype}"
        )
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(f"x is empty or a single number: its shape is {tuple(x.shape)}")
    item = _dimensions(model) if x.is_floating_point() else 1
    if item is not None and item > 1 and _adds_a_channel(model, x, item):
        return x if x.dim() == item else x[None]
    if item is not None and x.dim() == item:
        return x[None]
    if x.shape[0] == 1 and x.dim() > 1 and (item is None or x.dim() == item + 1):
        return x
    if x.dim() == (3 if item is None else item) + 1:
        raise ValueError(
            f"give one input at a time, got a batch of {len(x)}: {tuple(x.shape)}. Several inputs "
            "are a list: [x1, x2, ...]"
        )
    if item is None and x.dim() < 4:
        return x[None]
    expected = {1: "(N, C, L)", 2: "(N, C, L)", 3: "(N, C, H, W)", 4: "(N, C, T, H, W)"}
    raise ValueError(
        f"x must be {_wanted(model) or expected.get(item or 3)}, or one of these without N; got "
        f"the shape {tuple(x.shape if x.dim() > (item or 3) else (1, *x.shape))}"
    )


_CONVOLUTIONS = {torch.nn.Conv1d: 2, torch.nn.Conv2d: 3, torch.nn.Conv3d: 4}


def _first(model: torch.nn.Module, kinds: tuple) -> torch.nn.Module | None:
    return next((m for m in model.modules() if isinstance(m, kinds)), None)


def _dimensions(model: torch.nn.Module) -> int | None:
    """Dimensions of one input, from the model's first convolution."""
    first = _first(model, (*_CONVOLUTIONS, torch.nn.Linear))
    return next((n for kind, n in _CONVOLUTIONS.items() if isinstance(first, kind)), None)


def _adds_a_channel(model: torch.nn.Module, x: Tensor, item: int) -> bool:
    """Whether it takes (N, T), or (N, T, F), for a convolution of one channel."""
    first = _first(model, tuple(_CONVOLUTIONS))
    given = x if x.dim() == item and x.shape[0] == 1 else x[None] if x.dim() == item - 1 else None
    if first is None or first.in_channels != 1 or given is None:
        return False
    if x.dim() == item and _seen_by_convolution(model, x[None]) == item + 1:
        return False  # a channel of its own
    return _seen_by_convolution(model, given) == item + 1


@exact()
def _seen_by_convolution(model: torch.nn.Module, batch: Tensor) -> int:
    """Dimensions of what the first convolution is given; 0 if the model cannot run the input."""
    place, form = place_and_format(model, batch, None, None)
    copied = shadow(model, form, place)
    seen: list[int] = []
    first = _first(copied, tuple(_CONVOLUTIONS))
    assert first is not None
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].dim()))
    with same_chance(place), suppress(Exception):
        copied(batch.detach().to(device=place, dtype=form, copy=True))
        return seen[0]
    return 0


def _wanted(model: torch.nn.Module) -> str:
    first = _first(model, tuple(_CONVOLUTIONS))
    if first is None:
        return ""
    sizes = {2: "L", 3: "H, W", 4: "T, H, W"}[_dimensions(model) or 3]
    return f"(N, {first.in_channels}, {sizes})"
