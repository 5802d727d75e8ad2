"""Any network of torch functions: the contract of `nets.contract`, or a clear refusal."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bilrp
from bilrp.engine.plan import Plan
from tests import nets
from tests.nets import made, tokens

GAMMA, LRP0 = bilrp.Gamma(0.25), bilrp.LRP0()
V, V2 = nets.vector(1), nets.vector(2)


# --- random networks --------------------------------------------------------------------------

ACTIVATIONS = [
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Hardswish,
    nn.Mish, nn.Softplus, nn.Identity,
]  # fmt: skip


class Block(nn.Module):
    def __init__(self, channels, activation, norm, concatenate):
        super().__init__()
        self.concatenate = concatenate
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels) if norm else nn.Identity(),
            activation(),
            nn.Conv2d(channels, channels, 1, bias=not norm),
            nn.BatchNorm2d(channels) if norm else nn.Identity(),
        )
        self.last = activation()

    def forward(self, x):
        y = self.body(x)
        return self.last(torch.cat([x, y], 1)[:, ::2] if self.concatenate else x + y)


@st.composite
def networks(draw, activations=tuple(ACTIVATIONS)):
    activation = draw(st.sampled_from(activations))
    stem = nn.Conv2d(
        3,
        4,
        draw(st.sampled_from([1, 2, 3, (3, 2)])),
        stride=draw(st.sampled_from([1, 2, (2, 1), 3])),
        padding=draw(st.integers(0, 2)),
        dilation=draw(st.sampled_from([1, 2])),
        bias=draw(st.booleans()),
    )
    layers = [stem, activation()]
    pool = draw(st.sampled_from([nn.MaxPool2d, nn.AvgPool2d, None]))
    if pool is not None:
        layers.append(pool(draw(st.sampled_from([2, 3])), 2, ceil_mode=draw(st.booleans())))
    for _ in range(draw(st.integers(1, 3))):
        layers.append(Block(4, activation, draw(st.booleans()), draw(st.booleans())))
    layers += [nn.Conv2d(4, 6, 3, groups=2, padding=1), activation()]
    if draw(st.booleans()):
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    return nets.randomise(nn.Sequential(*layers), draw(st.integers(0, 1000)))


ANY_RULE = {
    "lrp0": LRP0,
    "gamma": GAMMA,
    "shared": bilrp.Gamma(0.1, biases="shared"),
    "gamma0 shared": bilrp.Gamma(0.0, biases="shared"),
    "epsilon": bilrp.Epsilon(0.1),
    "z+": bilrp.ZPlus(),
    "alpha-beta": bilrp.AlphaBeta(2.0),
    "zb": {1: bilrp.ZB(0.0, 1.0), range(2, 99): GAMMA},
    "zb above": {1: LRP0, range(2, 99): bilrp.ZB(-50.0, 50.0)},
    "w2": {1: bilrp.WSquare(), range(2, 99): bilrp.Gamma(0.1, biases="shared")},
    "flat": {1: bilrp.Flat(), range(2, 9): GAMMA, range(9, 99): bilrp.Epsilon(1e-3)},
    "flat above": {1: GAMMA, range(2, 99): bilrp.Flat()},
    "w2 above": {1: GAMMA, range(2, 99): bilrp.WSquare()},
    "pass": {nn.BatchNorm2d: bilrp.Pass(), "*": GAMMA},
}


@pytest.mark.parametrize("name", ANY_RULE)
@settings(max_examples=6, deadline=None)
@given(model=networks(), seed=st.integers(0, 100))
def test_random_networks_under_every_rule(name, model, seed):
    rules = ANY_RULE[name]
    if name == "pass" and not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        rules = GAMMA
    x = nets.image(seed, 16, 24)
    x[:, 2:7, 3:9] = 0  # black pixels
    nets.contract(model, x, rules, seed)


def paths(linear_layers, a):
    """Contributions of all paths through linear maps and a bias each, as a list per output."""
    found = torch.diag(a)  # (paths, units): where each path stands
    for w, b in linear_layers:
        found = (found[:, :, None] * w.T[None]).flatten(0, 1)
        found = torch.cat([found, torch.diag(b)])
    return found


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), gamma=st.floats(0.01, 3))
def test_joint_gamma_against_all_paths_written_out(seed, gamma):
    """Owners of a segment of two linear maps: t = f (p + gamma q), q the paths that are for it."""
    model = nets.randomise(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.ReLU()), seed)
    x = nets.vector(seed) - 0.3
    with torch.no_grad():
        t = paths([(m.weight, m.bias) for m in model[:2]], x)  # (paths, 4)
        pre = t.sum(0)
        torch.testing.assert_close(pre, model[:2](x))
        weighted = t * (1 + gamma * (t * pre > 0).double())
        expected = weighted / weighted.sum(0) * pre.clamp(min=0)
    f = bilrp.factor(model, x, bilrp.Gamma(gamma))
    # Which owner a path began with: follow the order in which `paths` lists them.
    own = torch.arange(6).repeat_interleave(6)
    own = torch.cat([own, torch.full((5,), 6)]).repeat_interleave(5)
    own = torch.cat([own, torch.full((4,), 7)])
    parts = torch.zeros(8, 4, dtype=torch.float64).index_add_(0, own, expected)
    torch.testing.assert_close(f.values, parts[:6])
    assert f.owners == ("input", "0", "1")
    torch.testing.assert_close(f.absorbed, parts[6:])
    alive = pre > 0
    size = weighted[:, alive].abs().sum(0)
    assert bool((size <= (2 + gamma) / gamma * weighted[:, alive].sum(0).abs() + 1e-12).all())


@settings(max_examples=20, deadline=None)
@given(
    model=networks((nn.ReLU, nn.GELU, nn.LeakyReLU)),
    gamma=st.sampled_from([0.02, 0.1, 1.0]),
    seed=st.integers(0, 100),
)
def test_the_bound_of_joint_gamma_at_every_end(model, gamma, seed):
    """sum |t| <= (2 + gamma) / gamma |sum t| over path contributions, at each segment's end."""
    trace = bilrp.Trace(model, nets.image(seed, 16, 24)[None], bilrp.Gamma(gamma))
    plan = Plan(trace._run, trace.output, None)
    ends = [(s.parents[0], s.end) for s in plan.steps if s.end is not None]
    ends += plan.closing.items()
    for n, end in ends:
        if end.f_m is None:
            continue
        before, size = plan.run.data(n), plan.magnitude[n]
        for_, against = (size + before) / 2, (size - before) / 2  # both not negative
        contributions = (end.f_p + end.f_m) * for_, (end.f_m - end.f_p) * against
        magnitudes = sum(t.abs() for t in contributions)
        assert bool((magnitudes <= (2 + gamma) / gamma * sum(contributions).abs() + 1e-9).all())


