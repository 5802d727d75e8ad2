"""Calls of networks of today: gated units, sound, graphs, unpooling, lower precision inside."""

from __future__ import annotations

import collections
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilrp
from tests import nets
from tests.test_second_audit import Model, X, parts

LRP0 = bilrp.LRP0()


def derivatives(model: nn.Module, x: Tensor, ids: Tensor) -> Tensor:
    """J (x on each group), (groups, features): what LRP-0 is where nothing is frozen or bent."""
    jacobian = torch.autograd.functional.jacobian(lambda v: model(v).flatten(), x[None])
    rows = [
        (jacobian[:, 0] * (x * (ids == k))).flatten(1).sum(1) for k in range(int(ids.max()) + 1)
    ]
    return torch.stack(rows)


def in_rows(model: nn.Module, x: Tensor = X) -> None:
    """Parts of the rows of x are derivatives, and with those of sinks they are the features."""
    ids = torch.arange(len(x))[:, None].expand(x.shape)
    f = bilrp.factor(model, x, LRP0)
    torch.testing.assert_close(f.values, derivatives(model, x, ids))
    nets.contract(model, x, LRP0)


ADJACENT = torch.tensor([[0, 1, 0, 0.5], [1, 0, 2, 0], [0, 0, 0, 0], [0.3, 0, 0, 1]]).double()


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: torch.column_stack([x[0], s.layer(x)[0].relu()])[None],
        lambda s, x: torch.sparse.mm(ADJACENT.to_sparse(), s.layer(x)[0]).relu()[None],
        lambda s, x: (ADJACENT.to_sparse_csr() @ s.layer(x)[0].relu())[None],
        lambda s, x: torch.addmm(x[0], s.layer(x)[0].relu(), ADJACENT)[None],
        lambda s, x: torch.addmm(x[0], s.layer(x)[0], ADJACENT, beta=0.5, alpha=-2)[None],
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_more_ways_of_joining_and_multiplying(forward):
    in_rows(Model(forward, size=4))


def test_a_row_is_written_with_or_without_its_leading_one():
    def written(s: Model, x: Tensor) -> Tensor:
        y = torch.zeros(3, 4, 4, dtype=x.dtype)
        y[1] = s.layer(x)  # (1, 4, 4)
        return y.flatten()[None]

    in_rows(Model(written, size=4))


@pytest.mark.parametrize("module", [False, True])
def test_unpooling_puts_back_where_the_winners_stood(module):
    def unpooled(s: Model, x: Tensor) -> Tensor:
        h = s.held[0](x)
        if module:
            return s.held[2](*s.held[1](h))
        small, where = F.max_pool2d(h, 2, return_indices=True)
        return F.max_unpool2d(small, where, 2)

    held = nn.ModuleList(
        [nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)]
    )
    model, x = Model(unpooled, held), nets.image(0, 8, 8)
    ids = torch.arange(4).view(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)
    f = bilrp.factor(model, x, LRP0, patch=4)
    torch.testing.assert_close(f.values, derivatives(model, x, ids))
    nets.contract(model, x, bilrp.Gamma(0.2))


def test_the_places_of_winners_carry_no_relevance():
    def places(s: Model, x: Tensor) -> Tensor:
        return F.max_pool2d(s.held(x), 2, return_indices=True)[1].double()

    model = Model(places, nn.Conv2d(3, 4, 3, padding=1))
    with pytest.raises(NotImplementedError, match=r"no relevance|comparisons"):
        bilrp.factor(model, nets.image(0, 8, 8), LRP0, patch=4)


def test_places_that_are_sampled_are_numbers():
    """A spatial transformer: the grid is made of the input, and taken as it came out."""

    def sampled(s: Model, x: Tensor) -> Tensor:
        moved = s.held[1](x.mean((2, 3))).view(1, 2, 3)
        grid = F.affine_grid(moved, [1, 3, 5, 7], align_corners=False)
        grid = grid.detach() if s.still else grid
        return s.held[0](F.grid_sample(x, grid, align_corners=False))

    model = Model(sampled, nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Linear(3, 6).double()]))
    model.still = False
    x = nets.image(0, 8, 8)
    f = bilrp.factor(model, x, LRP0, patch=4)
    nets.contract(model, x, LRP0)
    model.still = True
    ids = torch.arange(4).view(2, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)
    torch.testing.assert_close(f.values, derivatives(model, x, ids))


