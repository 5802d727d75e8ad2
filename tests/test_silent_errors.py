"""Numbers that were wrong though y, the ledger and the guard agreed: each against its formula.

A sum over owners cannot see that one owner has what another one should have, nor that a rule was
not heard. So here the parts themselves are compared.
"""

from __future__ import annotations

import functools
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bilrp
from bilrp.engine import cones
from bilrp.engine.shadow import exact
from tests import nets
from tests.nets import Plain, made, tokens

LRP0, GAMMA = bilrp.LRP0(), bilrp.Gamma(0.25)
V, V2, X, X2 = nets.vector(1), nets.vector(2), nets.image(1), nets.image(2)


# --- recurrent layers ------------------------------------------------------------------------


class Last(nn.Module):
    """The last state of a recurrent layer, from a learned first one or from zeros."""

    def __init__(self, kind, learned):
        super().__init__()
        self.cell = kind(6, 4, batch_first=True)
        states = 2 if kind is nn.LSTM else 1
        self.first = nn.ParameterList(nn.Parameter(torch.ones(1, 1, 4)) for _ in range(states))
        self.learned = learned

    def forward(self, x):
        given = tuple(self.first) if self.learned else None
        return self.cell(x, given if given is None or len(given) > 1 else given[0])[0][:, -1]


def gru_parts(model, x):
    """Gates as numbers: n = tanh(pre), h' = (1 - z) n + z h; parts of each token, (T, 4)."""
    c = model.cell
    h = model.first[0][0, 0] if model.learned else torch.zeros(4).double()
    parts = torch.zeros(len(x), 4, dtype=x.dtype)
    for t, v in enumerate(x):
        r, z, n = (v @ c.weight_ih_l0.T + c.bias_ih_l0).chunk(3)
        r2, z2, n2 = (h @ c.weight_hh_l0.T + c.bias_hh_l0).chunk(3)
        reset, update = (r + r2).sigmoid(), (z + z2).sigmoid()
        pre = n + reset * n2
        own = torch.zeros_like(x)
        own[t] = v
        moved = own @ c.weight_ih_l0[8:].T + reset * (parts @ c.weight_hh_l0[8:].T)
        parts = (1 - update) * moved * pre.tanh() / pre + update * parts
        h = (1 - update) * pre.tanh() + update * h
    return parts, h


def lstm_parts(model, x):
    c = model.cell
    zero = torch.zeros(4).double()
    h, state = (p[0, 0] for p in model.first) if model.learned else (zero, zero)
    parts = kept = torch.zeros(len(x), 4, dtype=x.dtype)
    for t, v in enumerate(x):
        gates = v @ c.weight_ih_l0.T + c.bias_ih_l0 + h @ c.weight_hh_l0.T + c.bias_hh_l0
        i, f, g, o = gates.chunk(4)
        own = torch.zeros_like(x)
        own[t] = v
        moved = own @ c.weight_ih_l0[8:12].T + parts @ c.weight_hh_l0[8:12].T
        kept = f.sigmoid() * kept + i.sigmoid() * g.tanh() / g * moved
        state = f.sigmoid() * state + i.sigmoid() * g.tanh()
        h = o.sigmoid() * state.tanh()
        parts = h / state * kept
    return parts, h