def test_gamma_of_every_layer_is_tame_where_each_for_itself_blows_up():
    """A deep ReLU network with shortcuts and norms: magnitudes stay within a few times y."""
    blocks = [Block(4, nn.ReLU, True, False) for _ in range(6)]
    model = nets.randomise(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *blocks), 5)
    x = nets.image(3)
    f = bilrp.factor(model, x, bilrp.Gamma(0.25), patch=4)
    size = (f.values.abs().sum(0) + f.absorbed.abs().sum(0)).sum()
    assert float(size / f.features.sum()) < 9


# --- gamma 0 is the derivative with gates frozen ----------------------------------------------


class SqueezeExcite(nn.Module):
    def __init__(self, channels, frozen=False):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)
        self.frozen = frozen

    def forward(self, x):
        gate = self.up(F.silu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return x * (gate.detach() if self.frozen else gate)


class Norm(nn.LayerNorm):
    """Layer norm whose spread is a number."""

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        spread = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return centred / spread.detach() * self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, size=6, heads=2, frozen=False):
        super().__init__()
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.heads, self.frozen = heads, frozen

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        weights = weights.detach() if self.frozen else weights
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, frozen=False):
        super().__init__()
        norm = Norm if frozen else nn.LayerNorm
        self.position = nn.Parameter(torch.zeros(5, 6))
        self.norm1, self.norm2, self.norm3 = norm(6), norm(6), norm(6)
        self.attention = Attention(frozen=frozen)
        self.mlp = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6))
        self.scale = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        x = x + self.position
        x = x + self.scale * self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.norm3(x).mean(1)


def se_net(frozen):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        SqueezeExcite(4, frozen),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return nets.randomise(net, 7)


