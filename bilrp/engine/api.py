"""BiLRP: exact explanations of a similarity y(x, x') = <phi(x), phi(x')> on pairs of features.

Every patch p of the input owns a share u_k^(p) of every feature a_k (Eberle et al. 2022, Eq. 5,
read forwards). The explanation, pooled over patches, is one matrix product of two factors that each
depend on one input alone:

    R_pp' = sum_k (a_k u_k^(p)) (a'_k u'_k^(p')) = A A'^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bilrp.engine.ownership import (
    Groups,
    Patches,
    parts_of_features,
    pull_projected,
    random_projection,
)
from bilrp.engine.rules import Rules
from bilrp.engine.trace import Trace, check_finite
from bilrp.engine.transforms import MaxOverTransforms
from bilrp.engine.windows import Span, place, product_of_windows, sum_of_windows

if TYPE_CHECKING:
    from bilrp.show.explorer import Explorer


@torch.no_grad()
def lrp(model: nn.Module, x: Tensor, rules: Rules, output: Tensor | None = None) -> Tensor:
    """First-order LRP: relevance of each input feature for given relevances of the outputs.

    Parameters
    ----------
    model : nn.Module
        `nn.Sequential` of supported layers (nested ones are opened); left as it is.
    x : Tensor (...) or (N, ...)
        Network input.
    rules : Rule or mapping from layer numbers to rules
        See `bilrp.Gamma`, `bilrp.vgg16_rules`.
    output : Tensor (...), (N, ...) or, for one input, (K, ...), optional
        Relevances of the outputs; default: the outputs themselves.

    Returns
    -------
    Tensor
        Of the input's shape; (K, ...) for one input and K output relevances.

    Raises
    ------
    ValueError
        For inputs that do not fit the model, hold NaN, or outputs of another shape.
    NotImplementedError
        For a layer without a rule or map.

    Source
    ------
    Bach et al. (2015); rules as in Eberle et al. (2022), Section 3.3.
    """
    batch, single = _batched(x)
    trace = Trace(model, batch, rules)
    shape = tuple(trace.features.shape[1:])
    relevance = trace.features if output is None else output.to(trace.features)
    keep_batch = not single
    if output is not None:
        if tuple(relevance.shape) == shape:
            relevance = relevance[None].expand(len(batch), *shape)
        elif tuple(relevance.shape[1:]) == shape and len(relevance) in (len(batch), 1):
            relevance = relevance.expand(len(batch), *shape)
            keep_batch = keep_batch or len(output) == 1
        elif tuple(relevance.shape[1:]) == shape and len(batch) == 1:
            keep_batch = True
        else:
            raise ValueError(
                f"output must have the shape {shape} or (K, *{shape}) for one input, with K = N "
                f"for N inputs; got {tuple(output.shape)} for {len(batch)} input(s)"
            )
    result = trace.pull(relevance)[0]
    return result if keep_batch else result[0]


@dataclass(frozen=True)
class Factor:
    """What one input contributes to every explanation it takes part in; made by `bilrp.factor`.

    Attributes
    ----------
    values : Tensor (patches, M) or, in windows, (patches, channels, rows, cols)
        A_pk = a_k u_k^(p), the part of feature k that patch p owns. M is the number of features,
        or of projected dimensions.
    grid : tuple of int
        Patches as the explanation arranges them: (H/p, W/p) or (G,).
    absorbed : Tensor (layers, M)
        The parts of the features that the layers' biases own.
    owners : tuple of str
        "input" and the names of the layers with a bias.
    features : Tensor (M,)
        a_k, the sum of all parts.
    feature_shape : tuple of int
        Shape of the model's output before it was flattened to M numbers.
    spans : tuple of Span or None
        Where the windows lie, for factors that are kept in windows.
    """

    values: Tensor
    grid: tuple[int, ...]
    absorbed: Tensor
    owners: tuple[str, ...]
    features: Tensor
    feature_shape: tuple[int, ...]
    spans: tuple[Span, Span] | None = None

    def dense(self) -> Tensor:
        """The factor as one matrix A, (patches, M)."""
        if self.spans is None:
            return self.values
        return place(self.values, *self.spans, self.feature_shape[-2:]).flatten(1)

    def owned(self) -> Tensor:
        """Parts of the features by owner, (owners, M) in float64; the first row is the input's."""
        if self.spans is None:
            whole = self.values.sum(0, dtype=torch.float64)
        else:
            whole = sum_of_windows(self.values, *self.spans, self.feature_shape[-2:]).flatten()
        return torch.cat([whole[None], self.absorbed.double()])

    def explain(self, other: Factor) -> Explanation:
        """Explain the similarity with another input: one matrix product.

        Raises
        ------
        ValueError
            If the two do not have the same number of features, or not the same owners.
        """
        if len(self.features) != len(other.features):
            raise ValueError(
                "the two inputs have different numbers of features, "
                f"{self.feature_shape} and {other.feature_shape}; the dot product needs as many on "
                "both sides: use images of one size, or end the model with global pooling"
            )
        if self.owners != other.owners:
            raise ValueError(f"the factors are of different models: {self.owners}, {other.owners}")
        if self.spans and other.spans and self.feature_shape == other.feature_shape:
            width = self.feature_shape[-1]
            relevance = product_of_windows(
                self.values, *self.spans, other.values, *other.spans, width
            )
        else:
            relevance = self.dense() @ other.dense().T
        return Explanation(
            relevance=relevance.reshape(*self.grid, *other.grid),
            similarity=float(self.features.double() @ other.features.double()),
            owners=self.owners,
            ledger=self.owned() @ other.owned().T,
        )