@pytest.mark.parametrize("learned", [False, True], ids=["from zeros", "from a learned state"])
@pytest.mark.parametrize(("kind", "expected"), [(nn.GRU, gru_parts), (nn.LSTM, lstm_parts)])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_gates_take_nothing_of_numbers_that_they_let_through(kind, expected, learned, count):
    model = nets.randomise(Last(kind, learned), 1)
    x = tokens(count=count)
    nets.contract(model, x[None], LRP0)
    f = bilrp.factor(model, x[None], LRP0, groups=torch.arange(count)[:, None].expand(-1, 6))
    with torch.no_grad():
        parts, h = expected(model, x)
    torch.testing.assert_close(f.features, h)
    torch.testing.assert_close(f.values, parts)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_step_by_step_are_their_layer(kind):
    whole = {nn.LSTMCell: nn.LSTM, nn.GRUCell: nn.GRU, nn.RNNCell: nn.RNN}[kind]
    layer = nets.randomise(whole(6, 4, batch_first=True), 1)
    cell = kind(6, 4).double().eval()
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})

    def steps(self, x):
        state = None
        for t in range(x.shape[1]):
            state = self.part(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state

    def last(self, x):
        return self.part(x)[0][:, -1]

    first, second = (
        bilrp.factor(Plain(f, part=part).eval(), tokens(), GAMMA).values
        for f, part in ((steps, cell), (last, layer))
    )
    torch.testing.assert_close(first, second)


# --- rules that were not heard ---------------------------------------------------------------

PRODUCTS = {
    "einsum": lambda self, x: torch.einsum("bd,ed->be", x, self.layer.weight).relu(),
    "einsum, weight first": lambda self, x: torch.einsum("ed,bd->be", self.layer.weight, x).relu(),
    "x @ w": lambda self, x: (x @ self.layer.weight.T).relu(),
    "w @ x": lambda self, x: (self.layer.weight @ x.T).T.relu(),
    "mv": lambda self, x: torch.mv(self.layer.weight, x[0])[None].relu(),
    "addmm_ into zeros": lambda self, x: (
        torch.zeros(1, 5, dtype=x.dtype).addmm_(x, self.layer.weight.T).relu()
    ),
}
RULES = (GAMMA, bilrp.Epsilon(0.1), bilrp.ZB(-4.0, 4.0), bilrp.Flat(), bilrp.AlphaBeta(2))


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_way_to_multiply_with_weights_obeys_the_rule(name):
    def linear(self, x):
        return self.layer(x).relu()

    for rule in RULES:
        if name == "w @ x" and not isinstance(rule, bilrp.Gamma):
            continue  # what a rule of one layer shares out at once ends at .T
        one, other = (
            bilrp.factor(made(f, layer=nn.Linear(6, 5, bias=False)), V, rule)
            for f in (linear, PRODUCTS[name])
        )
        torch.testing.assert_close(one.values, other.values)


@pytest.mark.parametrize("how", ["to", "type_as", "expand_as"])
def test_a_constant_brought_to_the_format_of_the_input_is_a_constant(how):
    def forward(self, x):
        return self.l((x + getattr(self.pos, how)(x)) * self.mean.to(x)).relu()

    def plain(self, x):
        return self.l((x + self.pos) * self.mean).relu()

    pos, mean = nn.Parameter(torch.randn(1, 5, 6)), torch.full((6,), 0.5).double()
    one, other = (
        bilrp.factor(made(f, l=nn.Linear(6, 4), pos=pos, mean=mean), nets.tokens(), GAMMA)
        for f in (forward, plain)
    )
    assert one.owners == other.owners
    torch.testing.assert_close(one.values, other.values)
    torch.testing.assert_close(one.absorbed, other.absorbed)


def test_a_model_that_writes_into_its_input_leaves_it_alone():
    def forward(self, x):
        x.sub_(0.3)
        return self.c(x).relu()

    def plain(self, x):
        return self.c(x - 0.3).relu()

    x = X.clone()
    one, other = (
        bilrp.explain(made(f, c=nn.Conv2d(3, 4, 3)), x, x, LRP0, patch=4) for f in (forward, plain)
    )
    assert torch.equal(x, X)
    torch.testing.assert_close(one.relevance, other.relevance)
    vector = V.clone()
    bilrp.factor(made(lambda self, v: self.l(v.mul_(2)), l=nn.Linear(6, 4)), vector, LRP0)
    assert torch.equal(vector, V)


@pytest.mark.parametrize(
    "product", [lambda a, b: a @ b, lambda a, b: torch.einsum("tij,tjk->tik", a, b)]
)
def test_each_factor_gets_half_of_a_value_times_itself(product):
    x = torch.randn(4, 4).double()
    rules = {"": bilrp.AttnLRP(), "*": LRP0}
    same, copies = (
        bilrp.factor(made(f), x, rules, groups=1)
        for f in (lambda self, t: product(t, t), lambda self, t: product(t, t + 0))
    )
    torch.testing.assert_close(same.values, copies.values)
    f = torch.func.jacrev(lambda t: product(t[None], t[None]).flatten())(x)
    expected = (0.5 * f * x).flatten(1).T  # of a product, each half counts its own
    torch.testing.assert_close(same.values, expected)


def test_a_mask_made_of_the_input_is_a_gate_under_attnlrp_too():
    def forward(self, x):
        mask = (x.abs().sum(-1, keepdim=True) > 2).double()
        return (self.l(x) * mask).sum(1) / mask.sum(1)

    model, x = made(forward, l=nn.Linear(6, 4)), nets.tokens()
    rules = {"*": bilrp.AttnLRP(), nn.Linear: LRP0}
    one, other = (bilrp.factor(model, x, r) for r in (rules, LRP0))
    torch.testing.assert_close(one.values, other.values)


def test_autocast_inside_a_forward_is_refused_in_words():
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.l(x).relu().float()

    with pytest.raises(NotImplementedError, match="autocast that the model turns on"):
        bilrp.factor(made(forward, l=nn.Linear(6, 4)).float(), V.float(), LRP0)


def test_where_all_features_are_dead_nobody_owns_anything():
    def forward(self, x):
        return (self.c(x) - 99).relu().amax((2, 3)).reshape(1, -1)

    e = bilrp.explain(made(forward, c=nn.Conv2d(3, 4, 3)), X, X, LRP0, patch=4)
    assert e.similarity == 0
    assert not e.relevance.any()


def test_gamma_at_lerp_beyond_its_ends():
    def between(self, x):
        return torch.lerp(x, self.layer(x), -0.3).relu()

    def written(self, x):
        return (1.3 * x - 0.3 * self.layer(x)).relu()

    for rule in (GAMMA, bilrp.Gamma(0.25, "shared")):
        one, other = (
            bilrp.factor(made(f, layer=nn.Linear(6, 6)), V, rule) for f in (between, written)
        )
        torch.testing.assert_close(one.values, other.values)


# --- writes and ways past the record ---------------------------------------------------------


class Held(nn.Module):
    """Its layers are reached through a function that holds the module."""

    def __init__(self, how):
        super().__init__()
        self.c, self.b, self.d = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 3)
        self.how = {
            "method": self.run,
            "partial": functools.partial(self.run),
            "lambda": lambda x: self.run(x),
            "layers": lambda x: self.d(self.b(self.c(x)).relu()).relu(),
            "default": lambda x, m=self: m.run(x),
        }[how]

    def run(self, x):
        return self.d(self.b(self.c(x)).relu()).relu()

    def forward(self, x):
        return self.how(x)