@pytest.mark.parametrize("kind", ["transformer", "se"])
@pytest.mark.parametrize("rules", [LRP0, bilrp.Gamma(0.0)])
def test_gamma_zero_is_the_derivative_of_the_model_with_frozen_parts(kind, rules):
    if kind == "se":
        model, frozen, x = se_net(False), se_net(True), nets.image(1, 8, 8)
    else:
        model, frozen = (nets.randomise(Transformer(f), 3) for f in (False, True))
        x = tokens()
    frozen.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x[None]), frozen(x[None]))
    f = bilrp.factor(model, x, rules, patch=4)
    for k, part in enumerate(f.values):
        if kind == "se":
            mask = torch.zeros_like(x)
            mask[:, k // 2 * 4 : k // 2 * 4 + 4, k % 2 * 4 : k % 2 * 4 + 4] = 1
        else:
            mask = torch.zeros_like(x)
            mask[k] = 1
        # jvp would look through detach(); the gradient does not.
        leaf = x[None].clone().requires_grad_()
        out = frozen(leaf)[0]
        grads = [torch.autograd.grad(v, leaf, retain_graph=True)[0][0] for v in out]
        torch.testing.assert_close(part, torch.stack([(g * mask * x).sum() for g in grads]))
    nets.contract(model, x, rules)
    if kind == "transformer":
        assert "position" in f.owners
        assert {"norm1", "norm2", "norm3", "attention.qkv", "mlp.0"} <= set(f.owners)


# --- attention --------------------------------------------------------------------------------


def multihead(**options):
    def forward(self, x):
        out = self.attention(x, x, x, **options)
        return out[0]

    return made(forward, attention=nn.MultiheadAttention(6, 2, batch_first=True))


def sdpa(mask=None, causal=False):
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(out.transpose(1, 2).flatten(2))

    return made(forward, qkv=nn.Linear(6, 18), out=nn.Linear(6, 6))


def by_exp(self, x):
    q, k, v = self.qkv(x).chunk(3, -1)
    e = torch.exp(q @ k.mT / 3)
    return self.out(e / e.sum(-1, keepdim=True) @ v)


LOWER = torch.ones(5, 5).tril().bool()
ATTENTIONS = {
    "multihead": lambda: multihead(need_weights=False),
    "multihead with weights": lambda: multihead(need_weights=True),
    "multihead masked": lambda: multihead(attn_mask=~LOWER),
    "sdpa": lambda: sdpa(),
    "sdpa masked": lambda: sdpa(LOWER),
    "sdpa with numbers": lambda: sdpa(torch.randn(5, 5, dtype=torch.float64)),
    "sdpa causal": lambda: sdpa(causal=True),
    "written out": lambda: nets.randomise(Attention(), 1),
    "exp over sum": lambda: made(by_exp, qkv=nn.Linear(6, 18), out=nn.Linear(6, 6)),
    "encoder layer": lambda: nets.randomise(
        nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.1), 1
    ),
    "encoder layer, norm first": lambda: nets.randomise(
        nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True, activation="gelu"), 1
    ),
}


@pytest.mark.parametrize(
    "rules", [None, GAMMA, bilrp.Epsilon(0.1)], ids=["default", "gamma", "eps"]
)
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_of_every_form(kind, rules):
    nets.contract(ATTENTIONS[kind](), tokens(), rules)


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_under_attn_lrp(kind):
    nets.contract(ATTENTIONS[kind](), tokens(), {nn.Module: bilrp.AttnLRP(), "*": LRP0})


def test_attn_lrp_equals_its_formulas_written_slowly():
    """Achtibat et al. (2024): matmul halves, softmax by its expansion, one head, one query."""
    model = made(lambda self, x: torch.softmax(x @ self.w, -1) @ x, w=nn.Identity())
    w = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    model.w = nn.Parameter(w)
    x = tokens()
    relevance = torch.randn(5, 6, dtype=torch.float64)
    found = bilrp.lrp(model, x, {nn.Module: LRP0, "*": bilrp.AttnLRP()}, relevance)
    z = x @ w
    s = torch.softmax(z, -1)
    out = s @ x
    to_s, expected = torch.zeros(5, 5).double(), torch.zeros(5, 6).double()
    for i in range(5):
        for d in range(6):
            for j in range(5):
                message = s[i, j] * x[j, d] / (2 * out[i, d]) * relevance[i, d]
                to_s[i, j] += message
                expected[j, d] += message
    to_z = z * (to_s - s * to_s.sum(-1, keepdim=True))
    for i in range(5):
        for j in range(5):
            for d in range(6):
                expected[i, d] += x[i, d] * w[d, j] / z[i, j] * to_z[i, j]
    torch.testing.assert_close(found, expected)


# --- recurrent --------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [None, GAMMA], ids=["default", "gamma"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True},
        {"bidirectional": True, "batch_first": True},
        {"num_layers": 2, "batch_first": True, "bias": False},
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_recurrent_networks(kind, options, rules):
    first = options.get("batch_first", False)

    def forward(self, x):
        out, _ = self.cells(x if first else x.transpose(0, 1))
        return out[:, -1] if first else out[-1]

    model = made(forward, cells=kind(6, 4, **options))
    nets.contract(model, tokens(), rules)


