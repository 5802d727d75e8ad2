"""What is frozen, a number, or moved: against derivatives with the same parts detached."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilrp
from tests import nets
from tests.test_second_audit import Model, X


class Small(nn.Module):
    """A function of (1, T, 6) with weights of its own; `detached` holds still what is frozen."""

    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()
        self.heads = nn.Linear(2, 2).double()
        self.function, self.detached = function, False

    def frozen(self, t: Tensor) -> Tensor:
        return t.detach() if self.detached else t

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def mixed_heads(m: Small, x: Tensor) -> Tensor:
    """Attention whose heads are mixed after the softmax (CaiT)."""
    v = m.one(x).unflatten(2, (2, 3)).transpose(1, 2)
    weights = torch.softmax(v @ v.transpose(2, 3), -1)
    weights = m.heads(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return (m.frozen(weights) @ v).transpose(1, 2).flatten(2).mean(1)


def masked_mean(m: Small, x: Tensor) -> Tensor:
    """The mean of the rows that begin with a positive number, and how many there are."""
    mask = (x[..., :1] > 0).to(x.dtype)
    return (m.one(x) * m.frozen(mask)).sum(1) / m.frozen(mask.sum(1)) + m.frozen(mask.sum(1))


def written_through_a_view(m: Small, x: Tensor) -> Tensor:
    both = torch.cat([m.one(x), m.two(x)], 2)
    part = both[..., :6]
    part += x
    return part.mean(1)


def bicubic(m: Small, x: Tensor) -> Tensor:
    larger = F.interpolate(m.one(x)[None], size=(5, 11), mode="bicubic", antialias=False)[0]
    return F.interpolate(larger[None], size=(3, 4), mode="bicubic", antialias=True)[0].flatten(1)


def scaled(m: Small, x: Tensor) -> Tensor:
    """Plain numbers that float32 does not hold."""
    return (m.one(x) * 0.1 + 1.7139588594436646 / 3).mul_(1.1).mean(1)


@pytest.mark.parametrize(
    "function", [mixed_heads, masked_mean, written_through_a_view, bicubic, scaled]
)
def test_parts_are_derivatives_with_what_is_frozen_held_still(function):
    model = Small(function)
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = bilrp.factor(model, x, bilrp.Gamma(0.0))
    features = model(x[None])
    torch.testing.assert_close(f.values.sum(0) + f.absorbed.sum(0), features.flatten())
    model.detached = True
    for row in range(4):
        direction = torch.zeros_like(x)
        direction[row] = x[row]
        _, expected = torch.func.jvp(model, (x[None],), (direction[None],))
        torch.testing.assert_close(f.values[row], expected.flatten())
    model.detached = False
    trace = bilrp.Trace(model, x[None], bilrp.Gamma(0.0))
    c = torch.randn(2, *features.shape, dtype=torch.float64)
    pulled = trace.pull_rows(c)[0].flatten(2).sum((1, 2))
    torch.testing.assert_close(pulled, (f.values @ c.flatten(1).T).sum(0))


def test_masks_alone_are_refused():
    def function(m, x):
        return m.one((x > 0).double() + (x > 1).double()).mean(1)

    with pytest.raises(NotImplementedError, match="comparisons"):
        bilrp.factor(Small(function), torch.randn(4, 6, dtype=torch.float64), bilrp.Gamma(0.0))


def test_a_deep_network_does_not_reach_pythons_limit():
    def function(m, x):
        for _ in range(400):
            x = x + 0.01 * m.one(x) * torch.sigmoid(m.two(x))
        return x.mean(1)

    f = bilrp.factor(Small(function), torch.randn(2, 6, dtype=torch.float64), bilrp.Gamma(0.0))
    torch.testing.assert_close(f.values.sum(0) + f.absorbed.sum(0), f.features)


def weights_of(x):
    """One sigmoid a column."""
    return (2 * x.mean(0, keepdim=True) - 1).sigmoid()


STILL_GATES = {
    "expand_as": lambda x: weights_of(x).expand_as(x),
    "reshape_as": lambda x: weights_of(x).expand(4, 4).reshape_as(x),
    "broadcast_to": lambda x: torch.broadcast_to(weights_of(x), x.shape),
    "tile": lambda x: weights_of(x).tile(4, 1),
    "flip": lambda x: weights_of(x).flip(1),
    "index_select": lambda x: weights_of(x).index_select(1, torch.tensor([3, 0, 1, 1])),
    "mean": lambda x: weights_of(x).mean(1, keepdim=True),
    "pooled": lambda x: F.avg_pool1d(weights_of(x), 3, 1, 1),
    "clamp": lambda x: weights_of(x).clamp(0.4, 0.9),
    "amax": lambda x: weights_of(x).amax(1, keepdim=True),
    "square": lambda x: weights_of(x).square(),
    "relu6": lambda x: F.relu6(x.mean(0, keepdim=True) + 3) / 6,
    "clamped": lambda x: torch.clamp(x + 3, 0, 6) / 6,
    "hardtanh": lambda x: F.hardtanh(x + 3.0, 0.0, 6.0),
    "one by": lambda x: 1 / (1 + x.square().sum().sqrt()),
    "negative power": lambda x: (x.square().mean(1, keepdim=True) + 1e-6) ** -0.5,
    "pow": lambda x: torch.pow(x.square().sum() + 1, exponent=-0.5),
    "divided by its sum": lambda x: weights_of(x) / weights_of(x).sum(),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("kind", STILL_GATES)
def test_what_is_made_of_a_gate_remains_one(kind, swapped):
    """The signal owns the product: its parts are those of the frozen gate's."""
    make = STILL_GATES[kind]

    def forward(self, x):
        h = self.layer(x)
        return make(h[0])[None] * h if swapped else h * make(h[0])[None]

    model = Model(forward, size=4)
    frozen = make(model.layer(X)).detach()
    expected = (X @ model.layer.weight.T)[:, None] * torch.eye(4).double()[..., None] * frozen
    found = bilrp.factor(model, X, bilrp.LRP0()).values.view(4, 4, 4)
    torch.testing.assert_close(found, expected)
    nets.contract(model, X)


