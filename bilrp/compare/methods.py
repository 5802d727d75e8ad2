"""Methods that explain a similarity on pairs of patches, each called alike.

A method is a function (model, x, x2, patch) -> scores. The model gives features phi, the similarity
is y = <phi(x), phi(x')>. Images (C, H, W) have square patches of `patch` pixels, vectors (d,) have
groups of `patch` consecutive numbers; scores are (h, w, h', w') or (G, G'). A method that has a
parameter `rules` is given the rules of the network at hand. What a method cannot explain it refuses
with a ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilrp._checks import check_whole
from bilrp.compare import baselines
from bilrp.engine.api import explain, factor
from bilrp.engine.features import random_projection
from bilrp.engine.owners import Groups, check_finite, one_input, owners_of
from bilrp.engine.rules import LRP0, Gamma, Rules
from bilrp.engine.shadow import place_and_format, shadow

Scores = Callable[..., Tensor]


@dataclass(frozen=True)
class Method:
    """A method by its name.

    Attributes
    ----------
    name : str
    function : callable
        (model, x, x2, patch) -> scores of pairs of patches, and `rules` if it has that parameter.
    source : str
        The paper it is from.
    two_maps : bool
        Whether the scores are a product of two separate heat maps.
    slow : bool
        Whether it needs hundreds of runs of the network for one pair.
    """

    name: str
    function: Scores
    source: str
    two_maps: bool = False
    slow: bool = False

    def __call__(self, model: nn.Module, x: Tensor, x2: Tensor, patch: int, **context) -> Tensor:
        """Scores of all pairs of patches; ValueError if an input has no such patches."""
        for side in (x, x2):
            patch_grid(side, patch)
        return self.function(model, x, x2, patch, **context)


METHODS: dict[str, Method] = {}


def add_method(
    name: str, source: str, *, two_maps: bool = False, slow: bool = False
) -> Callable[[Scores], Scores]:
    """Put a function into the registry `METHODS`, under a name of its own.

    Raises
    ------
    ValueError
        If the name is taken.

    Examples
    --------
    >>> @add_method("my method", "Me (2026)")
    ... def mine(model, x, x2, patch): ...
    """
    if name in METHODS:
        raise ValueError(f"there is a method {name!r} already; choose another name")

    def add(function: Scores) -> Scores:
        METHODS[name] = Method(name, function, source, two_maps, slow)
        return function

    return add


# --- what methods share ----------------------------------------------------------------------


def patch_grid(x: Tensor, patch: int) -> tuple[int, ...]:
    """The grid of patches of an image, (H/p, W/p), or of groups of a vector, (d/p,)."""
    return _owners(x, patch).grid


def _owners(x: Tensor, patch: int) -> Groups:
    batch = x if x.dim() in (2, 4) else x[None]
    return owners_of(batch, patch, None if batch.dim() == 4 else patch)


def _on_pairs(sides: Iterable[Tensor], x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """R = A A'^T of factors (patches, K), on the grids of both inputs."""
    first, second = sides
    return (first @ second.T).view(*patch_grid(x, patch), *patch_grid(x2, patch))


def _factors(model: nn.Module, x: Tensor, patch: int, rules: Rules | None) -> Tensor:
    """What each patch owns of each feature, (patches, features)."""
    groups = None if _is_image(x) else patch
    return factor(model, x, rules, patch=patch, groups=groups).dense()


def _is_image(x: Tensor) -> bool:
    return x.dim() >= 3