def test_the_projection_and_the_last_state_of_an_lstm():
    model = made(lambda self, x: self.cells(x)[1][0][-1], cells=nn.LSTM(6, 4, proj_size=3,
                 batch_first=True))  # fmt: skip
    nets.contract(model, tokens())


def test_an_lstm_cell_gives_the_signal_all_and_its_gates_nothing():
    """Arras et al. (2017), one step from a zero state: c = i * tanh(g), h = o * tanh(c)."""
    model = made(lambda self, x: self.cells(x)[0][:, -1], cells=nn.LSTM(6, 4, batch_first=True))
    x = tokens(count=1)
    cell = model.cells
    f = bilrp.factor(model, x[None], LRP0, groups=torch.arange(6)[None])
    with torch.no_grad():
        gates = x[0] @ cell.weight_ih_l0.T + cell.bias_ih_l0 + cell.bias_hh_l0
        i, _, g, o = gates.chunk(4)
        h = o.sigmoid() * torch.tanh(i.sigmoid() * g.tanh())
        expected = cell.weight_ih_l0[8:12].T * x[0][:, None] / g * h
    torch.testing.assert_close(f.features, h)
    torch.testing.assert_close(f.values, expected)


# --- other parts ------------------------------------------------------------------------------

PARTS = {
    "se": (lambda: se_net(False), nets.image(1, 8, 8)),
    "layer scale": (
        lambda: made(lambda self, x: x + self.s * F.gelu(self.l(x)), s=nn.Parameter(torch.ones(6)),
                     l=nn.Linear(6, 6)), tokens()),
    "glu": (lambda: made(lambda self, x: F.glu(self.l(x), -1), l=nn.Linear(6, 8)), tokens()),
    "group norm": (
        lambda: made(lambda self, x: self.n(self.c(x)).relu(), c=nn.Conv2d(3, 6, 3),
                     n=nn.GroupNorm(3, 6)), nets.image(1, 8, 8)),
    "instance norm": (
        lambda: made(lambda self, x: self.n(self.c(x)).relu(), c=nn.Conv2d(3, 6, 3),
                     n=nn.InstanceNorm2d(6, affine=True)), nets.image(1, 8, 8)),
    "rms norm": (
        lambda: made(lambda self, x: self.l(self.n(x)).relu(), n=nn.RMSNorm(6), l=nn.Linear(6, 4)),
        tokens()),
    "layer norm": (
        lambda: made(lambda self, x: self.l(self.n(x)).relu(), n=nn.LayerNorm(6),
                     l=nn.Linear(6, 4)), tokens()),
    "conv1d": (
        lambda: nets.randomise(nn.Sequential(nn.Conv1d(3, 4, 3, 2, 1), nn.BatchNorm1d(4),
                                             nn.ReLU(), nn.AvgPool1d(2), nn.MaxPool1d(2)), 1),
        tokens(1, 3, 16)),
    "conv3d": (
        lambda: nets.randomise(nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4),
                                             nn.ReLU(), nn.AvgPool3d(2), nn.MaxPool3d(2)), 1),
        None),
    "transposed": (
        lambda: nets.randomise(nn.Sequential(
            nn.ConvTranspose2d(3, 6, 3, 2, 1, output_padding=1, groups=3), nn.BatchNorm2d(6),
            nn.ReLU(), nn.ConvTranspose2d(6, 4, (2, 3), dilation=2), nn.BatchNorm2d(4),
            nn.ReLU()), 1), nets.image(1, 6, 6)),
    "same": (
        lambda: nets.randomise(nn.Sequential(
            nn.Conv2d(3, 4, (4, 2), padding="same"), nn.ReLU(),
            nn.Conv2d(4, 4, 2, padding="same", dilation=3, groups=2), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding="valid"), nn.ReLU()), 1), nets.image(1, 8, 8)),
    "padding modes": (
        lambda: nets.randomise(nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), nn.ReLU(),
            nn.ReplicationPad2d(1), nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 2, 3), nn.ReLU()), 1),
        nets.image(1, 8, 8)),
    "einsum": (
        lambda: made(lambda self, x: torch.einsum("btd,de->bte", x, self.w).relu(),
                     w=nn.Parameter(torch.ones(6, 4))), tokens()),
    "matmul": (
        lambda: made(lambda self, x: (x @ self.w + self.w[0]).relu().mean(1),
                     w=nn.Parameter(torch.ones(6, 4))), tokens()),
    "left matmul": (
        lambda: made(lambda self, x: torch.matmul(self.w, x).relu(),
                     w=nn.Parameter(torch.ones(4, 5))), tokens()),
    "addmm": (
        lambda: made(lambda self, x: torch.addmm(self.b, x, self.w).relu(),
                     w=nn.Parameter(torch.ones(6, 4)), b=nn.Parameter(torch.ones(4))), V),
    "in place": (
        lambda: made(lambda self, x: F.relu_(self.l(x).add_(1).mul_(0.5)).clamp_(max=2.0),
                     l=nn.Linear(6, 6)), V),
    "set item": (
        lambda: made(lambda self, x: _filled_in(self.l(x)), l=nn.Linear(6, 6)), V),
    "class token": (
        lambda: made(lambda self, x: self.l(torch.cat([self.t.expand(len(x), -1, -1), x], 1))[:, 0]
                     + x.mean(1) @ self.w, t=nn.Parameter(torch.ones(1, 1, 6)), l=nn.Linear(6, 4),
                     w=nn.Parameter(torch.ones(6, 4))), tokens()),
    "min and max": (
        lambda: made(lambda self, x: torch.maximum(self.l(x), x).amax(-1)
                     + torch.minimum(x, self.b).min(-1).values, l=nn.Linear(6, 6),
                     b=nn.Parameter(torch.ones(6))), tokens()),
    "upsampling": (
        lambda: nets.randomise(nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3),
            nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.PixelShuffle(2),
            nn.AdaptiveMaxPool2d(3)), 1), nets.image(1, 8, 8)),
    "pooling": (
        lambda: nets.randomise(nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            nn.AdaptiveAvgPool2d((3, 2)), nn.AdaptiveMaxPool2d(2)), 1), nets.image(1, 12, 12)),
    "softplus and its like": (
        lambda: nets.randomise(nn.Sequential(
            nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 8),
            nn.CELU(), nn.SELU(), nn.Hardsigmoid(), nn.PReLU(), nn.Softsign()), 1), V),
    "window shift": (
        lambda: made(lambda self, x: self.l(x.roll(2, 1).unflatten(1, (2, 3)).transpose(1, 2)
                                            .reshape(len(x), 2, -1)).relu(), l=nn.Linear(18, 4)),
        tokens(1, 6, 6)),
    "unused branch": (
        lambda: made(lambda self, x: (self.l(x).relu(), torch.cumprod(self.l(x), -1))[0],
                     l=nn.Linear(6, 4)), V),
}  # fmt: skip