@dataclass(frozen=True)
class Explanation:
    """The similarity of two inputs, shared out among the pairs of their features.

    Attributes
    ----------
    relevance : Tensor (H/p, W/p, H'/p, W'/p) for images, (G, G') for vectors
        R_pp', in units of the similarity.
    similarity : float
        y(x, x') = <phi(x), phi(x')>.
    owners : tuple of str
        "input", then each layer with a bias, from bottom to top.
    ledger : Tensor (owners, owners), float64
        The whole similarity by pairs of owners. It sums to `similarity`, and its first entry is
        what the inputs carry, the sum of `relevance`.
    """

    relevance: Tensor
    similarity: float
    owners: tuple[str, ...]
    ledger: Tensor

    def __repr__(self) -> str:
        share = float(self.ledger[0, 0]) / self.similarity if self.similarity else 0.0
        shape = " x ".join(map(str, self.relevance.shape))
        return f"Explanation({shape}, similarity={self.similarity:.6g}, inputs carry {share:.1%})"

    @property
    def matrix(self) -> Tensor:
        """`relevance` as a matrix (patches of x, patches of x')."""
        half = self.relevance.dim() // 2
        return self.relevance.flatten(half).flatten(0, half - 1)

    def plot(self, x: Tensor, x2: Tensor, **options):
        """Draw both images with arcs between their patches; see `bilrp.plot.arcs`."""
        from bilrp.show.plot import arcs

        return arcs(self, x, x2, **options)

    def explore(
        self,
        x: Tensor,
        x2: Tensor,
        similarity: Callable[[Tensor, Tensor], float] | None = None,
        names: tuple[str, str] = ("First picture", "Second picture"),
        alt: str | None = None,
    ) -> Explorer:
        """Both images, to point at: shows the partners of a patch; see `bilrp.Explorer`."""
        from bilrp.show.explorer import Explorer

        return Explorer(self, x, x2, similarity, names, alt)


def explain(
    model: nn.Module,
    x: Tensor | Factor,
    x2: Tensor | Factor,
    rules: Rules | None = None,
    patch: int = 8,
    groups: int | Tensor | None = None,
    project: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    chunk: int | None = None,
) -> Explanation:
    """Explain the similarity y(x, x') = <model(x), model(x')> on pairs of input features.

    Parameters
    ----------
    model : nn.Module
        `nn.Sequential` of supported layers, or `bilrp.MaxOverTransforms` of one; evaluated as in
        eval mode and left as it is.
    x, x2 : Tensor (C, H, W) or (1, C, H, W); (d,) or (1, d); or Factor
        The two network inputs, or their factors from `bilrp.factor`.
    rules : Rule or mapping from layer numbers (from 1) or ranges to rules
        Needed unless both inputs are factors.
    patch : int
        Side of the square patches over which relevance of an image is summed, in pixels.
    groups : int or Tensor of int, optional
        Other groups of features: a number of consecutive ones, or the group id 0..G-1 of each
        (shape of the input, or (H, W) for images). Vectors: default 1.
    project : int, optional
        Use the paper's random projection of the features to this many dimensions, scaled so that
        the result is an unbiased estimate of the exact explanation. Default: exact.
    seed : int
        Of the random projection.
    dtype : torch.dtype, optional
        float32, float64; bfloat16 or float16 for the products only. Default: the model's, at least
        float32.
    device : torch.device, optional
        Default: the model's.
    chunk : int, optional
        Patches (or projected dimensions) computed at once. Default: what is fast within about 1 GB.

    Returns
    -------
    Explanation

    Raises
    ------
    ValueError
        For inputs that do not fit the model or each other, NaN, a patch that does not divide the
        image, or pixels outside the bounds of a z^B rule.
    NotImplementedError
        For a layer without a rule or map.
    MemoryError
        If not even one patch at a time fits.

    Source
    ------
    Eberle et al. (2022), Section 3.3; `project` as in Section 5.
    """
    options = dict(
        patch=patch, groups=groups, project=project, seed=seed, dtype=dtype, device=device
    )
    if rules is None and not (isinstance(x, Factor) and isinstance(x2, Factor)):
        raise ValueError("explain needs rules, for example bilrp.Gamma(0.1) or bilrp.vgg16_rules()")
    if isinstance(model, MaxOverTransforms):
        return _explain_best_views(model, x, x2, rules, chunk=chunk, **options)
    first, second = (
        v if isinstance(v, Factor) else factor(model, v, rules, chunk=chunk, **options)
        for v in (x, x2)
    )
    return first.explain(second)


