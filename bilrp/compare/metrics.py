"""Numbers about explanations: agreement, sign, and relevance on known correspondences."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from bilrp._checks import check_whole
from bilrp._names import needs


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of the angle between two explanations of the same pair, in -1..1.

    Raises
    ------
    ValueError
        If the shapes differ, one of them is zero everywhere, or holds NaN or infinity.
    """
    if first.shape != second.shape:
        raise ValueError(f"cosine needs equal shapes, got {first.shape} and {second.shape}")
    a, b = (_direction(t.flatten()[None], "cosine")[0] for t in (first, second))
    return float(a @ b)


def _direction(rows: Tensor, what: str) -> Tensor:
    """Rows of length 1, in float64."""
    rows = rows.double()
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{what}: there are NaN or infinite values")
    largest = rows.abs().amax(1, keepdim=True)
    if not bool((largest > 0).all()):
        raise ValueError(f"{what} is not defined for an explanation of zeros")
    rows = rows / largest  # their squares may be too large or too small
    return rows / rows.norm(dim=1, keepdim=True)


def acs(explanations: Tensor, truth: Tensor) -> float:
    """Average cosine similarity of explanations with their true ones, in -1..1.

    Parameters
    ----------
    explanations, truth : Tensor (N, ...)
        One explanation a pair, and what it should be up to a positive factor.

    Raises
    ------
    ValueError
        If the shapes differ, there is no pair, values are not finite, or an explanation or a truth
        is zero everywhere: the cosine is not defined there, and leaving such pairs out is for the
        caller to decide.

    Source
    ------
    Eberle et al. (2022), Section 4.
    """
    if explanations.shape != truth.shape:
        raise ValueError(f"acs needs equal shapes, got {explanations.shape} and {truth.shape}")
    if truth.dim() < 2 or len(truth) == 0:
        raise ValueError(f"acs needs at least one pair, as (N, ...); got {tuple(truth.shape)}")
    sides = [t.flatten(1).double() for t in (explanations, truth)]
    if not all(bool(torch.isfinite(t).all()) for t in sides):
        raise ValueError("acs: the explanations or truths hold NaN or infinite values")
    for name, t in zip(("explanations", "truths"), sides, strict=True):
        zero = (t == 0).all(1)
        if bool(zero.any()):
            raise ValueError(
                f"acs is not defined for zeros: {int(zero.sum())} of {len(t)} {name} are zero "
                f"everywhere, the first is number {int(zero.nonzero()[0])}; leave those pairs out"
            )
    a, b = (_direction(t, "acs") for t in sides)
    return float((a * b).sum(1).mean())


def negative_share(relevance: Tensor) -> float:
    """Share of negative scores in the sum of all magnitudes, 0..1 (0 where all is zero).

    Raises
    ------
    ValueError
        If there are NaN or infinite scores.
    """
    r = relevance.double()
    if not bool(torch.isfinite(r).all()):
        raise ValueError("the relevance holds NaN or infinite values")
    r = r / r.abs().max().clamp(min=1e-300) if r.numel() else r
    total = float(r.abs().sum())
    return float(r.clamp(max=0).abs().sum()) / total if total else 0.0