def _filled_in(y):
    out = torch.zeros(1, 6, dtype=y.dtype)
    out[:, ::2] = y[:, :3]
    out[:, 1] = 0.5
    y[:, 4] = 2 * y[:, 0]
    return out.relu() + y


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_networks(name):
    make, x = PARTS[name]
    for rules in (LRP0, GAMMA, bilrp.Gamma(0.1, biases="shared"), bilrp.Epsilon(0.1)):
        model = make()
        if x is None:
            x = torch.rand(2, 4, 6, 4, dtype=torch.float64)
        if x.dim() == 4:
            with pytest.raises(ValueError, match="say who owns"):
                bilrp.factor(model, x, rules)
            ids = torch.arange(4).view(1, 4, 1, 1).expand(x.shape)
            e = bilrp.explain(model, x, x, rules, groups=ids)
            size = float(e.ledger.abs().sum())
            assert float(e.ledger.sum()) == pytest.approx(e.similarity, abs=1e-10 * size)
            assert e.similarity == pytest.approx(float(model(x[None]).square().sum()))
            continue
        nets.contract(model, x, rules)


def test_a_product_of_two_equals_needs_a_word_who_owns_it():
    model = made(lambda self, x: self.a(x) * self.b(x), a=nn.Linear(6, 8),
                 b=nn.Linear(6, 8))  # fmt: skip
    with pytest.raises(NotImplementedError, match=r"neither is a gate.*CPLRP\(take=1\)"):
        bilrp.factor(model, tokens(), GAMMA)
    values = []
    for rule in (bilrp.CPLRP(take=1), bilrp.CPLRP(take=2), bilrp.AttnLRP()):
        nets.contract(model, tokens(), {"": rule, "*": LRP0})
        values.append(bilrp.factor(model, tokens(), {"": rule, "*": LRP0}).values)
    torch.testing.assert_close((values[0] + values[1]) / 2, values[2])


def test_tokens_of_whole_numbers():
    def forward(self, x):
        return self.norm(self.e(x) + self.p[: x.shape[1]]).mean(1) @ self.w

    model = made(forward, e=nn.Embedding(9, 6), p=nn.Parameter(torch.ones(7, 6)),
                 norm=nn.LayerNorm(6), w=nn.Parameter(torch.ones(6, 4)))  # fmt: skip
    ids = torch.tensor([3, 1, 4, 1, 5])
    nets.contract(model, ids, LRP0)
    e = bilrp.explain(model, ids, ids[:3], LRP0)
    assert e.relevance.shape == (5, 3)
    assert "p" in e.owners
    assert float(e.ledger.sum()) == pytest.approx(e.similarity)
    assert bilrp.explain(nn.Sequential(nn.Embedding(9, 6), nn.Flatten()).double(), ids, ids
                         ).owners == ("input",)  # fmt: skip


