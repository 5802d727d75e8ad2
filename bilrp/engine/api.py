"""Exact explanations of a similarity y(x, x') = <phi(x), phi(x')> on pairs of input features.

Every owner p of the input owns a part a_k u_k^(p) of every feature a_k (Eberle et al. 2022, Eq. 5,
read forwards). The explanation, pooled over owners, is one matrix product of two factors that each
depend on one input alone:

    R_pp' = sum_k (a_k u_k^(p)) (a'_k u'_k^(p')) = A A'^T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from bilrp._checks import check_whole
from bilrp.engine.defaults import default_rules
from bilrp.engine.explanation import Explanation
from bilrp.engine.factors import Factor, Identity, combined
from bilrp.engine.features import (
    check_sum,
    owned_by_all,
    parts_of_features,
    pull_projected,
    random_projection,
)
from bilrp.engine.fingerprint import fingerprint
from bilrp.engine.owners import check_finite, one_input, owners_of
from bilrp.engine.rules import RuleBook, Rules
from bilrp.engine.shadow import exact, same_chance, shadow
from bilrp.engine.trace import Trace
from bilrp.engine.transforms import MaxOverTransforms

PATCH = 8  # the side of patches, unless one is given
Model = nn.Module | tuple[nn.Module, nn.Module]


@exact()
def lrp(
    model: nn.Module,
    x: Tensor | Sequence[Tensor],
    rules: Rules | None = None,
    output: Tensor | None = None,
) -> Tensor:
    """First-order LRP: relevance of each input feature for given relevances of the outputs.

    Parameters
    ----------
    model : nn.Module
        Any model that `bilrp.explain` takes; left as it is.
    x : Tensor, or list of Tensor
        One network input, or several of one shape.
    rules : Rule or mapping, optional
        See `bilrp.explain`.
    output : Tensor (...), for one input (K, ...), for N inputs (N, ...), optional
        Relevances of the outputs; default: the outputs themselves.

    Returns
    -------
    Tensor
        Of the input's shape; (K, ...) for one input and K output relevances, (N, ...) for N inputs.

    Raises
    ------
    ValueError
        For inputs that do not fit the model, hold NaN, or outputs of another shape.
    NotImplementedError
        For a call without a map.

    Source
    ------
    Bach et al. (2015); rules as in Eberle et al. (2022), Section 3.3.
    """
    _check_model(model)
    several = not isinstance(x, Tensor)
    items = [one_input(v, model) for v in ([x] if isinstance(x, Tensor) else x)]
    for v in items:
        check_finite(v)
    if not items or any(v.shape != items[0].shape for v in items):
        raise ValueError("give one or more inputs of one shape")
    trace = Trace(model, torch.cat(items), default_rules(model) if rules is None else rules)
    shape = tuple(trace.features.shape[1:])
    if trace.features.shape[0] != len(items):
        raise ValueError(f"the model makes {tuple(trace.features.shape)} of {len(items)} inputs")
    if len(items) > 1:
        _compare_with_each(model, items, trace)
    relevance, one = trace.features[None], True
    if output is not None:
        if not isinstance(output, Tensor):
            raise ValueError(f"output must be a torch.Tensor, got {type(output).__name__}")
        relevance = output.to(trace.features)
        one = tuple(output.shape) == shape
        if several and tuple(output.shape) == tuple(trace.features.shape):
            relevance = relevance[None]
        elif one:
            relevance = relevance[None, None].expand(1, len(items), *shape)
        elif not several and tuple(output.shape[1:]) == shape:
            relevance = relevance[:, None]
        else:
            raise ValueError(
                f"output must have the shape {shape} or (K, *{shape}) for one input, with K = N "
                f"for N inputs; got {tuple(output.shape)} for {len(items)} input(s)"
            )
    result, kept = trace.pull(relevance)
    arrived = torch.where(trace.features == 0, 0, relevance).flatten(1).sum(1)
    check_sum(
        result.flatten(1).sum(1) + kept.sum(0),
        arrived,
        lambda: result.abs().flatten(1).sum(1) + kept.abs().sum(0),
        "the relevance that was pulled back",
        trace.tolerance(trace.output),
    )
    if several:
        return result[0]
    result = result[:, 0]
    if isinstance(x, Tensor) and x.dim() == items[0].dim():
        return result[0][None] if one else result
    return result[0] if one else result


def _compare_with_each(model: nn.Module, items: list[Tensor], trace: Trace) -> None:
    """ValueError if a model makes something else of an input when others are beside it."""
    copied = shadow(model, trace.features.dtype, trace.features.device)
    for k, item in enumerate(items):
        with same_chance(trace.features.device):
            alone = copied(item.detach().to(trace.input, copy=True))
        found = trace.features[k : k + 1]
        tolerance = trace.tolerance(trace.output) * float(alone.abs().max()) + 1e-30
        if alone.shape != found.shape or not float((alone - found).abs().max()) <= tolerance:
            raise ValueError(
                "the model mixes inputs that are given together, such as by a norm or a maximum "
                "over all of them: call lrp for each"
            )


def explain(
    model: Model,
    x: Tensor | Factor,
    x2: Tensor | Factor,
    rules: Rules | None = None,
    patch: int = PATCH,
    groups: int | Tensor | None = None,
    similarity: str = "dot",
    project: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    chunk: int | None = None,
) -> Explanation:
    """Explain the similarity y(x, x') = <model(x), model(x')> on pairs of input features.

    Parameters
    ----------
    model : nn.Module or (nn.Module, nn.Module)
        Any module whose forward is made of torch functions, a pair (f, g) of two encoders, one for
        each input, or `bilrp.MaxOverTransforms`; evaluated as in eval mode and left as it is.
    x, x2 : Tensor (C, H, W), (d,), (T, d) or, for tokens, (T,) of int64; or Factor
        The two network inputs, or their factors from `bilrp.factor`. A tensor is one input; a
        leading 1 is its batch dimension.
    rules : Rule or mapping, optional
        One rule for all layers with weights, or a mapping from places (numbers of leaf modules from
        1, ranges), names or name patterns, module types or predicates to rules. Default:
        `bilrp.default_rules`.
    patch : int
        Side of the square patches over which relevance of an image is summed, in pixels.
    groups : int or Tensor of int, optional
        Other owners: a number of consecutive features, or the group id 0..G-1 of each feature
        (shape of the input), row (T,), or place for all channels: (H, W) of an image, (T, H, W) of
        a film, (L,) of a signal. Segments, tokens, time windows. Default:
        patches of an image, features of a vector, rows of (T, d), tokens. For two inputs of
        different shape, give factors.
    similarity : str
        "dot"; "cosine"; "-l2", minus the squared distance, whose `relevance` holds the cross term
        and `within` the other two.
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
        Owners (or projected dimensions) computed at once. Default: what is fast within about 1 GB.

    Returns
    -------
    Explanation

    Raises
    ------
    ValueError
        For inputs that do not fit the model or each other, NaN, a patch that does not divide the
        image, rules that fit no module, factors of different make, or pixels outside the bounds of
        a z^B rule.
    NotImplementedError
        For a call without a map on the way of relevance, or a model that cannot be followed.
    MemoryError
        If not even one owner at a time fits.

    Warns
    -----
    UserWarning
        If magnitudes exceed 1e4 times that of y: the explanation is mostly cancellation.

    Source
    ------
    Eberle et al. (2022), Section 3.3; `project` as in Section 5.
    """
    options: dict[str, Any] = dict(
        patch=patch, groups=groups, project=project, seed=seed, dtype=dtype, device=device
    )
    if isinstance(model, MaxOverTransforms):
        return _explain_best_views(model, x, x2, rules, similarity, chunk=chunk, **options)
    models = model if isinstance(model, tuple) else (model, model)
    if len(models) != 2 or not all(isinstance(m, nn.Module) for m in models):
        raise ValueError(f"model must be an nn.Module or a pair of them, got {model!r}"[:300])
    factors = []
    for m, v in zip(models, (x, x2), strict=True):
        if isinstance(v, list | tuple):
            raise ValueError(
                "x and x2 must each be one input, a torch.Tensor, or its factor, got a "
                f"{type(v).__name__}; bilrp.factor takes lists"
            )
        if isinstance(v, Factor):
            if v.identity.model != fingerprint(m):
                raise ValueError(
                    "the factor is of another model than the one given: its weights or structure "
                    "differ"
                )
            factors.append(v)
        else:
            factors.append(factor(m, v, rules, chunk=chunk, **options))
    first, second = factors
    if isinstance(x, Factor) and isinstance(x2, Factor):
        _refuse_options_of_factors(first, second, rules, options)
    return combined(first, second, similarity, encoders=models[0] is not models[1])


def _refuse_options_of_factors(
    first: Factor, second: Factor, rules: Rules | None, options: dict[str, Any]
) -> None:
    """What was decided when the factors were made cannot be asked for now."""
    given = [k for k in ("groups", "project", "dtype", "device") if options[k] is not None]
    given += [k for k, usual in (("patch", 8), ("seed", 0)) if options[k] != usual]
    if rules is not None:
        told = str(RuleBook(rules))
        given += ["rules"] * any(f.identity.rules != told for f in (first, second))
    if given:
        raise ValueError(
            f"{', '.join(given)}: both inputs are factors, which were made before and stay as "
            "they are. Give it to bilrp.factor, or give the inputs"
        )


def _check_model(model: nn.Module) -> None:
    if isinstance(model, MaxOverTransforms):
        raise NotImplementedError(
            "MaxOverTransforms looks at two images at once, so there is nothing to tell of one: "
            "give both to bilrp.explain, or take the features, its `model`"
        )
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, got {type(model).__name__}")


@overload
def factor(model: nn.Module, x: Tensor, rules: Rules | None = None, **options) -> Factor: ...
@overload
def factor(
    model: nn.Module, x: Sequence[Tensor], rules: Rules | None = None, **options
) -> list[Factor]: ...
@exact()  # type: ignore[misc]  # **options are those written out here
def factor(
    model,
    x,
    rules=None,
    patch=PATCH,
    groups=None,
    project=None,
    seed=0,
    dtype=None,
    device=None,
    chunk=None,
):
    """The factor A of one input: compute it once, explain the input with any other.

    `factor(model, x, rules).explain(factor(model, x2, rules))` is `explain(model, x, x2, rules)`.
    For a list of inputs, a list of factors. Parameters and errors are those of `bilrp.explain`.
    """
    patch, seed = check_whole("patch", patch), check_whole("seed", seed, -(2**63), 2**64 - 1)
    project = project if project is None else check_whole("project", project)
    chunk = chunk if chunk is None else check_whole("chunk", chunk)
    options = dict(
        patch=patch, groups=groups, project=project, seed=seed, dtype=dtype, device=device
    )
    _check_model(model)
    if isinstance(x, list | tuple):
        return [factor(model, v, rules, chunk=chunk, **options) for v in x]
    batch = one_input(x, model)
    check_finite(batch)
    owners = owners_of(batch, patch, groups)
    if x.shape == batch.shape and batch.dim() == 3 and groups is None and patch != PATCH:
        raise ValueError(
            f"patch={patch} is for images, and x of shape {tuple(x.shape)} is taken for "
            f"{x.shape[1]} rows of {x.shape[2]} numbers. Give an image of one channel as "
            f"{(1, *x.shape)}, or say with groups= who owns the numbers"
        )
    rules = default_rules(model, x) if rules is None else rules
    trace = Trace(model, batch, rules, dtype, device)
    features, complete, spans = trace.features.flatten(), None, None
    shape = tuple(trace.features.shape[1:])
    if project is None:
        values, absorbed, spans = parts_of_features(trace, owners, chunk)
        projection = "none, exact"
    else:
        w = random_projection(project, len(features), seed).to(features)
        values, absorbed = pull_projected(trace, owners, w, chunk)
        complete, features = features, w @ features
        total = values.sum(0) + absorbed.sum(0)
        check_sum(
            total,
            features,
            lambda: values.abs().sum(0),
            "the projected features",
            trace.tolerance(trace.output),
        )
        maps = tuple(k for k in shape if k != 1)  # others are projected by another matrix
        projection = f"{project} dimensions, seed {seed}, of features {maps or (1,)}"
        shape = (project,)
    return Factor(
        values=values,
        grid=owners.grid,
        absorbed=absorbed,
        owners=("input", *trace.absorbing),
        features=features,
        feature_shape=shape,
        spans=spans,
        identity=Identity(fingerprint(model), str(RuleBook(rules)), projection),
        exact=complete,
    )


@exact()
def features(
    model: nn.Module,
    x: Tensor,
    rules: Rules | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """What the engine computed as the model's features, from the parts of all owners.

    To be compared with `model(x[None])`: the sum of what the input and all sinks own, pushed
    through every map.

    Returns
    -------
    Tensor
        Of the shape of the model's output, with its batch dimension of 1.
    """
    batch = one_input(x, model)
    check_finite(batch)
    trace = Trace(model, batch, default_rules(model, x) if rules is None else rules, dtype, device)
    return owned_by_all(trace).sum(0).view(trace.features.shape)


def _explain_best_views(
    model: MaxOverTransforms,
    x: Tensor | Factor,
    x2: Tensor | Factor,
    rules: Rules | None,
    similarity: str,
    groups: int | Tensor | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
    **options,
) -> Explanation:
    """Explain the most similar views of two images, in the patches of the images as given."""
    if isinstance(x, Factor) or isinstance(x2, Factor) or groups is not None:
        raise ValueError(
            "with MaxOverTransforms give both images themselves (which views are best depends on "
            "both) and `patch`, not factors or groups"
        )
    if similarity != "dot":
        raise ValueError('MaxOverTransforms is a maximum of dot products: similarity="dot"')
    x, x2 = (one_input(v, model.model) for v in (x, x2))
    for v in (x, x2):
        check_finite(v)
    views = model.best(x, x2, dtype, device)
    factors = [
        factor(model.model, view.of(v), rules, dtype=dtype, device=device, **options)
        for view, v in zip(views, (x, x2), strict=True)
    ]
    return model.as_given(factors[0].explain(factors[1]), views)