# --- gated units -----------------------------------------------------------------------------


class Gated(nn.Module):
    """act(W x) * (V x), written in several ways; `detached` holds the gate still."""

    def __init__(self, act, halves: bool, swapped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 5), nn.Linear(4, 5)
        self.both, self.out = nn.Linear(4, 10, bias=False), nn.Linear(5, 3)
        self.last = nn.Linear(5, 3)
        self.act, self.halves, self.swapped = act, halves, swapped
        self.longer = self.detached = False
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, -1) if self.halves else (self.one(x), self.two(x))
        gate = self.act(a)
        gate = gate.detach() if self.detached else gate
        if self.longer:
            b = torch.cat([b[..., :2], self.last(b)], -1)
        return self.out(b * gate if self.swapped else gate * b).mean(1)


def gelu_in_plain_functions(h: Tensor) -> Tensor:
    return 0.5 * h * (1.0 + torch.tanh(0.8 * (h + 0.044715 * torch.pow(h, 3.0))))


def bounded_silu(h: Tensor) -> Tensor:
    h = h.clamp(max=0.4)
    return h * torch.sigmoid(1.702 * h)


ACTS = [F.silu, F.gelu, F.relu, F.mish, gelu_in_plain_functions, bounded_silu]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_in_a_gated_unit_the_activated_factor_is_the_gate(act, halves, swapped):
    model = Gated(act, halves, swapped)
    model.longer = act is F.relu  # another layer for some of the other factor (MambaOut)
    f = bilrp.factor(model, X, LRP0)
    nets.contract(model, X, LRP0)
    same = {"": bilrp.CPLRP(take=1 if swapped else 2), "*": LRP0}
    torch.testing.assert_close(bilrp.factor(model, X, same).values, f.values)
    model.detached = True
    ids = torch.arange(len(X))[:, None].expand(X.shape)
    torch.testing.assert_close(f.values, derivatives(model, X, ids))


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.layer(x) * s.layer(x + 1),  # no activation
        lambda s, x: F.silu(s.layer(x)) * F.silu(s.layer(x)),  # two
        lambda s, x: F.silu(s.layer(x)) * x,  # no layer
        lambda s, x: F.silu(s.layer(x)) * s.layer(torch.tanh(x)),  # not of the same value
        lambda s, x: F.silu(s.layer(x)) * s.layer(x.mean(1, keepdim=True)),
        lambda s, x: F.silu(s.layer(x)) @ s.layer(x).mT,  # no product place by place
        lambda s, x: s.layer(x) * s.layer(x + 1).sigmoid() * s.layer(x),  # a gate of another value
    ],
)
def test_other_products_of_two_equals_need_a_word(forward):
    with pytest.raises(NotImplementedError, match=r"neither is a gate.*CPLRP\(take=1\)"):
        bilrp.factor(Model(forward, size=4), X, LRP0)


# --- a channel that the model adds itself ----------------------------------------------------