@torch.no_grad()
def factor(
    model: nn.Module,
    x: Tensor,
    rules: Rules,
    patch: int = 8,
    groups: int | Tensor | None = None,
    project: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    chunk: int | None = None,
) -> Factor:
    """The factor A of one input: compute it once, explain the input with any other.

    `factor(model, x, rules).explain(factor(model, x2, rules))` is `explain(model, x, x2, rules)`.
    Parameters and errors are those of `bilrp.explain`.
    """
    for name, value in (("patch", patch), ("project", project), ("chunk", chunk)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
    batch = one_input(x)
    owners = Patches(batch, patch) if groups is None and batch.dim() == 4 else None
    if owners is None:
        owners = Groups(batch, groups)
    trace = Trace(model, batch, rules, dtype, device)
    features = trace.features[0].flatten()
    if project is None:
        values, absorbed, spans = parts_of_features(trace, owners, chunk)
    else:
        projection = random_projection(project, len(features), seed).to(features)
        values, absorbed = pull_projected(trace, owners, projection, chunk)
        features, spans = projection @ features, None
    return Factor(
        values=values,
        grid=owners.grid,
        absorbed=absorbed,
        owners=("input", *trace.absorbing),
        features=features,
        feature_shape=tuple(trace.features.shape[1:]) if project is None else (project,),
        spans=spans,
    )


def _explain_best_views(
    model: MaxOverTransforms,
    x: Tensor | Factor,
    x2: Tensor | Factor,
    rules: Rules,
    groups: int | Tensor | None,
    device: torch.device | str | None,
    **options,
) -> Explanation:
    """Explain the most similar views of two images, in the patches of the images as given."""
    if isinstance(x, Factor) or isinstance(x2, Factor) or groups is not None:
        raise ValueError(
            "with MaxOverTransforms give both images themselves (which views are best depends on "
            "both) and `patch`, not factors or groups"
        )
    place = device or next((p.device for p in model.parameters()), x.device)
    x, x2 = (one_input(v).to(place) for v in (x, x2))
    for v in (x, x2):
        check_finite(v)
    views = model.best(x, x2)
    factors = [
        factor(model.model, view.of(v), rules, device=place, **options)
        for view, v in zip(views, (x, x2), strict=True)
    ]
    e = factors[0].explain(factors[1])
    relevance = views[0].undo(e.relevance, (0, 1))
    return replace(e, relevance=views[1].undo(relevance, (2, 3)))


def one_input(x: Tensor) -> Tensor:
    """A single input with its batch dimension; ValueError for anything else."""
    batch, _ = _batched(x)
    if len(batch) != 1:
        raise ValueError(f"give one input at a time, got a batch of {len(batch)}: {tuple(x.shape)}")
    return batch


def _batched(x: Tensor) -> tuple[Tensor, bool]:
    """The input with its batch dimension, and whether it had to be added."""
    if not isinstance(x, Tensor):
        raise ValueError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"x must hold floating-point numbers, got {x.dtype}")
    if x.dim() in (1, 3):
        return x[None], True
    if x.dim() in (2, 4):
        return x, False
    raise ValueError(
        "x must be an image (C, H, W) or (1, C, H, W), or a vector (d,) or (1, d); got the shape "
        f"{tuple(x.shape)}"
    )