def correspondence(row: Tensor, col: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """How much of each patch of x reappears in each patch of x'.

    Parameters
    ----------
    row, col : Tensor (H, W)
        Where each pixel of x lies in x', in pixels; NaN where that is unknown or hidden.
    patch : int
        Side of the patches in pixels.
    size : (int, int)
        Height and width of x' in pixels.

    Returns
    -------
    Tensor (H/p, W/p, H'/p, W'/p)
        Shares of the patch's pixels, 0..1. Pixels that fall outside x' or are unknown count for no
        patch.

    Raises
    ------
    ValueError
        If the patch does not divide both images or row and col differ in shape.
    """
    check_whole("patch", patch)
    if row.dim() != 2 or row.shape != col.shape:
        raise ValueError(
            f"row and col must be (H, W) and alike, got {tuple(row.shape)} and {tuple(col.shape)}"
        )
    height, width = row.shape
    if any(n % patch for n in (height, width, *size)):
        raise ValueError(
            f"patch={patch} must divide the image of {height} x {width} pixels and the other of "
            f"{size[0]} x {size[1]}"
        )
    known = row.isfinite() & col.isfinite()
    r, c = row.nan_to_num(-1).round().long(), col.nan_to_num(-1).round().long()
    known &= (r >= 0) & (r < size[0]) & (c >= 0) & (c < size[1])
    grid = (height // patch, width // patch, size[0] // patch, size[1] // patch)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    index = ((y // patch * grid[1] + x // patch) * grid[2] + r // patch) * grid[3] + c // patch
    count = torch.bincount(index[known], minlength=grid[0] * grid[1] * grid[2] * grid[3])
    return count.view(grid) / patch**2


def share_on(relevance: Tensor, pairs: Tensor) -> float:
    """Share of the positive relevance that lies on given pairs of patches, 0..1.

    Parameters
    ----------
    relevance : Tensor
    pairs : Tensor of bool
        Of the same shape: the pairs that count.

    Raises
    ------
    ValueError
        If the shapes differ or no relevance is positive.
    """
    if relevance.shape != pairs.shape:
        raise ValueError(f"relevance {relevance.shape} and pairs {pairs.shape} differ in shape")
    if pairs.dtype != torch.bool:
        raise ValueError(f"pairs must be a mask of bool, got {pairs.dtype}: give pairs.bool()")
    positive = relevance.clamp(min=0).double()
    total = float(positive.sum())
    if total == 0:
        raise ValueError("no relevance is positive")
    return float(positive[pairs].sum()) / total


def invariance(features: Tensor, clip: Tensor, frame: Tensor, radius: int = 5) -> float:
    """How much more similar frames are that are near in time: Inv = <y>_local / <y>_global.

    Local pairs are those of one clip at most `radius` frames apart (a frame with itself
    included), global pairs are all.

    Parameters
    ----------
    features : Tensor (N, D)
        phi(x) of each frame; y(x, x') is the dot product.
    clip, frame : Tensor (N,) of int
        Which clip each frame is from, and its number in it.
    radius : int
        Greatest distance in frames.

    Returns
    -------
    float
        1 for features that do not tell clips apart; no unit.

    Raises
    ------
    ValueError
        For other shapes, values that are not finite, a clip with a single frame, no local pair of
        two different frames, or a mean similarity over all pairs that is not positive.

    Source
    ------
    Eberle et al. (2022), Eq. (7).
    """
    clip, frame = torch.as_tensor(clip), torch.as_tensor(frame).double()  # to be subtracted
    n = len(features)
    if features.dim() != 2 or clip.shape != (n,) or frame.shape != (n,) or n < 2:
        raise ValueError(
            "invariance needs features (N, D), clip (N,) and frame (N,) with N >= 2; got "
            f"{tuple(features.shape)}, {tuple(clip.shape)} and {tuple(frame.shape)}"
        )
    if radius < 1:
        raise ValueError(f"radius must be at least 1 frame, got {radius}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("the features hold NaN or infinite values")
    which, count = clip.unique(return_counts=True)
    if int(count.min()) < 2:
        raise ValueError(
            f"clip {which[count.argmin()].item()} has a single frame, so nothing in it can be "
            "compared; leave it out or give more frames"
        )
    near = (clip[:, None] == clip) & ((frame[:, None] - frame).abs() <= radius)
    if int(near.sum()) <= n:
        raise ValueError(
            f"no two frames of a clip are within radius={radius}; frames are numbered "
            f"{frame.unique()[:4].tolist()}, ...: give a larger radius or frames closer in time"
        )
    y = features.double() @ features.double().T
    everywhere = float(y.mean())
    if everywhere <= 0:
        raise ValueError(f"the mean similarity must be positive, got {everywhere:.4g}")
    return float(y[near.to(y.device)].mean()) / everywhere


def svm_accuracy(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    C: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
    folds: int = 4,
) -> float:
    """Test accuracy of a linear support vector machine on given features.

    It needs the features' dot products only, so their number D may be large. They are divided by
    the mean squared length of the training features, which gives C the same meaning for every
    layer of a network. C is chosen by cross-validation on the training set.

    Parameters
    ----------
    features : Tensor (N, D)
    labels : Tensor (N,) of int
    train : Tensor (N,) of bool
        Which examples to train on; the others are for the test.
    C : sequence of float
        Values to choose from.
    folds : int
        Of the cross-validation: stratified, or where a class has fewer members, plain.

    Returns
    -------
    float
        Share of the test examples that are classified correctly, 0..1.

    Raises
    ------
    ValueError
        For labels or a mask of another length, values that are not finite, an empty training or
        test set, a single class to train on, or fewer training examples than folds.

    Source
    ------
    Eberle et al. (2022), Section 5.1, Table 1.
    """
    with needs("book"):
        from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
        from sklearn.svm import SVC

    labels, train = torch.as_tensor(labels), torch.as_tensor(train)
    n = len(features)
    if features.dim() != 2 or labels.shape != (n,) or train.shape != (n,):
        raise ValueError(
            "svm_accuracy needs features (N, D), labels (N,) and train (N,); got "
            f"{tuple(features.shape)}, {tuple(labels.shape)} and {tuple(train.shape)}"
        )
    if train.dtype != torch.bool:
        raise ValueError(f"train must be a mask of bool, got {train.dtype}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("the features hold NaN or infinite values")
    if len(C) == 0 or not all(0 < c < math.inf for c in C):
        raise ValueError(f"C must be positive numbers to choose from, got {C!r}")
    count = labels[train].unique(return_counts=True)[1]
    if not folds >= 2 or int(train.sum()) < folds or bool(train.all()):
        raise ValueError(
            f"{int(train.sum())} of {n} examples are for training, with folds={folds}: at least "
            "two folds, as many training examples as folds, and one test example are needed"
        )
    if len(count) < 2:
        raise ValueError(f"the training set holds {len(count)} class; at least 2 are needed")
    train = train.to(features.device)
    f = features.double()
    f = f / f[train].square().sum(1).mean().sqrt().clamp(min=1e-300)
    gram, known = (f @ f[train].T).cpu().numpy(), train.cpu().numpy()
    splitter = StratifiedKFold if int(count.min()) >= folds else KFold
    search = GridSearchCV(
        SVC(kernel="precomputed"),
        {"C": list(C)},
        cv=splitter(folds, shuffle=True, random_state=0),
        error_score="raise",
    )
    target = labels.cpu().numpy()
    with warnings.catch_warnings():
        # Many classes with few examples each are what identification is about.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        try:
            search.fit(gram[known], target[known])
        except ValueError as error:  # of a fold
            raise ValueError(
                f"a fold of {folds} holds a single class of the training examples, so C cannot be "
                "chosen; give more examples of each class, or fewer folds"
            ) from error
    return float(search.score(gram[~known], target[~known]))