def test_of_a_tanh_less_remains_a_gate():
    """A signal may be a tanh as well, so its means are nobody's gate."""
    model = Model(lambda s, x: s.layer(x) * s.layer(x).tanh().mean(1, keepdim=True), size=4)
    with pytest.raises(NotImplementedError, match="two values of one kind"):
        bilrp.factor(model, X, bilrp.LRP0())


class Mixed(nn.Module):
    """A convolution whose weights are a mixture of two, by a sigmoid of the means."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixture, self.flat, self.detached = nn.Linear(2, 2), flat, False
        self.weights = nn.Parameter(torch.randn(2, 4 * 2 * 9))
        self.double().eval()

    def forward(self, x):
        w = (self.mixture(x.mean((2, 3))).sigmoid() @ self.weights).view(4, 2, 3, 3)
        w = w.detach() if self.detached else w
        return (
            F.linear(x.flatten(1), w[:, 0, :2].flatten(1)) if self.flat else F.conv2d(x, w).relu()
        )


@pytest.mark.parametrize("flat", [False, True])
def test_weights_that_are_computed_are_numbers(flat):
    """In a convolution; in a linear function, where it may be attention, a rule has to say so."""
    model = Mixed(flat)
    x = torch.rand(2, 1, 3, dtype=torch.float64) if flat else torch.rand(2, 4, 4).double()
    rules = bilrp.LRP0()
    if flat:
        with pytest.raises(NotImplementedError, match="weights that depend on the input"):
            bilrp.factor(model, x, rules, patch=1)
        rules = {"": bilrp.CPLRP(take=1), "*": rules}
    found = bilrp.factor(model, x, rules, patch=1).owned().sum(0)
    model.detached = True
    _, expected = torch.func.jvp(model, (x[None],), (x[None],))
    torch.testing.assert_close(found, expected.flatten())
    model.detached = False
    nets.contract(model, x, rules)
    if not flat:
        nets.contract(model, x, bilrp.Gamma(0.1))
        with pytest.raises(NotImplementedError, match="weights that depend on the input"):
            bilrp.factor(model, x, {"": bilrp.AttnLRP(), "*": bilrp.LRP0()}, patch=1)


def test_products_in_a_coarser_format_than_the_rows():
    """Attention in float32 inside float64, by einsum, which takes one format only."""

    def attend(form):
        torch.manual_seed(0)

        def forward(self, x):
            h = self.layer(x).to(form)
            return torch.einsum("bts,bsd->btd", torch.softmax(h, -1), h).to(x.dtype)

        return Model(forward, size=4)

    half = {"": bilrp.AttnLRP(), "*": bilrp.LRP0()}
    for rules in (bilrp.LRP0(), half):
        coarse, fine = (bilrp.factor(attend(t), X, rules).values for t in (torch.float32, X.dtype))
        torch.testing.assert_close(coarse, fine, rtol=1e-4, atol=1e-6)


def test_maps_that_are_correlated_by_a_convolution_need_a_rule():
    """As in trackers: the one is no weight of the other."""

    def correlated(self, x):
        h = self.layer(x)
        return F.conv1d(h[:, :, 2:], h[0, :, None, :2].expand(4, 4, 2)).relu()

    model = Model(correlated, size=4)
    with pytest.raises(NotImplementedError, match=r"depend on the input \(bilrp.CPLRP\(take=1\)"):
        bilrp.factor(model, X, bilrp.LRP0())
    nets.contract(model, X, {"": bilrp.CPLRP(take=1), "*": bilrp.LRP0()})


def test_a_sigmoid_in_plain_functions_is_a_gate_and_no_norm():
    model = Model(lambda s, x: s.layer(x) * (1 / (1 + torch.exp(-x))), size=4)
    fine = Model(lambda s, x: s.layer(x) * x.sigmoid(), size=4)
    fine.load_state_dict(model.state_dict())
    found, expected = (bilrp.factor(m, X, bilrp.LRP0()).values for m in (model, fine))
    torch.testing.assert_close(found, expected)
    with pytest.raises(NotImplementedError):
        bilrp.factor(model, X, {"": bilrp.AttnLRP(), "*": bilrp.LRP0()})
