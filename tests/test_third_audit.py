"""What an audit by enumeration of torch's functions found; each was silently wrong or crashed."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilrp
from bilrp.engine.maps import Linear
from tests import nets
from tests.test_reach import derivatives, in_rows
from tests.test_second_audit import Model, X

LRP0 = bilrp.LRP0()


def test_a_layer_named_input_is_not_the_input():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.out = nn.Linear(6, 5), nn.Linear(5, 4)
            self.double().eval()

        def forward(self, x):
            return self.out(self.input(x).relu())

    x, x2 = torch.randn(2, 6, dtype=torch.float64)
    e = bilrp.explain(Named(), x, x2, LRP0)
    assert len(set(e.owners)) == 3
    assert float(e.ledger[0, 0]) == pytest.approx(float(e.relevance.sum()))
    assert float(e.ledger.sum()) == pytest.approx(e.similarity)


# --- the copy that is run is the model -------------------------------------------------------


def keyed_by_a_module(s: Model, x: Tensor) -> Tensor:
    return s.layer(x) * s.held.get(s.layer, 1.0)


def keyed_by_a_parameter(s: Model, x: Tensor) -> Tensor:
    return s.layer(x) * s.held.get(s.layer.weight, 1.0)


def among_modules(s: Model, x: Tensor) -> Tensor:
    return s.layer(x) * (3 if s.layer in s.held else 1)


def among_parameters(s: Model, x: Tensor) -> Tensor:
    return s.layer(x) * (3 if any(p is s.layer.weight for p in s.held) else 1)


@pytest.mark.parametrize(
    ("forward", "held"),
    [
        (keyed_by_a_module, lambda layer: {layer: 3.0}),
        (keyed_by_a_parameter, lambda layer: {layer.weight: 3.0}),
        (among_modules, lambda layer: {layer}),
        (among_modules, lambda layer: frozenset([layer])),
        (among_parameters, lambda layer: [layer.weight]),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_what_is_found_by_a_module_or_parameter_is_found_in_the_copy(forward, held, training):
    model = Model(forward, size=4)
    model.held = held(model.layer)
    expected = model(X[None])[0]
    f = bilrp.factor(model.train(training), X, LRP0)
    torch.testing.assert_close(f.features.view(4, 4), expected)
    if isinstance(model.held, dict):
        assert all(k is model.layer or k is model.layer.weight for k in model.held)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("how", ["method", "closure", "default"])
def test_hooks_write_into_the_copy(training, how):
    """A shortcut that a hook keeps: bound to the model, to its list, or to both."""

    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.skips = nn.Linear(4, 4), []
            skips = self.skips
            hook = {
                "method": self.keep,
                "closure": lambda m, i, o: skips.append(o),
                "default": lambda m, i, o, into=skips: into.append(o),
            }[how]
            self.a.register_forward_hook(hook)
            self.double().eval()

        def keep(self, module, given, out):
            self.skips.append(out)

        def forward(self, x):
            self.skips.clear()
            return self.a(x).relu() + sum(self.skips)

    model = Kept()
    expected = model(X[None])[0]
    before = list(model.skips)
    f = bilrp.factor(model.train(training), X, LRP0)
    torch.testing.assert_close(f.features.view(4, 4), expected)
    assert len(before) == len(model.skips) == 1
    assert before[0] is model.skips[0]


def test_in_another_format_the_model_itself_is_asked_too():
    registry = {}
    model = Model(lambda s, x: s.layer(x) * REGISTRY.get(id(s.layer), 1.0), registry, size=4)
    REGISTRY[id(model.layer)] = 3.0
    model = model.float()
    with pytest.raises(NotImplementedError, match="other features than the model"):
        bilrp.factor(model, X.float(), LRP0, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="other features than the model"):
        bilrp.factor(model, X.float(), LRP0)


REGISTRY: dict[int, float] = {}


def test_writes_in_an_inference_mode_of_the_models_own_are_refused():
    @torch.inference_mode()
    def written(s: Model, x: Tensor) -> Tensor:
        y = s.layer(x)
        z = torch.zeros_like(y)
        z[..., 2:] = y[..., 2:]
        return (z + y).mean(1)

    with pytest.raises(NotImplementedError, match="inference mode"):
        bilrp.factor(Model(written, size=4), X, LRP0)
    with pytest.raises(NotImplementedError, match="inference mode"):
        bilrp.factor(
            Model(torch.inference_mode()(lambda s, x: F.relu(s.layer(x), True)), size=4), X, LRP0
        )

    plain = torch.inference_mode()(lambda s, x: s.layer(x).relu().sum(1, True)[:, 0])
    assert bilrp.factor(Model(plain, size=4), X, LRP0).features.shape == (4,)


@torch.jit.script
def first_row(w: Tensor, x: Tensor) -> Tensor:
    return w[x[:, 0]]


@torch.jit.script
def last_row(w: Tensor, x: Tensor) -> Tensor:
    return w[x[:, -1]]


@pytest.mark.parametrize("hidden", [first_row, last_row])
@pytest.mark.parametrize("ids", [[5, 3, 4, 6], [2, 2, 2], [7, 3, 3, 7]])
def test_hidden_calls_are_found_whichever_token_they_look_at(hidden, ids):
    model = Model(lambda s, x: s.held(x).mean(1) + hidden(s.held.weight, x), nn.Embedding(9, 4))
    with pytest.raises(NotImplementedError, match="cannot be seen"):
        bilrp.factor(model.double(), torch.tensor(ids), LRP0)


# --- first-order LRP -------------------------------------------------------------------------


def test_a_row_that_is_scattered_in():
    in_rows(
        Model(
            lambda s, x: torch.select_scatter(x.new_zeros(3, 4, 4), s.layer(x)[0], 0, 1)[None],
            size=4,
        )
    )


def test_torchs_own_batch_norm_has_its_arguments_in_another_order():
    w, b, mean, var = torch.rand(4, 4, dtype=torch.float64) + 0.1
    ours = Model(lambda s, x: F.batch_norm(s.layer(x), mean, var, w, b), size=4)
    theirs = Model(
        lambda s, x: torch.batch_norm(s.layer(x), w, b, mean, var, False, 0.1, 1e-5, False), size=4
    )
    theirs.load_state_dict(ours.state_dict())
    for x in (X,):
        torch.testing.assert_close(bilrp.lrp(theirs, x, LRP0), bilrp.lrp(ours, x, LRP0))
        nets.contract(theirs, x, LRP0)
    instance = Model(
        lambda s, x: torch.instance_norm(
            s.layer(x), w, b, None, None, True, 0.1, 1e-5, False
        ).flatten(1),
        size=4,
    )
    nets.contract(instance, X, LRP0)


def test_a_division_by_zero_that_is_left_out():
    def safe(s: Model, x: Tensor) -> Tensor:
        d = x.relu()
        return torch.where(d > 0, s.layer(x) / d, 0.0).mean(1)

    model = Model(safe, size=4)
    f = bilrp.factor(model, X, LRP0)
    assert bool(f.values.isfinite().all())
    torch.testing.assert_close(f.owned().sum(0), model(X[None])[0])
    relevance = bilrp.lrp(model, X, LRP0)
    torch.testing.assert_close(relevance.sum(1), f.values.sum(1))


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.layer(x / x.norm()).mean(1),
        lambda s, x: (s.layer(x) - x.amax()).mean(1),
        lambda s, x: s.layer(x * torch.softmax(x, 0)).mean(1),
    ],
)
def test_inputs_that_a_model_mixes_are_not_taken_together(forward):
    model = Model(forward, size=4)
    with pytest.raises(ValueError, match="mixes inputs"):
        bilrp.lrp(model, [X, 2 * X], LRP0)


def test_relevance_must_arrive():
    """A registered map that loses half is found by first-order LRP, too."""
    layer = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()

    def half(value, values):
        return Linear(value.inputs, lambda rows: rows / 2)

    with bilrp.registered(torch.tanh, half), pytest.raises(NotImplementedError, match="add up"):
        bilrp.lrp(layer, X[0], LRP0)


# --- factors ---------------------------------------------------------------------------------


def doubled(by: float):
    return lambda module, given, out: by * out


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.Tensor.relu, torch.Tensor.abs),
        (types.MethodType(lambda s, x: x, 1), types.MethodType(lambda s, x: -x, 1)),
    ],
)
def test_what_a_model_holds_tells_models_apart(one, other):
    first, second = (Model(lambda s, x: s.held(s.layer(x)), f, size=4) for f in (one, other))
    second.load_state_dict(first.state_dict())
    a, b = (bilrp.factor(m, X, LRP0).identity.model for m in (first, second))
    assert a != b


def test_hooks_that_close_over_other_numbers_tell_models_apart():
    models = [nn.Sequential(nn.Linear(4, 3)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, by in zip(models, (2.0, 3.0), strict=True):
        model[0].register_forward_hook(doubled(by))
    one, other = (bilrp.factor(m, X[0], LRP0) for m in models)
    with pytest.raises(ValueError, match="model"):
        one.explain(other)


# --- refused with a word ---------------------------------------------------------------------


def test_patches_of_what_is_no_image():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    x = nets.image(0, 8, 8)[:1]
    with pytest.raises(ValueError, match=r"patch=4 is for images.*\(1, 1, 8, 8\)"):
        bilrp.factor(model, x, LRP0, patch=4)
    assert bilrp.factor(model, x[None], LRP0, patch=4).grid == (2, 2)


@pytest.mark.parametrize(
    "groups", ["a", torch.tensor([0, 10**12, 1, 1]), torch.tensor([0.5, 1, 1, 1])]
)
def test_groups_that_are_none(groups):
    with pytest.raises(ValueError, match="groups"):
        bilrp.factor(nn.Linear(4, 2).double(), X[0], LRP0, groups=groups)


def test_groups_in_formats_that_torch_hardly_knows(tmp_path):
    model = nn.Linear(4, 2).double()
    ids = torch.tensor([0, 1, 1, 0])
    expected = bilrp.factor(model, X[0], LRP0, groups=ids)
    found = bilrp.factor(model, X[0], LRP0, groups=ids.to(torch.uint16), patch=np.int64(4))
    torch.testing.assert_close(found.values, expected.values)
    found.save(tmp_path / "x.npz")
    assert bilrp.load(tmp_path / "x.npz").grid == (2,)
    with pytest.raises(ValueError, match="seed"):
        bilrp.factor(model, X[0], LRP0, project=2, seed=1.5)
    with pytest.raises(ValueError, match="output must be"):
        bilrp.lrp(model, X[0], LRP0, output=[1.0, 0.0])


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: F.layer_norm(x, (4,), None, s.layer(x)[0, 0]).mean(1),
        lambda s, x: F.group_norm(x.mT, 2, s.layer(x)[0, 0]).mean(2),
        lambda s, x: s.layer(x) + torch.vmap(torch.sin)(s.layer(x)),
        lambda s, x: s.layer(x)[:, 0] * s.layer(x)[0, 0, 0].max(),
    ],
)
def test_refusals_name_the_call(forward):
    with pytest.raises(NotImplementedError):
        bilrp.factor(Model(forward, size=4), X, LRP0)


def test_places_of_any_kind_that_stand_apart():
    def written(s: Model, x: Tensor) -> Tensor:
        y = x.new_zeros(1, 4, 4, 4)
        y[:, np.array([0, 2]), :, np.array([1, 2])] = s.layer(x)[:, :2].transpose(0, 1)
        return y.flatten(1)

    with pytest.raises(NotImplementedError, match="stand apart"):
        bilrp.factor(Model(written, size=4), X, LRP0)


def test_names_of_arguments_that_only_look_alike():
    def angles(s: Model, x: Tensor) -> Tensor:
        constant = F.cosine_similarity(x1=X[None], x2=X.flip(0)[None])
        return s.layer(x).mean(1) + constant

    model = Model(angles, size=4)
    f = bilrp.factor(model, X, LRP0)
    ids = torch.arange(4)[:, None].expand(4, 4)
    torch.testing.assert_close(f.values, derivatives(model, X, ids))