def _plain(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The model as in eval mode, copied without its tensors, and the input with a batch of 1."""
    batch = one_input(x, model)
    check_finite(batch)
    place, form = place_and_format(model, batch, None, None)
    return shadow(model, form, place), batch.to(device=place, dtype=form)


def last_map(model: nn.Module, x: Tensor) -> Tensor:
    """The last map of a network that a module gives and that has places: (C, h, w), more than one.

    A function that is called after the module, such as F.relu, is not seen; in a vision transformer
    this is the embedding of its patches.

    Raises
    ------
    ValueError
        If there are none, such as in a network of vectors.
    """
    return _last_map(model, x)[0].detach()[0]


def _last_map(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The last map (1, C, h, w), and the features made of it, ready to be differentiated."""
    copied, batch = _plain(model, x)
    calls: list[nn.Module] = []

    def note(module: nn.Module, _: tuple, out: object) -> None:
        if isinstance(out, Tensor) and out.dim() == 4 and out[0, 0].numel() > 1:
            calls.append(module)

    hooks = [m.register_forward_hook(note) for m in copied.modules()]
    with torch.no_grad():
        copied(batch)
    for hook in hooks:
        hook.remove()
    if not calls:
        raise ValueError(
            f"no layer of this {type(model).__name__} gives maps with places, so there are no "
            "local features to compare"
        )
    which, count, kept = calls[-1], calls.count(calls[-1]), []

    def cut(module: nn.Module, _: tuple, out: Tensor) -> Tensor:
        kept.append(out.detach().clone().requires_grad_())
        # Only the last call: a layer may be used twice. (In-place layers may follow: times 1.)
        return kept[-1] * 1 if len(kept) == count else out

    hook = which.register_forward_hook(cut)
    with torch.enable_grad():
        features = copied(batch)
    hook.remove()
    return kept[-1], features.flatten()


def _resized(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Maps (C, h, w) on the grid of patches: (patches, C)."""
    if maps.shape[1] > grid[0] or maps.shape[2] > grid[1]:
        maps = F.adaptive_avg_pool2d(maps[None], (grid[0], grid[1]))[0]
    else:
        maps = F.interpolate(maps[None], grid, mode="bilinear", align_corners=False)[0]
    return maps.flatten(1).T


def _need_images(x: Tensor, x2: Tensor, what: str) -> None:
    if not (_is_image(x) and _is_image(x2)):
        raise ValueError(
            f"{what} compares places in images; got inputs of shape {tuple(x.shape)} and "
            f"{tuple(x2.shape)}"
        )


# --- propagation -----------------------------------------------------------------------------


@add_method("BiLRP", "Eberle et al. (2022)")
def bilrp_exact(
    model: nn.Module,
    x: Tensor,
    x2: Tensor,
    patch: int,
    rules: Rules | None = None,
) -> Tensor:
    """BiLRP with given rules, exact.

    Source
    ------
    Eberle et al. (2022), Section 3.3.
    """
    groups = None if _is_image(x) else patch
    e = explain(model, x, x2, rules, patch=patch, groups=groups)
    return e.relevance


@add_method("BiLRP, K = 100", "Eberle et al. (2022), Section 5")
def bilrp_projected(
    model: nn.Module, x: Tensor, x2: Tensor, patch: int, rules: Rules | None = None
) -> Tensor:
    """BiLRP after a random projection of the features to 100 dimensions, seed 0.

    The exact factors are projected, which is the same as to pull 100 projected features back and
    takes a fraction of the time.
    """
    sides = [_factors(model, v, patch, rules) for v in (x, x2)]
    w = random_projection(100, sides[0].shape[1], 0).to(sides[0])
    return _on_pairs((side @ w.T for side in sides), x, x2, patch)


GAMMAS = (0.003, 0.01, 0.02, 0.05, 0.1, 0.25)


def bilrp_gamma(
    model: nn.Module, x: Tensor, x2: Tensor, patch: int, rules: Rules | None = None, *, gamma: float
) -> Tensor:
    """BiLRP with one gamma everywhere but at the pixels, where a given rule of layer 1 stays."""
    first = {1: rules[1]} if isinstance(rules, dict) and 1 in rules else {}
    return bilrp_exact(model, x, x2, patch, {**first, "*": Gamma(gamma)} if first else Gamma(gamma))


for _gamma in GAMMAS:
    add_method(f"BiLRP, gamma {_gamma:g}", "Eberle et al. (2022)")(
        partial(bilrp_gamma, gamma=_gamma)
    )


@add_method("Hessian x Product", "Eberle et al. (2022), Section 4")
def hessian_x_product(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """Hessian x Product, summed over patches, of any differentiable network.

    sum_i sum_i' x_i x'_i' d2y / dx_i dx'_i' over the features of two patches: a product of two
    directional derivatives, J (x on patch p) and J' (x' on patch p').

    Source
    ------
    Eberle et al. (2022), Eq. (1) and Section 4.
    """
    return _on_pairs((_directional(model, v, patch, (1.0,)) for v in (x, x2)), x, x2, patch)


@add_method("integrated Jacobians, pixels", "Moeller et al. (2023)", slow=True)
def integrated_jacobians(
    model: nn.Module, x: Tensor, x2: Tensor, patch: int, steps: int = 8
) -> Tensor:
    """Integrated Jacobians from the input, on the way from an input of zeros.

    R = (J_mean (x on p)) . (J'_mean (x' on p')), each J averaged over the points alpha x, at the
    midpoints alpha of `steps` equal parts of (0, 1). Zeros are the mean colour of normalised
    images. With many steps the scores add up to y(x, x') - y(x, 0) - y(0, x') + y(0, 0).

    Source
    ------
    Moeller, Nikolaev and Pado (2023), "An attribution method for Siamese encoders".
    """
    check_whole("steps", steps)
    points = tuple((n + 0.5) / steps for n in range(steps))
    return _on_pairs((_directional(model, v, patch, points) for v in (x, x2)), x, x2, patch)


@add_method("integrated Jacobians, deep", "Moeller et al. (2023)")
def integrated_jacobians_deep(
    model: nn.Module, x: Tensor, x2: Tensor, patch: int, steps: int = 8, layer: int | None = None
) -> Tensor:
    """Integrated Jacobians from a deep map of activations, on the way from a map of zeros.

    Scores of pairs of places of the map, brought to the patches by interpolation.

    Parameters
    ----------
    layer : int, optional
        How many layers of a sequential network lie below the map. Default: up to the last max
        pooling that has a convolution above it; without one, half of the layers.

    Raises
    ------
    ValueError
        If the network is no `nn.Sequential` of that many layers, or has no maps there.

    Source
    ------
    Moeller, Nikolaev and Pado (2023), who take intermediate layers of a transformer.
    """
    _need_images(x, x2, "integrated Jacobians of a deep map")
    below, above = _split(model, layer)
    check_whole("steps", steps)
    points = tuple((n + 0.5) / steps for n in range(steps))
    sides = []
    for v in (x, x2):
        copied, batch = _plain(below, v)
        with torch.no_grad():
            maps = copied(batch)[0].clone()
        if maps.dim() != 3:
            raise ValueError(f"layer {layer} gives no maps (C, h, w) but {tuple(maps.shape)}")
        grid = patch_grid(v, patch)
        side = maps.shape[1] // grid[0]  # places of a patch: their sum is had at once
        if side < 1 or (grid[0] * side, grid[1] * side) != maps.shape[1:]:
            side = 1
        parts = _directional(above, maps, side, points) / side**2
        sides.append(_resized(parts.T.view(-1, *(n // side for n in maps.shape[1:])), grid))
    return _on_pairs(sides, x, x2, patch)


def _split(model: nn.Module, layer: int | None) -> tuple[nn.Module, nn.Module]:
    if not isinstance(model, nn.Sequential):
        raise ValueError(
            f"a deep map can be taken from an nn.Sequential only, got {type(model).__name__}"
        )
    if layer is None:
        pools = [k for k, m in enumerate(model, start=1) if isinstance(m, nn.MaxPool2d)]
        last = max((k for k, m in enumerate(model) if isinstance(m, nn.Conv2d)), default=0)
        layer = max((k for k in pools if k <= last), default=len(model) // 2)
    if not 1 <= layer < len(model):
        raise ValueError(f"layer must be between 1 and {len(model) - 1}, got {layer!r}")
    return model[:layer], model[layer:]


def _directional(model: nn.Module, x: Tensor, patch: int, points: tuple[float, ...]) -> Tensor:
    """Mean over points alpha of J(alpha x) (x on patch p), for all p: (patches, features).

    In networks of ReLUs these are the shares of LRP-0 at alpha x, divided by alpha (Eberle et al.,
    2022, Proposition 2), a hundred times faster than one derivative for each patch. One derivative
    tells whether the network is of that kind.
    """
    copied, batch = _plain(model, x)
    total = None
    for alpha in points:
        point = alpha * batch
        whole = _derivative(copied, point, batch)
        parts = None
        if all(not isinstance(m, _SMOOTH) for m in copied.modules()):
            parts = _factors(model, point[0], patch, LRP0()) / alpha
            size = parts.abs().sum(0).max().clamp(min=1e-30)
            if float((parts.sum(0) - whole).abs().max()) > 1e-3 * float(size):
                parts = None
        if parts is None:
            owners = _owners(batch, patch)
            masks = [owners.ids == p for p in range(int(owners.ids.max()) + 1)]
            parts = torch.stack([_derivative(copied, point, batch * m.to(batch)) for m in masks])
        total = parts if total is None else total + parts
    assert total is not None
    return total / len(points)


def _derivative(model: nn.Module, point: Tensor, direction: Tensor) -> Tensor:
    """Directional derivative of the features, flattened."""
    try:
        return torch.func.jvp(model, (point,), (direction,))[1].detach().flatten()
    except RuntimeError as error:
        raise ValueError(f"this network cannot be differentiated: {error}") from error


_SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.ELU, nn.Softmax)


# --- gradients and inputs --------------------------------------------------------------------


@add_method("saliency", "Eberle et al. (2022), Section 4")
def saliency(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """Products of squared inputs, summed over patches; does not ask the model."""
    return _grouped(baselines.saliency, model, x, x2, patch)


@add_method("curvature", "Eberle et al. (2022), Section 4")
def curvature(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """Squared entries of the Hessian, summed over patches.

    Raises
    ------
    ValueError
        Where the Hessian has more than 2e7 entries: photos, even small ones.
    """
    if x.numel() * x2.numel() > 2e7:
        raise ValueError(
            f"the Hessian of inputs of {x.numel()} and {x2.numel()} numbers does not fit: "
            "curvature is for small inputs"
        )
    return _grouped(baselines.curvature, model, x, x2, patch)


def _grouped(method: Scores, model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    if x.shape != x2.shape:
        raise ValueError(f"give inputs of one shape, got {tuple(x.shape)} and {tuple(x2.shape)}")
    groups = _owners(x, patch).ids
    found = method(model, x, x2, groups[0] if groups.dim() == 4 else groups)
    return found.view(*patch_grid(x, patch), *patch_grid(x2, patch))


# --- activations -----------------------------------------------------------------------------


@add_method("activation products", "Stylianou et al. (2019)")
def activation_products(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """Dot products of the last map's features at all pairs of places, <A_u, A'_u'>.

    For features that are the mean over places they add up to y times the numbers of patches of both
    inputs, if patches are places. For others they are no shares of y.

    Source
    ------
    Stylianou, Souvenir and Pless (2019), "Visualizing deep similarity networks".
    """
    _need_images(x, x2, "activation products")
    sides = (_resized(last_map(model, v), patch_grid(v, patch)) for v in (x, x2))
    return _on_pairs(sides, x, x2, patch)


@add_method("activation products, gradient weights", "Chen et al. (2020), Selvaraju et al. (2017)")
def weighted_products(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """Products of the last map's features, each channel weighted as in Grad-CAM on both sides.

    sum_k alpha_k A_ku alpha'_k A'_ku', with alpha_k the mean over places of dy / dA_k.

    Source
    ------
    Weights: Selvaraju et al. (2017); for embeddings, Chen et al. (2020), "Adapting Grad-CAM for
    embedding networks", who draw one map an image. Pairs of places as in Stylianou et al. (2019).
    """
    _need_images(x, x2, "activation products")
    sides = []
    for (maps, weights), v in zip(_weighted_maps(model, x, x2), (x, x2), strict=True):
        sides.append(_resized(weights[:, None, None] * maps, patch_grid(v, patch)))
    return _on_pairs(sides, x, x2, patch)


def _weighted_maps(
    model: nn.Module, x: Tensor, x2: Tensor, attention: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Of both sides the last map (C, h, w), and each channel's mean gradient (C,)."""
    (maps, phi), (maps2, phi2) = (_last_map(model, v) for v in (x, x2))
    if phi.shape != phi2.shape:
        raise ValueError(f"the features differ in number: {len(phi)} and {len(phi2)}")
    with torch.enable_grad():
        if attention:  # what the two have in common, feature by feature
            both = [f / f.norm().clamp(min=1e-30) for f in (phi, phi2)]
            common = (1 - (both[0] - both[1]).abs()).detach()
            wanted = (common * (both[0] + both[1])).sum()
        else:
            wanted = (phi * phi2).sum()
        gradients = torch.autograd.grad(wanted, (maps, maps2))
    return [
        (m.detach()[0], g[0].mean((1, 2))) for m, g in zip((maps, maps2), gradients, strict=True)
    ]


@add_method("similarity attention", "Zheng et al. (2020)", two_maps=True)
def similarity_attention(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """Two attention maps, of what the embeddings have in common; scores are their product.

    With f, f' the features divided by their lengths and w = 1 - ``|f - f'|``, held constant: the
    scores s = <w, f>, s' = <w, f'>; each image's map is relu(sum_k alpha_k A_k), alpha_k the mean
    over places of ds / dA_k. This is our reading of the paper, not its authors' code; it draws one
    map an image, and the pairs are our addition.

    Source
    ------
    Zheng et al. (2020), "Towards visually explaining similarity models".
    """
    _need_images(x, x2, "similarity attention")
    sides = []
    for (maps, weights), v in zip(_weighted_maps(model, x, x2, True), (x, x2), strict=True):
        heat = (weights[:, None, None] * maps).sum(0).relu()
        sides.append(_resized(heat[None], patch_grid(v, patch)))
    return _on_pairs(sides, x, x2, patch)


@add_method("feature correspondence", "raw local features")
def feature_correspondence(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """Cosines of the last map's features at all pairs of places."""
    _need_images(x, x2, "feature correspondence")
    sides = (_resized(last_map(model, v), patch_grid(v, patch)) for v in (x, x2))
    return _on_pairs((F.normalize(s, dim=1) for s in sides), x, x2, patch)


# --- perturbation ----------------------------------------------------------------------------


@add_method("pairwise occlusion", "second difference; Janizek et al. (2021)", slow=True)
def pairwise_occlusion(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """What is lost only where both patches of a pair are covered.

    y(x, x') - y(x without p, x') - y(x, x' without p') + y(x without p, x' without p'), which for a
    dot product is <phi(x) - phi(x without p), phi(x') - phi(x' without p')>. A covered patch has
    the image's mean colour; covered numbers of a vector are zero.
    """
    sides = []
    for v in (x, x2):
        hidden = torch.eye(len(_cover(v, patch)[1]), dtype=torch.bool)
        phi = features_of_covered(model, v, patch, hidden)
        plain = features_of_covered(model, v, patch, torch.zeros_like(hidden[:1]))
        sides.append(plain - phi)
    return _on_pairs(sides, x, x2, patch)


@add_method("Shapley interactions", "shapiq: KernelSHAP-IQ, Fumagalli et al. (2024)", slow=True)
def shapley_interactions(
    model: nn.Module, x: Tensor, x2: Tensor, patch: int, budget: int = 1024, seed: int = 0
) -> Tensor:
    """Shapley interactions (k-SII of order 2) of the patches of both inputs, by shapiq.

    The players are all patches of x and of x'. A coalition's value is the similarity of the inputs
    with all others covered, as in `pairwise_occlusion`.

    Parameters
    ----------
    budget : int
        Coalitions evaluated, at least the number of pairs of players. That is a sample: of a small
        network with 32 players 1,024 left an error of 1.5 times the size of the exact values
        (cosine 0.5 to them), 16,384 one of 0.14.

    Raises
    ------
    ModuleNotFoundError
        If shapiq is not installed; it says how.
    ValueError
        If there are fewer coalitions than pairs of players, or more than 64 players.

    Source
    ------
    Fumagalli et al. (2024), "KernelSHAP-IQ"; Muschalik et al. (2024) for shapiq.
    """
    try:
        import shapiq
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Shapley interactions are computed by shapiq, which is not installed: "
            "pip install -r requirements-bench.txt",
            name=error.name,
        ) from error
    first, second = (len(_cover(v, patch)[1]) for v in (x, x2))
    n = first + second
    if n > 64 or budget < n * (n + 1) // 2:
        raise ValueError(
            f"{n} players have {n * (n - 1) // 2} pairs: use larger patches (64 players at most) "
            f"or a larger budget than {budget}"
        )

    def game(coalitions: np.ndarray) -> np.ndarray:
        hidden = ~torch.as_tensor(coalitions, dtype=torch.bool)
        phi = features_of_covered(model, x, patch, hidden[:, :first])
        phi2 = features_of_covered(model, x2, patch, hidden[:, first:])
        return (phi * phi2).sum(1).double().numpy()

    approximator = shapiq.KernelSHAPIQ(n=n, max_order=2, index="k-SII", random_state=seed)
    values = approximator.approximate(budget=budget, game=game)
    found = torch.tensor(values.get_n_order_values(2))[:first, first:]
    return found.float().reshape(*patch_grid(x, patch), *patch_grid(x2, patch))


@add_method("Shapley interactions, by flips", "index of Grabisch and Roubens (1999)", slow=True)
def shapley_by_flips(
    model: nn.Module, x: Tensor, x2: Tensor, patch: int, draws: int = 30, seed: int = 0
) -> Tensor:
    """Shapley interactions of the patches of both inputs, drawn by flips of single patches.

    The same index of the same game as `shapley_interactions`, by an estimate that is made for dot
    products: see `by_flips`. For inputs of 16 patches, 30 draws are 1,020 coalitions of each.

    Parameters
    ----------
    draws : int
        Draws of two coalitions; each of both inputs is followed by a flip of each patch.

    Source
    ------
    The index: Grabisch and Roubens (1999), "An axiomatic approach to the concept of interaction
    among players in cooperative games". The estimate is this package's; chapter 13 derives it.
    """
    grid, grid2 = patch_grid(x, patch), patch_grid(x2, patch)
    phi, phi2 = (_covered(model, v, patch) for v in (x, x2))
    sides = (lambda there: phi(~there)), (lambda there: phi2(~there))
    found = by_flips(*sides, prod(grid), prod(grid2), draws, seed)
    return found.float().view(*grid, *grid2)


def by_flips(
    phi: Callable[[Tensor], Tensor],
    phi2: Callable[[Tensor], Tensor],
    players: int,
    players2: int,
    draws: int,
    seed: int,
) -> Tensor:
    """Shapley interactions of the players of two sides, where the game is <phi(S), phi'(S')>.

    The interaction of a player of each is the mean, over p from 0 to 1 and coalitions that hold
    each player with chance p, of <what the one adds to phi(S), what the other adds to phi'(S')>.
    Each draw takes a p and two coalitions, which both sides meet, and flips each player once; what
    one side adds to the one is multiplied with what the other side adds to the other.

    Parameters
    ----------
    phi, phi2 : callable
        Coalitions (N, players) of bool, what is there, to features (N, M).

    Returns
    -------
    Tensor (players, players2), float64
    """
    check_whole("draws", draws)
    generator = torch.Generator().manual_seed(seed)
    chance = (torch.arange(draws) + torch.rand(draws, generator=generator)) / draws
    drawn = torch.rand(draws, 2, max(players, players2), generator=generator)
    total = torch.zeros(players, players2, dtype=torch.float64)
    for both in drawn < chance[:, None, None]:
        (a, b), (a2, b2) = (
            [_added(f, there[:n]) for there in both] for f, n in ((phi, players), (phi2, players2))
        )
        total += (a @ b2.T + b @ a2.T).cpu() / 2
    return total / draws


def _added(phi: Callable[[Tensor], Tensor], there: Tensor) -> Tensor:
    """What each player adds to the features of a coalition (players,): (players, M), float64."""
    n = len(there)
    flipped = there ^ torch.eye(n, dtype=torch.bool)
    plain, others = phi(torch.cat([there[None], flipped])).double().split([1, n])
    return torch.where(there, 1.0, -1.0).to(plain)[:, None] * (plain - others)


def _cover(x: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """What covers the input, of its shape (1, ...), and masks of its patches (patches, 1, ...)."""
    owners = _owners(x, patch)
    batch = x if x.dim() in (2, 4) else x[None]
    cover = batch.mean((2, 3), keepdim=True).expand_as(batch) if batch.dim() == 4 else batch * 0
    masks = owners.ids == torch.arange(int(owners.ids.max()) + 1).view(-1, *[1] * owners.ids.dim())
    return cover, masks


def features_of_covered(
    model: nn.Module, x: Tensor, patch: int, hidden: Tensor, batch: int = 64
) -> Tensor:
    """Features of the input with patches covered, hidden (N, patches) of bool: (N, features)."""
    return _covered(model, x, patch, batch)(hidden)


def _covered(
    model: nn.Module, x: Tensor, patch: int, batch: int = 64
) -> Callable[[Tensor], Tensor]:
    """`features_of_covered` for many calls: the model is copied once."""
    copied, plain = _plain(model, x)
    cover, masks = _cover(plain, patch)

    @torch.no_grad()
    def features(hidden: Tensor) -> Tensor:
        unique, back = hidden.unique(dim=0, return_inverse=True)
        found = []
        for some in unique.split(batch):
            mask = torch.einsum("np,p...->n...", some.to(plain), masks.to(plain))
            found.append(copied(plain + mask * (cover - plain)).flatten(1))
        return torch.cat(found)[back]

    return features


# --- without the model -----------------------------------------------------------------------


@add_method("pixels", "template matching")
def pixels(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """Correlation of the pixels of two patches, without the model; 0 for a patch of one grey."""
    _need_images(x, x2, "correlation of pixels")
    sides = []
    for v in (x, x2):
        image = v if v.dim() == 4 else v[None]
        cut = F.unfold(image.double(), patch, stride=patch)[0].T
        rest = cut - cut.mean(1, keepdim=True)
        size = rest.norm(dim=1, keepdim=True)
        flat = size < 1e-6 * cut.norm(dim=1, keepdim=True)  # one colour: nothing to compare
        sides.append(torch.where(flat, 0, rest / size).float())
    return _on_pairs(sides, x, x2, patch)


@add_method("distance only", "a control")
def distance_only(model: nn.Module, x: Tensor, x2: Tensor, patch: int) -> Tensor:
    """exp(-2 d^2) for patches that lie d patches apart: nothing but nearness."""
    grids = [patch_grid(v, patch) for v in (x, x2)]
    first, second = (
        torch.cartesian_prod(*(torch.arange(float(n)) for n in (1, *g)[-2:])) for g in grids
    )
    return torch.exp(-2 * torch.cdist(first, second).square()).view(*grids[0], *grids[1])