# --- harmless ---------------------------------------------------------------------------------


def test_nothing_of_the_model_changes():
    model = nets.randomise(nn.Sequential(Block(3, nn.ReLU, True, False), nn.Dropout(0.5)), 1)
    model.train()
    model[0].body[1].eval()
    model[0].body[0].weight.requires_grad_(False)
    seen = []
    model[0].register_forward_hook(lambda m, args, out: seen.append(m.training))
    old = copy.deepcopy(model)
    attributes = {n: set(vars(m)) for n, m in model.named_modules()}
    versions = {n: t._version for n, t in model.state_dict(keep_vars=True).items()}
    x = nets.image(1).requires_grad_()
    for call in (
        lambda: bilrp.explain(model, x, nets.image(2), GAMMA, patch=4),
        lambda: bilrp.lrp(model, x, GAMMA),
        lambda: bilrp.hessian_x_product(model, x, nets.image(2), 256),
        lambda: bilrp.MaxOverTransforms(model).best(x, nets.image(2)),
        lambda: bilrp.features(model, x),
    ):
        with torch.enable_grad():
            call()
            assert torch.is_grad_enabled()
    assert attributes == {n: set(vars(m)) for n, m in model.named_modules()}
    assert versions == {n: t._version for n, t in model.state_dict(keep_vars=True).items()}
    assert x.grad is None
    for (n, m), o in zip(model.named_modules(), old.modules(), strict=True):
        assert m.training == o.training, n
        assert len(m._forward_hooks) == len(o._forward_hooks)
    for (n, p), q in zip(model.named_parameters(), old.parameters(), strict=True):
        assert torch.equal(p, q), n
        assert p.requires_grad == q.requires_grad
        assert p.grad is None


def test_buffers_that_the_model_writes_stay_as_they_are():
    def forward(self, x):
        self.calls += 1
        return self.l(x)

    model = made(forward, l=nn.Linear(6, 4))
    model.register_buffer("calls", torch.zeros((), dtype=torch.long))
    bilrp.explain(model, V, V2, GAMMA)
    assert int(model.calls) == 0


def test_another_thread_is_not_recorded():
    stop, inside = threading.Event(), []

    def other():
        a = torch.rand(4, 4)
        while not stop.is_set():
            a = torch.softmax(a @ a, -1)
            inside.append(torch.is_grad_enabled())

    thread = threading.Thread(target=other)
    thread.start()
    try:
        expected = bilrp.explain(nets.cnn(1), nets.image(1), nets.image(2), GAMMA)
        trace = bilrp.Trace(nets.cnn(1), nets.image(1)[None], GAMMA)
    finally:
        stop.set()
        thread.join()
    assert all(inside)
    assert not any("softmax" in trace.told(s.number) for s in trace.steps)
    alone = bilrp.explain(nets.cnn(1), nets.image(1), nets.image(2), GAMMA)
    assert torch.equal(alone.relevance, expected.relevance)


# --- the guard --------------------------------------------------------------------------------


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(x)


class Unseen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.detach().clone() * 3

    @staticmethod
    def backward(ctx, g):
        return 3 * g


MEAN = torch.tensor(0.3, dtype=torch.float64)
TABLE = [torch.full((6,), 2.0, dtype=torch.float64)]