class Sound(nn.Module):
    """Takes (N, T), or (N, T, F), and adds the channel itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, None]).relu().flatten(1)


@pytest.mark.parametrize("leading", [False, True])
def test_raw_sound(leading):
    torch.manual_seed(0)
    model = Sound(nn.Conv1d(1, 4, 5, stride=2))
    x = torch.randn(20, dtype=torch.float64)
    f = bilrp.factor(model, x[None] if leading else x, LRP0, groups=5)
    assert f.grid == (4,)
    ids = torch.arange(20) // 5
    torch.testing.assert_close(f.values, derivatives(model, x, ids))


@pytest.mark.parametrize("leading", [False, True])
def test_spectrogram(leading):
    torch.manual_seed(0)
    model = Sound(nn.Conv2d(1, 4, 3))
    x = torch.randn(6, 5, dtype=torch.float64)
    f = bilrp.factor(model, x[None] if leading else x, LRP0)
    assert f.grid == (6,)
    ids = torch.arange(6)[:, None].expand(6, 5)
    torch.testing.assert_close(f.values, derivatives(model, x, ids))


def test_one_channel_of_ones_own_stays_a_channel():
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()).double()
    assert bilrp.factor(chain, nets.image(0, 8, 8)[:1], patch=4).grid == (2, 2)
    with pytest.raises(ValueError, match=r"x must be \(N, 1, H, W\)"):
        bilrp.factor(chain, nets.image(0, 8, 8)[0], patch=4)


SEEN: list[nn.Module] = []  # a global: what a function closes over is copied


# --- other formats, errors, copies -----------------------------------------------------------


def test_a_norm_in_float32_within_a_model_of_float64():
    def normed(s: Model, x: Tensor) -> Tensor:
        h = s.layer(x).to(torch.float32)
        h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-6)
        return h.to(x.dtype).mean(1)

    model = Model(normed, size=4)
    f = bilrp.factor(model, X)
    assert f.features.dtype == torch.float64
    torch.testing.assert_close(f.owned().sum(0), model(X[None])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda s, x: s.layer(x)[:, 0, 7], "index 7 is out of bounds"),
        (lambda s, x: s.held["weights"] @ x, "weights"),
        (lambda s, x: s.layer(x, x), "positional argument"),
    ],
)
def test_what_the_model_itself_raises_is_told_with_the_shape_it_was_given(forward, said):
    with pytest.raises(ValueError, match=rf"cannot run an input x of the shape.*{said}"):
        bilrp.factor(Model(forward, {}, size=4), X)


def test_bounds_that_make_the_value_larger_are_refused():
    def bounded(s: Model, x: Tensor) -> Tensor:
        return s.layer(x)[..., None].clamp(min=torch.zeros(2, dtype=x.dtype)).flatten(1)

    with pytest.raises(NotImplementedError, match="bounds of a larger shape"):
        bilrp.factor(Model(bounded, size=4), X)


@pytest.mark.parametrize("held", [collections.deque, collections.OrderedDict])
def test_modules_that_a_partial_holds_in_any_container_are_copied(held):
    layer = nn.Linear(4, 4).double()
    layers = held([layer]) if held is collections.deque else held({0: layer})
    SEEN.clear()

    def run(layers, x):
        SEEN.append(layers[0])
        return layers[0](x).relu().mean(1)

    model = Model(lambda s, x: s.held(x), functools.partial(run, layers), size=4)
    assert parts(model, X, LRP0).shape[1] == 4
    assert SEEN[0] is not layer


@pytest.mark.parametrize(
    "scale",
    [
        lambda x: torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: (x.square().mean(-1, keepdim=True) + 1e-6).sqrt().reciprocal().expand_as(x),
        lambda x: x.norm(dim=1, keepdim=True) / 2 + 0.1,
    ],
)
def test_norms_stay_frozen_under_attn_lrp(scale):
    """Achtibat et al. (2024): the identity rule of norms, which halves would break."""
    half = {"": bilrp.AttnLRP(), "*": LRP0}
    model = Model(lambda s, x: s.layer(x * scale(x)).tanh(), size=4)
    nets.contract(model, X, half)
    ids = torch.arange(len(X))[:, None].expand(X.shape)
    found = bilrp.factor(model, X, half).values
    frozen = bilrp.factor(model, X, {"": bilrp.CPLRP(), "*": LRP0}).values
    torch.testing.assert_close(found, frozen)
    other = Model(lambda s, x: s.layer(x * x.sigmoid()).tanh(), size=4)
    assert ids.shape == X.shape
    halved, whole = (bilrp.factor(other, X, r).values for r in (half, LRP0))
    assert not torch.allclose(halved, whole)


def test_two_signals_are_halved_by_the_type_of_their_module():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x) * self.second(x)

    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), nn.Linear(4, 3)).double().eval()
    with pytest.raises(NotImplementedError, match="who owns"):
        bilrp.factor(model, X)
    nets.contract(model, X, {Block: bilrp.AttnLRP(), "*": LRP0})


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 4, 3), (2, 8)),
        (nn.Conv2d(2, 4, 3), (2, 4, 6)),
        (nn.Conv3d(2, 4, 3), (2, 4, 4, 6)),
    ],
)
def test_owners_of_places_own_all_channels(layer, shape):
    """A signal, an image, a film: ids without the channels are those ids for each channel."""
    model = nn.Sequential(layer, nn.ReLU()).double().eval()
    x = torch.rand(shape, dtype=torch.float64)
    ids = torch.arange(x[0].numel()).view(shape[1:]) // 8
    found = bilrp.factor(model, x, LRP0, groups=ids).values
    torch.testing.assert_close(found, bilrp.factor(model, x, LRP0, groups=ids.expand(shape)).values)
    wrong = ids[..., :-1]
    with pytest.raises(ValueError, match="groups must be a number, or whole numbers >= 0 of shape"):
        bilrp.factor(model, x, LRP0, groups=wrong)


def test_ids_of_a_square_sequence_are_those_of_its_rows():
    model = nn.Linear(4, 3).double().eval()
    ids = torch.tensor([0, 0, 1, 2])
    found = bilrp.factor(model, X, LRP0, groups=ids).values
    torch.testing.assert_close(
        found, bilrp.factor(model, X, LRP0, groups=ids[:, None].expand(4, 4)).values
    )


class Experts(nn.Module):
    """A mixture of gated experts as language models have it: each row goes to two of three."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.router, self.detached = way, nn.Linear(4, 3), False
        self.up, self.down = nn.Parameter(torch.randn(3, 4, 16)), nn.Parameter(torch.randn(3, 8, 4))
        self.bias = nn.Parameter(torch.randn(3, 4))
        self.eval()

    def unit(self, h: Tensor) -> Tensor:
        gate, up = h.clamp(max=6.0).chunk(2, -1)
        gate = (gate * 1.7).sigmoid() * gate
        return (up + 1) * (gate.detach() if self.detached else gate)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[0]
        share, number = self.router(rows).softmax(-1).topk(2)
        share = share / share.sum(-1, keepdim=True)
        share = share.detach() if self.detached else share
        out = torch.zeros_like(rows)
        if self.way == "loop":
            taken = F.one_hot(number, 3).permute(2, 1, 0)
            for k in (taken.sum((1, 2)) > 0).nonzero()[:, 0]:
                place, row = torch.where(taken[k])
                h = self.unit(F.linear(rows[row], self.up.mT[k]))
                found = (h @ self.down[k] + self.bias[k]) * share[row, place, None]
                out.index_add_(0, row, found)
            return out[None]
        order = number.flatten().argsort()
        picked, sorted_ = rows[order // 2], number.flatten()[order]
        if self.way == "batched":
            h = self.unit(torch.bmm(picked[:, None], self.up[sorted_]))
            found = torch.baddbmm(self.bias[sorted_][:, None], h, self.down[sorted_])[:, 0]
        else:
            ends = torch.cumsum(torch.histc(sorted_.float(), 3, 0, 2), 0, dtype=torch.int32)
            h = self.unit(F.grouped_mm(picked, self.up, offs=ends))
            found = F.grouped_mm(h, self.down, offs=ends) + self.bias[sorted_]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        found = (found * share.flatten()[order][:, None])[back]
        return found.view(len(rows), 2, -1).sum(1)[None]


def test_mixtures_of_experts_of_every_form_are_one_explanation():
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loop, batched = Experts("loop").double(), Experts("batched").double()
    ids = torch.arange(7)
    expected = bilrp.factor(loop, x, LRP0, groups=ids)
    found = bilrp.factor(batched, x, LRP0, groups=ids)
    torch.testing.assert_close(found.values, expected.values)
    grouped = bilrp.factor(Experts("grouped"), x.float(), LRP0, groups=ids)
    torch.testing.assert_close(grouped.values, expected.values.float(), rtol=1e-4, atol=1e-5)
    for rules in (LRP0, bilrp.Gamma(0.1)):
        nets.contract(loop, x, rules)
        nets.contract(batched, x, rules)
    loop.detached = True
    _, along = torch.func.jvp(loop, (x[None],), (x[None],))
    torch.testing.assert_close(expected.values.sum(0), along.flatten())


@pytest.mark.parametrize("transposed", [False, True])
def test_strided_reads_are_moves(transposed):
    """Overlapping windows, as Longformer reads them."""

    def windows(s: Model, x: Tensor) -> Tensor:
        h = s.layer(x)
        h = h.transpose(1, 2) if transposed else h
        return h.as_strided((1, 3, 8), (16, 4, 1)).relu()

    in_rows(Model(windows, size=4))


def test_strided_reads_of_others_memory_are_refused():
    model = Model(lambda s, x: s.layer(x)[:, 1:].as_strided((1, 4), (4, 1), 0).relu(), size=4)
    with pytest.raises(NotImplementedError, match="memory that is not of this value"):
        bilrp.factor(model, X, LRP0)
