"""What an audit by fresh eyes found: each was silently wrong, changed the model, or crashed."""

from __future__ import annotations

import collections
import functools
import random
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bilrp


class Model(nn.Module):
    """A forward of one's own beside a layer; `held` is whatever it holds."""

    def __init__(self, forward, held=None, size: int = 6) -> None:
        super().__init__()
        self.layer, self.given, self.held = nn.Linear(size, size), forward, held
        self.eval().requires_grad_(False).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self, x)


def parts(model: nn.Module, x: Tensor, rules=None, **options) -> Tensor:
    return bilrp.factor(model, x, rules, **options).owned()


X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda s, x: torch.softmax(x, axis=1) @ x, lambda s, x: torch.softmax(x, dim=1) @ x),
        (lambda s, x: x.softmax(axis=1) @ x, lambda s, x: x.softmax(1) @ x),
        (lambda s, x: x - x.amax(1, keepdims=True), lambda s, x: x - x.amax(1, keepdim=True)),
        (lambda s, x: x - x.amax(axis=1, keepdims=True), lambda s, x: x - x.amax(1, True)),
        (lambda s, x: x.where(x > 0, 0.1 * x), lambda s, x: torch.where(x > 0, x, 0.1 * x)),
        (
            lambda s, x: torch.where(condition=x > 0, input=x, other=0.1 * x),
            lambda s, x: torch.where(x > 0, x, 0.1 * x),
        ),
        (
            lambda s, x: torch.cat(tensors=[x, 2 * x], axis=1),
            lambda s, x: torch.cat([x, 2 * x], 1),
        ),
        (lambda s, x: torch.matmul(input=x, other=x.mT), lambda s, x: x @ x.mT),
        (lambda s, x: torch.mul(input=x, other=X), lambda s, x: x * X),
        (lambda s, x: torch.add(input=x, other=x, alpha=2), lambda s, x: 3 * x),
        (
            lambda s, x: torch.addcmul(X, x, X, value=2),
            lambda s, x: X + 2 * x * X,
        ),
        (
            lambda s, x: torch.baddbmm(X[None], batch1=x, batch2=X[None]),
            lambda s, x: X + x @ X,
        ),
    ],
)
def test_other_names_of_arguments_mean_the_same(one, other) -> None:
    x = X + 0.1
    two = {"*": bilrp.LRP0(), nn.Module: bilrp.AttnLRP()}
    try:
        bilrp.factor(Model(other), x, bilrp.LRP0())
        rules = bilrp.LRP0()
    except NotImplementedError:  # products of two values want a rule of their own
        rules = two
    found = [parts(Model(f), x, rules, groups=torch.arange(16).view(4, 4)) for f in (one, other)]
    torch.testing.assert_close(found[0].sum(0), found[1].sum(0))
    torch.testing.assert_close(found[0][0], found[1][0])  # the input's own part


def test_softmax_that_does_not_sum_to_one_along_its_dimension_is_refused() -> None:
    from bilrp.engine import kinds

    model = Model(lambda s, x: torch.softmax(x, 0) @ x)
    with pytest.MonkeyPatch.context() as patch:
        usual = kinds._given
        patch.setattr(
            kinds, "_given", lambda a, k, p, n, d: 1 if n == "dim" else usual(a, k, p, n, d)
        )
        with pytest.raises(NotImplementedError, match="does not sum to 1"):
            bilrp.factor(model, X, {nn.Module: bilrp.AttnLRP(), "*": bilrp.LRP0()})


def test_projection_does_not_depend_on_the_default_format() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU()).requires_grad_(False)
    x = torch.rand(6)
    one = bilrp.factor(model, x, bilrp.LRP0(), project=50)
    try:
        torch.set_default_dtype(torch.float64)
        other = bilrp.factor(model, x, bilrp.LRP0(), project=50)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(one.features, other.features)


