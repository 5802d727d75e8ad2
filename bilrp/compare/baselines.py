"""The baselines of the paper's Section 4: saliency, curvature, Hessian x Product.

The similarity y(x, x') = <phi(x), phi(x')> is linear in the features of each input, so the mixed
block of its Hessian is a product of two Jacobians, whatever the network:

    d2y / dx_i dx'_i' = sum_k dphi_k/dx_i dphi_k/dx'_i' = [J(x)^T J(x')]_ii'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bilrp.engine.owners import Groups, check_finite, one_input
from bilrp.engine.shadow import exact, place_and_format, shadow


def saliency(model: nn.Module, x: Tensor, x2: Tensor, groups: int | Tensor | None = None) -> Tensor:
    """Saliency, R_ii' = (x_i x'_i')^2, summed over groups. It does not ask the model anything.

    Parameters
    ----------
    model : nn.Module
        Not used; here so that all methods are called alike.
    x, x2 : Tensor (d,) or (1, d); (C, H, W) or (1, C, H, W)
        The two inputs.
    groups : int or Tensor of int, optional
        Groups of features: a number of consecutive ones, or the group id 0..G-1 of each (shape of
        the input, or (H, W) for images). Default: every feature is its own.

    Returns
    -------
    Tensor (G, G')
        Scores of all pairs of groups.

    Raises
    ------
    ValueError
        For inputs of another shape or type, a batch of several, NaN, or groups that do not fit.

    Source
    ------
    Eberle et al. (2022), Section 4.
    """
    (v, owners), (v2, owners2) = (_input(model, t, groups) for t in (x, x2))
    # The square of a product is the product of squares: sum each side over its groups first.
    first, second = (o.pool(t.square()) for t, o in ((v, owners), (v2, owners2)))
    return first @ second.T


def curvature(
    model: nn.Module, x: Tensor, x2: Tensor, groups: int | Tensor | None = None
) -> Tensor:
    """Curvature, the squared Hessian R_ii' = (d2y / dx_i dx'_i')^2, summed over groups.

    Holds all d x d' entries of the Hessian at once: for small inputs.

    Parameters
    ----------
    model : nn.Module
        Any differentiable model that maps (N, ...) to features (N, ...); evaluated as in eval mode
        and left as it is.
    x, x2, groups
        As for `bilrp.saliency`.

    Returns
    -------
    Tensor (G, G')
        Scores of all pairs of groups.

    Raises
    ------
    ValueError
        As for `bilrp.saliency`; if the inputs have different numbers of features.

    Source
    ------
    Eberle et al. (2022), Section 4.
    """
    (first, _, owners), (second, _, owners2) = _jacobians(model, x, x2, groups)
    squared = (first.flatten(1).T @ second.flatten(1)).square()  # (d, d')
    over_second = owners2.pool(squared)  # (G', d)
    return owners.pool(over_second)


def hessian_x_product(
    model: nn.Module, x: Tensor, x2: Tensor, groups: int | Tensor | None = None
) -> Tensor:
    """Hessian x Product, R_ii' = x_i x'_i' d2y / dx_i dx'_i', summed over groups.

    Where a ReLU network is differentiable, it is BiLRP with LRP-0 in all layers (Proposition 2).

    Parameters
    ----------
    model : nn.Module
        Any differentiable model that maps (N, ...) to features (N, ...); evaluated as in eval mode
        and left as it is.
    x, x2, groups
        As for `bilrp.saliency`.

    Returns
    -------
    Tensor (G, G')
        Scores of all pairs of groups. They add up to y for ReLU networks without biases.

    Raises
    ------
    ValueError
        As for `bilrp.curvature`.

    Source
    ------
    Eberle et al. (2022), Eq. (1) and Section 4.
    """
    (first, v, owners), (second, v2, owners2) = _jacobians(model, x, x2, groups)
    return owners.pool(first * v) @ owners2.pool(second * v2).T


def _input(model: nn.Module, x: Tensor, groups: int | Tensor | None) -> tuple[Tensor, Groups]:
    """The checked input (1, ...), in the model's type and place, and its groups."""
    batch = one_input(x, model)
    if not batch.is_floating_point():
        raise ValueError(f"x must hold floating-point numbers, got {batch.dtype}")
    check_finite(batch)
    place, form = place_and_format(model, batch, None, None)
    return batch.detach().to(device=place, dtype=form), Groups(batch, groups)


def _jacobians(
    model: nn.Module, x: Tensor, x2: Tensor, groups: int | Tensor | None
) -> list[tuple[Tensor, Tensor, Groups]]:
    """At both inputs: J = dphi_k/dx_i, (features, ...), the input (1, ...), and its groups."""
    found = []
    for t in (x, x2):
        v, owners = _input(model, t, groups)
        copied = shadow(model, v.dtype, v.device)

        def features(w: Tensor, copied: nn.Module = copied) -> Tensor:
            return copied(w)[0].flatten()

        with exact():
            jacobian = torch.func.jacrev(features)(v)[:, 0].detach()
        found.append((jacobian, v, owners))
    if len(found[0][0]) != len(found[1][0]):
        raise ValueError(
            f"the two inputs have different numbers of features, {len(found[0][0])} and "
            f"{len(found[1][0])}; the dot product needs as many on both sides"
        )
    return found