@pytest.mark.parametrize("how", ["partial", "lambda", "layers", "default"])
def test_functions_that_hold_modules_hold_their_copies(how):
    model, usual = (nets.randomise(Held(h), 1) for h in (how, "method"))
    for rules in ({1: LRP0, "*": GAMMA}, {nn.Conv2d: GAMMA, "*": LRP0}, {"d": GAMMA, "*": LRP0}):
        one, other = (bilrp.factor(m, X, rules, patch=4) for m in (model, usual))
        torch.testing.assert_close(one.dense(), other.dense())
        assert one.owners == other.owners
    model.train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    square = X[:, :16, :16], X2[:, :16, :16]
    bilrp.MaxOverTransforms(model).best(*square)
    bilrp.explain(model, *square, GAMMA, patch=4)
    for k, v in model.state_dict().items():
        assert torch.equal(v, state[k])


OUTSIDE = nets.randomise(nn.Linear(6, 4), 1)


def test_a_module_reached_past_its_copy_is_refused():
    class Global(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = OUTSIDE

        def forward(self, x):
            return OUTSIDE(x).relu()

    with pytest.raises(NotImplementedError, match="past its copy"):
        bilrp.factor(Global().eval(), V, GAMMA)


class Clamping(nn.Module):
    def __init__(self, data):
        super().__init__()
        self.layer, self.data = nn.Linear(6, 4), data

    def forward(self, x):
        weight = self.layer.weight
        (weight.data if self.data else weight).clamp_(-0.1, 0.1)
        return self.layer(x).relu()


@pytest.mark.parametrize("data", [False, True])
def test_a_forward_that_writes_into_weights_is_refused_before_it_does(data):
    model = nets.randomise(Clamping(data), 1)
    before = model.layer.weight.clone()
    with pytest.raises(NotImplementedError, match="must not change a model"):
        bilrp.explain(model, V, V2, GAMMA)
    assert torch.equal(before, model.layer.weight)
    table = nets.randomise(nn.Sequential(nn.Embedding(9, 6, max_norm=1.0), nn.Flatten()), 1)
    before = table[0].weight.clone()
    with pytest.raises(NotImplementedError, match="must not change a model"):
        bilrp.explain(table, torch.tensor([1, 2, 3]), torch.tensor([1, 2, 4]))
    assert torch.equal(before, table[0].weight)


def test_counters_of_a_model_do_not_move():
    def counting(self, x):
        self.calls += 1
        self.many += 1
        self.seen.append(1)
        return self.layer(x).relu()

    model = made(counting, layer=nn.Linear(6, 4), calls=0, many=torch.zeros(()), seen=[])
    bilrp.explain(model, V, V2, GAMMA)
    assert (model.calls, float(model.many), model.seen) == (0, 0.0, [])


def test_float32_has_all_its_bits_on_a_gpu_and_the_switch_goes_back(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as if there were one
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with exact(), exact():
            assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
        assert (matmul.fp32_precision, conv.fp32_precision) == ("tf32", before[1])
    finally:
        matmul.fp32_precision = before[0]


# --- owners, one by one ----------------------------------------------------------------------


def random_network(rng):
    act = rng.choice([nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU])
    stem = nn.Conv2d(
        3,
        4,
        rng.choice([1, 2, 3, (3, 2)]),
        stride=rng.choice([1, 2, (2, 1), 3]),
        padding=rng.randint(0, 2),
        dilation=rng.choice([1, 2]),
    )
    layers = [stem, act()]
    pool = rng.choice([nn.MaxPool2d, nn.AvgPool2d, None])
    if pool:
        layers.append(pool(rng.choice([2, 3]), 2, ceil_mode=rng.random() < 0.5))
    layers += [nn.Conv2d(4, 6, 3, groups=2, padding=1), act()]
    if rng.random() < 0.5:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    return nets.randomise(nn.Sequential(*layers), rng.randint(0, 1000))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rule", [GAMMA, bilrp.Epsilon(0.1)], ids=str)
def test_each_owner_has_what_pulling_back_gives_it(seed, rule):
    nets.contract(random_network(random.Random(seed)), nets.image(seed, 16, 24), rule)


def test_the_contract_sees_owners_that_are_exchanged(monkeypatch):
    push = cones.Cones.push

    def turned(self, chunk):
        for numbers, windows in push(self, chunk):
            yield numbers.flip(0), windows

    monkeypatch.setattr(cones.Cones, "push", turned)
    found = []
    for seed in range(9):
        try:
            nets.contract(random_network(random.Random(seed)), nets.image(seed, 16, 24), GAMMA)
        except AssertionError as error:
            found.append("owners" in str(error))
    assert sum(found) > 2


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_images_that_are_only_moved(patch):
    for model in (nn.Identity(), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)):
        f = bilrp.factor(model, X, LRP0, patch=patch)
        torch.testing.assert_close(f.dense().sum(0), model(X[None]).flatten())
        nets.contract(model.eval(), X, LRP0)


# --- factors know what they are --------------------------------------------------------------


def test_options_beside_two_factors_are_refused():
    model = nets.mlp(1)
    f, g = (bilrp.factor(model, v, GAMMA) for v in (V, V2))
    torch.testing.assert_close(
        bilrp.explain(model, f, g, GAMMA).relevance, bilrp.explain(model, V, V2, GAMMA).relevance
    )
    for options in (
        {"rules": LRP0},
        {"project": 3},
        {"seed": 4},
        {"dtype": torch.float32},
        {"groups": 2},
        {"patch": 4},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: both inputs are factors"):
            bilrp.explain(model, f, g, **options)
    with pytest.raises(ValueError, match=r"float64 on cpu and torch\.float32"):
        f.explain(bilrp.factor(model, V2, GAMMA, dtype=torch.float32))


def test_cancellation_is_told_wherever_a_pair_is_explained():
    layer = nets.randomise(nn.Linear(6, 1, bias=False), 1)
    with torch.no_grad():
        layer.weight.copy_(1e3 * torch.tensor([[1.0, -1, 1, -1, 1, -1]]))
    x = torch.ones(6).double() + 1e-7 * V
    with pytest.warns(UserWarning, match="mostly cancellation"):
        bilrp.explain(layer, x, x, LRP0)
    f = bilrp.factor(layer, x, LRP0)
    with pytest.warns(UserWarning, match="mostly cancellation"):
        f.explain(f)
    level = nets.randomise(nn.Linear(6, 1), 1)
    with torch.no_grad():  # the input against the bias, which the patches alone do not show
        level.weight.fill_(1e3)
        level.bias.copy_(-level.weight.sum(1) + 1e-4)
    with pytest.warns(UserWarning, match="mostly cancellation"):
        bilrp.explain(level, *[torch.ones(6).double()] * 2, LRP0, groups=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bilrp.explain(nets.mlp(1), V, V, GAMMA, similarity="-l2")


# --- maps and functions ----------------------------------------------------------------------


def test_a_registered_map_is_used_for_functions_that_hide_others():
    seen = []

    def builder(value, values):
        seen.append(value.name)
        raise NotImplementedError("asked")

    cases = {
        F.glu: lambda self, x: F.glu(x),
        torch.absolute: lambda self, x: torch.absolute(x),
        F.normalize: lambda self, x: F.normalize(x),
    }
    for function, forward in cases.items():
        with bilrp.registered(function, builder), pytest.raises(NotImplementedError, match="asked"):
            bilrp.factor(made(forward), V, LRP0)
    assert len(seen) == 3


def test_a_graph_module_is_a_model():
    model = nets.mlp(1)
    traced = torch.fx.symbolic_trace(model)
    one, other = (bilrp.factor(m, V, GAMMA) for m in (model, traced))
    torch.testing.assert_close(one.values, other.values)


@pytest.mark.parametrize(
    "act",
    [
        nn.LogSigmoid(),
        nn.Threshold(0.1, -2.0),
        Plain(lambda self, x: x.pow(3)),
        Plain(lambda self, x: x.square()),
    ],
)
def test_more_activations(act):
    nets.contract(nets.randomise(nn.Sequential(nn.Linear(6, 5), act, nn.Linear(5, 3)), 1), V, GAMMA)


@pytest.mark.parametrize(
    "pool",
    [
        nn.LPPool2d(2, 2),
        Plain(lambda self, x: F.avg_pool2d(x.clamp(min=1e-6).pow(3.0), 2).pow(1 / 3)),
    ],
    ids=["LPPool2d", "generalised mean"],
)
def test_more_poolings(pool):
    model = nets.randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool), 1)
    nets.contract(model, X, GAMMA)


def test_powers_that_are_infinite_at_nothing_are_refused():
    model = made(lambda self, x: self.layer(x).pow(-1), layer=nn.Linear(6, 4))
    with pytest.raises(NotImplementedError, match="not finite at 0"):
        bilrp.factor(model, V, LRP0)


def test_a_call_that_writes_its_result_elsewhere_is_refused():
    def forward(self, x):
        return torch.add(x, x, out=torch.empty_like(x))

    with pytest.raises(NotImplementedError, match=r"Register a map|writes into"):
        bilrp.factor(made(forward, layer=nn.Linear(6, 4)), V, LRP0)