def test_features_of_other_shapes_do_not_go_together() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()).requires_grad_(False)
    wide, high = torch.rand(1, 4, 8), torch.rand(1, 8, 4)
    with pytest.raises(ValueError, match="projections"):
        bilrp.explain(model, wide, high, bilrp.LRP0(), patch=4, project=5)
    factors = [bilrp.factor(model, v, bilrp.LRP0(), patch=4) for v in (wide, high)]
    with pytest.raises(ValueError, match="different shapes"):
        bilrp.several(factors)


class Slots:
    __slots__ = ("number",)

    def __init__(self, number: float) -> None:
        self.number = number


def held(how: str, seed: int) -> Model:
    """Models that differ only in what is reached in this way."""
    torch.manual_seed(seed)
    inner = nn.Linear(6, 4).double()

    def by_name(y: Tensor, *, m: nn.Module = inner) -> Tensor:
        return m(y)

    ways = {
        "closure": lambda y: inner(y),
        "bound method": inner.forward,
        "partial": functools.partial(inner.forward),
        "default": lambda y, m=inner: m(y),
        "named default": by_name,
        "deque": collections.deque([float(seed)]),
        "slots": Slots(float(seed)),
    }

    def run(s: nn.Module, x: Tensor) -> Tensor:
        if how == "deque":
            return x * s.held[0]
        return x * s.held.number if how == "slots" else s.held(s.layer(x))

    torch.manual_seed(0)
    return Model(run, ways[how])


@pytest.mark.parametrize(
    "how", ["closure", "bound method", "partial", "default", "named default", "deque", "slots"]
)
def test_what_a_function_holds_belongs_to_the_model(how: str) -> None:
    x = torch.ones(6, dtype=torch.float64)
    one, again, other = (bilrp.factor(held(how, k), x, bilrp.LRP0()) for k in (1, 1, 2))
    assert one.explain(again).similarity > 0
    with pytest.raises(ValueError, match="different models"):
        one.explain(other)


def test_a_function_in_a_closure_has_no_address() -> None:
    def built() -> Model:
        def twice(y: Tensor) -> Tensor:
            return 2 * y

        torch.manual_seed(0)
        return Model(lambda s, x: twice(s.layer(x)))

    x = torch.ones(6, dtype=torch.float64)
    bilrp.factor(built(), x, bilrp.LRP0()).explain(bilrp.factor(built(), x, bilrp.LRP0()))


def test_tables_of_embeddings_are_called_by_their_names() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.types = nn.Embedding(9, 4), nn.Embedding(2, 4)
            self.places, self.top = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[1]
            y = self.words(x) + self.types(torch.zeros_like(x))
            return self.top(y + self.places(torch.arange(n))).sum(1)

    found = bilrp.factor(Words().requires_grad_(False), torch.tensor([1, 4, 7]), bilrp.LRP0())
    assert {"types.weight", "places.weight"} <= set(found.owners)


class Object:
    number = 0


class Two(NamedTuple):
    one: np.ndarray
    other: list


def add(s: nn.Module, _: Tensor) -> None:
    s.held["n"] = s.held.get("n", 0) + 1


@pytest.mark.parametrize(
    ("start", "change", "look"),
    [
        (lambda: {"n": 0}, add, lambda h: h["n"]),
        (lambda: [0], lambda s, x: s.held.__setitem__(0, s.held[0] + 1), lambda h: h[0]),
        (lambda: {"h": None}, lambda s, x: s.held.__setitem__("h", x), lambda h: h["h"]),
        (collections.Counter, lambda s, x: s.held.update("a"), lambda h: h["a"]),
        (lambda: collections.OrderedDict(n=0), add, lambda h: h["n"]),
        (lambda: collections.defaultdict(int), add, lambda h: h["n"]),
        (collections.deque, lambda s, x: s.held.append(1), len),
        (set, lambda s, x: s.held.add(len(s.held)), len),
        (lambda: np.zeros(1), lambda s, x: s.held.__iadd__(1), lambda h: float(h[0])),
        (
            lambda: Two(np.zeros(5000), [0]),
            lambda s, x: s.held.one.__setitem__(2500, s.held.one[2500] + 1),
            lambda h: float(h.one[2500]),
        ),
        (Object, lambda s, x: setattr(s.held, "number", s.held.number + 1), lambda h: h.number),
    ],
)
def test_nothing_that_a_model_holds_is_changed(start, change, look) -> None:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        change(s, x)
        return s.layer(x)

    model = Model(run, start())
    before = look(model.held)
    bilrp.factor(model, torch.ones(6, dtype=torch.float64), bilrp.LRP0())
    assert look(model.held) == before