REFUSED = {
    "scripted": (lambda self, x: self.l(x) * scripted(x), r"made of it by calls that cannot"),
    "scripted, then changed": (lambda self, x: self.l(x) * (scripted(x) + 1), "cannot be seen"),
    "scripted alone": (lambda self, x: self.l(scripted(x)), "does not depend on its input"),
    "item": (lambda self, x: self.l(x) * x.max().item(), "item.*out of torch"),
    "numpy": (lambda self, x: self.l(x) + torch.from_numpy(x.numpy()), "numpy.*out of torch"),
    "tolist": (lambda self, x: self.l(x) * torch.tensor(x.tolist()), "tolist.*out of torch"),
    "float": (lambda self, x: self.l(x) * float(x.sum()), "__float__.*out of torch"),
    "random": (lambda self, x: self.l(x) + torch.rand(6), "random"),
    "dropout": (lambda self, x: F.dropout(self.l(x), 0.5), "training mode"),
    "square": (lambda self, x: self.l(x) * self.l(x), "neither is a gate"),
    "itself": (lambda self, x: x * x, "times itself"),
    "softmax": (lambda self, x: self.l(x).softmax(-1), "has no parts"),
    "sort": (lambda self, x: self.l(x).sort(-1).values, "sort.*no relevance map"),
    "tuple": (lambda self, x: (self.l(x), x), "returns tuple"),
    "constant": (lambda self, x: self.l.bias, "does not depend on its input"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(name):
    forward, match = REFUSED[name]
    with pytest.raises(NotImplementedError, match=match):
        bilrp.explain(made(forward, l=nn.Linear(6, 6)), V, V2, GAMMA)


def test_constants_from_anywhere_are_no_hidden_dependence():
    model = made(lambda self, x: self.l((x - MEAN) / TABLE[0]) + torch.arange(6), l=nn.Linear(6, 6))
    trace = nets.contract(model, V, LRP0)
    assert any("a number in" in name for name in trace.absorbing)


def test_an_autograd_function_is_followed_inside_or_refused():
    model = made(lambda self, x: self.l(Unseen.apply(self.l(x))), l=nn.Linear(6, 6))
    try:
        nets.contract(model, V, LRP0)
    except NotImplementedError as error:
        assert "cannot be seen" in str(error) or "does not depend" in str(error)  # noqa: PT017


class Strange(nn.Module):
    def forward(self, x):
        return 2 * x.cumprod(-1)


class WrongMap(bilrp.RelevanceMap):
    pass


def test_a_wrong_registered_map_is_refused():
    model = nn.Sequential(Strange()).eval()

    class Short(bilrp.RelevanceMap):
        def push(self, u):
            return u * 0.5

    with (
        bilrp.registered(Strange, lambda step, a, rule, product: Short(step, step.module(a))),
        pytest.raises(NotImplementedError, match="do not add up"),
    ):
        bilrp.explain(model, V, V2)


def test_registered_within_a_block_for_a_module_and_for_a_function():
    model = nn.Sequential(Strange(), nets.randomise(nn.Linear(6, 4), 1)).eval()
    with pytest.raises(NotImplementedError, match="cumprod"):
        bilrp.explain(model, V, V2, LRP0)
    seen = []

    def module_map(step, a, rule, product):
        seen.append(step.name)
        return WrongMap(step, step.module(a))  # which passes: each number to its own place

    with bilrp.registered(Strange, module_map):
        nets.contract(model, V, LRP0)
    assert set(seen) == {"0"}

    from bilrp.engine.maps import Linear

    def function_map(value, values):
        parent = value.inputs[0]
        factor = value.data / values[parent].data
        return Linear([parent], lambda rows: rows * factor)

    with bilrp.registered(torch.cumprod, function_map):
        nets.contract(model, V, LRP0)
        with bilrp.registered(Strange, module_map):
            seen.clear()
            nets.contract(model, V, LRP0)
            assert seen
    with pytest.raises(NotImplementedError, match="cumprod"):
        bilrp.explain(model, V, V2, LRP0)


def test_registered_for_good():
    class Kept(Strange):
        def forward(self, x):
            return x.cumprod(-1)

    bilrp.register(Kept)(lambda step, a, rule, product: WrongMap(step, step.module(a)))
    nets.contract(nn.Sequential(Kept()).eval(), V, LRP0)

    class Other(Kept):
        def forward(self, x):
            return x + 1

    nets.contract(nn.Sequential(Other()).eval(), V, LRP0)


# --- pairs, similarities, files ---------------------------------------------------------------


def test_two_encoders():
    f, g = nets.cnn(1), nets.mlp(1)
    f = nn.Sequential(f, nn.Flatten(), nets.randomise(nn.Linear(32, 5), 2))
    x = nets.image(1)
    e = bilrp.explain((f, g), x, V, GAMMA)
    with torch.no_grad():
        y = float(f(x[None]).flatten() @ g(V))
    assert e.similarity == pytest.approx(y)
    assert e.relevance.shape == (2, 2, 6)
    assert e.ledger.shape == (len(e.owners), len(e.owners2))
    size = float(e.ledger.abs().sum())
    assert float(e.ledger.sum()) == pytest.approx(y, abs=1e-12 * size)
    a, b = bilrp.factor(f, x, GAMMA), bilrp.factor(g, V, GAMMA)
    torch.testing.assert_close(bilrp.explain((f, g), a, b).relevance, e.relevance)


@pytest.mark.parametrize("similarity", ["cosine", "-l2"])
@pytest.mark.parametrize("project", [None, 4])
def test_other_similarities_are_complete(similarity, project):
    model, x, x2 = nets.cnn(1), nets.image(1), nets.image(2)
    e = bilrp.explain(model, x, x2, GAMMA, similarity=similarity, project=project)
    with torch.no_grad():
        a, b = model(x[None]).flatten(), model(x2[None]).flatten()
    y = F.cosine_similarity(a, b, dim=0) if similarity == "cosine" else -(a - b).square().sum()
    assert e.similarity == pytest.approx(float(y))
    total = e.ledger.sum() + sum(ledger.sum() for ledger in e.ledger_within or ())
    assert float(total) == pytest.approx(e.similarity if project is None else e.estimate)
    assert float(e.ledger[0, 0]) == pytest.approx(float(e.relevance.sum()))
    if similarity == "-l2":
        for inside, ledger in zip(e.within, e.ledger_within, strict=True):
            assert float(inside.sum()) == pytest.approx(float(ledger[0, 0]))
    with pytest.raises(ValueError, match="similarity must be"):
        bilrp.explain(model, x, x2, GAMMA, similarity="euclid")


@pytest.mark.parametrize("project", [None, 3])
def test_factors_are_saved_without_pickle_and_loaded(tmp_path, project, monkeypatch):
    import pickle

    model = nets.cnn(1)[:5]
    a, b = (bilrp.factor(model, nets.image(s), GAMMA, project=project) for s in (1, 2))
    monkeypatch.setattr(pickle, "dumps", lambda *_: pytest.fail("pickled"))
    a.save(tmp_path / "a.npz")
    loaded = bilrp.load(tmp_path / "a.npz")
    torch.testing.assert_close(loaded.explain(b).relevance, a.explain(b).relevance, rtol=0, atol=0)
    assert loaded.identity == a.identity
    assert loaded.owners == a.owners
    with pytest.raises(ValueError, match="rules are"):
        loaded.explain(bilrp.factor(model, nets.image(2), LRP0, project=project))
    single = loaded.to(dtype=torch.float32)
    assert single.values.dtype == torch.float32
    assert list(tmp_path.iterdir()) == [tmp_path / "a.npz"]
    (tmp_path / "bad").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="is no factor"):
        bilrp.load(tmp_path / "bad")
    with pytest.raises(FileNotFoundError):
        bilrp.load(tmp_path / "nowhere")


def test_a_list_is_several_inputs_and_features_are_the_models():
    model, x = nets.cnn(1), [nets.image(1), nets.image(2)]
    factors = bilrp.factor(model, x, GAMMA)
    assert len(factors) == 2
    with torch.no_grad():
        torch.testing.assert_close(bilrp.features(model, x[0], GAMMA), model(x[0][None]))
    torch.testing.assert_close(factors[1].values, bilrp.factor(model, x[1], GAMMA).values)


def test_mostly_cancellation_is_warned_of():
    model = made(lambda self, x: self.l(x), l=nn.Linear(6, 1, bias=False))
    with torch.no_grad():
        model.l.weight.copy_(torch.tensor([[1.0, -1, 1, -1, 1, -1]]) * 1e3)
    x = torch.ones(6, dtype=torch.float64) + 1e-7 * V
    with pytest.warns(UserWarning, match="mostly cancellation"):
        e = bilrp.explain(model, x, x, LRP0)
    # The guard allows for rounding of the parts, each a thousand, in sums of a hundred-thousandth.
    size = float(e.relevance.abs().sum())
    assert abs(float(e.ledger.sum()) - e.similarity) < 1e-12 * size


@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_of_tokens_is_what_it_hides(mode, padding):
    def plain(self, tokens):
        each = self.e(tokens)
        keep = (
            (tokens != padding)[..., None] if padding else torch.ones_like(each, dtype=torch.bool)
        )
        if mode == "max":
            return self.l(each.masked_fill(~keep, -1e9).amax(1)).relu()
        total = torch.where(keep, each, 0.0).sum(1)
        return self.l(total if mode == "sum" else total / keep[..., 0].sum(1)).relu()

    layers = nn.Embedding(20, 6), nn.Linear(6, 5)
    written_out = made(plain, e=layers[0], l=layers[1])
    bag = nn.EmbeddingBag(20, 6, mode=mode, padding_idx=padding, _weight=layers[0].weight.detach())
    model = nn.Sequential(bag, layers[1], nn.ReLU()).double().eval()
    x = torch.tensor([1, 3, 5, 7, 3])
    one, other = (bilrp.factor(m, x, LRP0) for m in (model, written_out))
    torch.testing.assert_close(one.values, other.values)
    assert one.values.abs().max() > 0
    nets.contract(model, x, LRP0)