def test_layers_in_other_containers_run_in_eval_mode_and_stay() -> None:
    model = Model(
        lambda s, x: s.held["norm"](s.layer(x)),
        collections.OrderedDict(norm=nn.BatchNorm1d(6).double().requires_grad_(False)),
    )
    bilrp.factor(model, torch.ones(1, 6, dtype=torch.float64), bilrp.LRP0())
    assert int(model.held["norm"].num_batches_tracked) == 0
    assert model.held["norm"].training


def test_generators_of_random_numbers_stay() -> None:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        torch.manual_seed(5)
        return s.layer(x)

    model = Model(run)
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[2], random.getstate()  # noqa: NPY002
    bilrp.factor(model, torch.ones(6, dtype=torch.float64), bilrp.LRP0())
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[2], random.getstate())  # noqa: NPY002


@pytest.mark.parametrize("rules", [bilrp.LRP0(), bilrp.Gamma(0.1)])
def test_branches_that_leave_their_windows_at_different_places(rules) -> None:
    """A step within windows that comes after one outside, which reads the same value."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.wide, self.narrow = nn.Conv2d(1, 2, 5, padding=2), nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return (self.wide(x) + self.narrow(x)).relu()

    model = Two().double().requires_grad_(False)
    x = torch.rand(1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(8).div(4, rounding_mode="floor")
    ids = 2 * ids[:, None] + ids
    by_patch = bilrp.factor(model, x, rules, patch=4).dense()
    by_group = bilrp.factor(model, x, rules, groups=ids).dense()
    torch.testing.assert_close(by_patch, by_group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_of_a_norm_is_not_taken_for_a_wrong_map(dtype: torch.dtype) -> None:
    """The mean of what has no mean is rounding, small beside what it adds up."""

    def run(s: nn.Module, x: Tensor) -> Tensor:
        y = nn.functional.layer_norm(s.layer(x), (6,))
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True) + 1e-5).sqrt()

    for seed in range(5):
        torch.manual_seed(seed)
        model = Model(run).to(dtype)
        x = torch.randn(6, dtype=dtype)
        torch.testing.assert_close(
            bilrp.features(model, x, bilrp.LRP0())[0], model(x), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    "keep", [lambda w: w.type(torch.float64), lambda w: w.double(), lambda w: w.detach()]
)
def test_a_gate_stays_a_gate_in_another_format(keep) -> None:
    def run(s: nn.Module, x: Tensor) -> Tensor:
        y = s.layer(x)
        return keep(torch.softmax(y @ y.mT, -1)) @ y

    def plain(s: nn.Module, x: Tensor) -> Tensor:
        y = s.layer(x)
        return torch.softmax(y @ y.mT, -1) @ y

    torch.manual_seed(0)
    one = Model(run)
    torch.manual_seed(0)
    other = Model(plain)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(parts(one, x, bilrp.LRP0()), parts(other, x, bilrp.LRP0()))


def test_numbers_that_stand_twice_are_one_sink() -> None:
    p = torch.rand(1, 1, 6, dtype=torch.float64)
    model = Model(lambda s, x: torch.cat([p, s.layer(x), p], 1))
    x = torch.randn(3, 6, dtype=torch.float64)
    found = bilrp.factor(model, x, bilrp.LRP0())
    torch.testing.assert_close(found.owned().sum(0), model(x[None]).flatten())


def test_whole_numbers_of_numpy_are_whole() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).requires_grad_(False)
    x = torch.rand(1, 8, 8)
    assert bilrp.factor(model, x, bilrp.LRP0(), patch=np.int64(4)).grid == (2, 2)
    with pytest.raises(ValueError, match="whole number"):
        bilrp.factor(model, x, bilrp.LRP0(), patch=True)
