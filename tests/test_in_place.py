"""Writes in place, also through another view of the same memory: as if they had been written out.

Every case stands beside the same function without a write, and all parts must agree.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bilrp
from tests.nets import contract, image, made

RULES = {"LRP-0": bilrp.LRP0(), "gamma": bilrp.Gamma(0.25)}
H = (1, 4, 8, 8)


def row_of_a_view(h):
    h[:, 0] += h[:, 1]
    return h


def row_of_a_view_plain(h):
    return torch.cat([h[:, :1] + h[:, 1:2], h[:, 1:]], 1)


def a_view_held(h):
    v = h[:, 0]
    v += h[:, 1]
    return h


def flat_view(h):
    h.view(-1).mul_(2)
    return h


def whole_channels(h):
    h.flatten(2).add_(1)
    return h


def gathered(h):
    o = torch.zeros_like(h)
    o[:, :2] = h[:, 2:]
    o[:, 2:] = h[:, :2]
    return o


def copied_into_views(h):
    o = torch.empty_like(h)
    o[:, :2].copy_(h[:, 2:])
    o.narrow(1, 2, 2).copy_(h[:, :2])
    return o


def chunks(h):
    a, b = h.view(-1)[:128], h.view(-1)[128:]
    a.add_(b)
    return h


def chunks_plain(h):
    return torch.cat([h[:, :2] + h[:, 2:], h[:, 2:]], 1)


def numbers_beside(h):
    o = torch.zeros(H, dtype=h.dtype)
    v, w = o[0], o[:, 1]
    v.copy_(h[0])
    w.fill_(3.0)
    return o


def numbers_beside_plain(h):
    return torch.cat([h[:, :1], torch.full_like(h[:, :1], 3), h[:, 2:]], 1)


def a_number_changed_later(h):
    c = torch.ones(8, dtype=h.dtype)
    h = h * c
    c[2:] = 0
    return h * c + h


def a_number_changed_later_plain(h):
    c = torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0], dtype=h.dtype)
    return h * c + h


def overlapping(h):
    h.unfold(2, 2, 2).mul_(2)
    h.diagonal(dim1=2, dim2=3).zero_()
    return h


def overlapping_plain(h):
    return (2 * h).masked_fill(torch.eye(8, dtype=torch.bool), 0)


def bounds_of_views(h):
    h[:, 0].clamp_(max=0.3)
    F.relu(h[:, 1:3].sub_(0.2), inplace=True)
    F.leaky_relu_(h[:, 3:].sub_(0.2), 0.5)
    return h


def bounds_of_views_plain(h):
    first, second, third = h[:, :1].clamp(max=0.3), h[:, 1:3] - 0.2, h[:, 3:] - 0.2
    return torch.cat([first, second.relu(), F.leaky_relu(third, 0.5)], 1)


def masked(h):
    h[h > 0.5] *= 2.0
    h[:, 0].masked_fill_(h[:, 0] < 0.2, 1.0)
    return h


def masked_plain(h):
    h = torch.where(h > 0.5, 2 * h, h)
    return torch.cat([torch.where(h[:, :1] < 0.2, 1.0, h[:, :1]), h[:, 1:]], 1)


def added_by_index(h):
    o = torch.zeros_like(h).index_add_(1, torch.tensor([1, 1, 2, 0]), h)
    return o.scatter_add_(1, torch.zeros_like(h, dtype=torch.long), h)


def added_by_index_plain(h):
    zero, one = torch.zeros_like(h[:, :1]), h[:, :1] + h[:, 1:2]
    return torch.cat([h[:, 3:] + h.sum(1, keepdim=True), one, h[:, 2:3], zero], 1)


def through_data(h):
    h.data.mul_(2)
    h.data.add_(h.data)
    h.data[:, 0] = 7.0
    return h


def through_data_plain(h):
    return torch.cat([torch.full_like(h[:, :1], 7), 4 * h[:, 1:]], 1)


def detached(h):
    h.detach().mul_(2)
    return h


CASES = {
    "row of a view": (row_of_a_view, row_of_a_view_plain),
    "a view held": (a_view_held, row_of_a_view_plain),
    "flat view": (flat_view, lambda h: 2 * h),
    "whole channels": (whole_channels, lambda h: h + 1),
    "gathered": (gathered, lambda h: torch.cat([h[:, 2:], h[:, :2]], 1)),
    "copied into views": (copied_into_views, lambda h: torch.cat([h[:, 2:], h[:, :2]], 1)),
    "chunks": (chunks, chunks_plain),
    "numbers beside": (numbers_beside, numbers_beside_plain),
    "a number changed later": (a_number_changed_later, a_number_changed_later_plain),
    "overlapping": (overlapping, overlapping_plain),
    "bounds of views": (bounds_of_views, bounds_of_views_plain),
    "masked": (masked, masked_plain),
    "added by index": (added_by_index, added_by_index_plain),
    "through data": (through_data, through_data_plain),
    "detached": (detached, lambda h: 2 * h),
}


def around(f):
    """A small network with `f` in its middle."""

    def forward(self, x):
        return self.after(f(self.before(x).relu())).relu()

    before, after = (nn.Conv2d(k, 4, 3, padding=1) for k in (3, 4))
    return made(forward, before=before, after=after)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CASES)
def test_a_write_is_what_it_gives(name, rule):
    models = [around(f) for f in CASES[name]]
    x = image(1, 8, 8)
    one, other = (bilrp.factor(m, x, RULES[rule], patch=4) for m in models)
    torch.testing.assert_close(one.values, other.values)
    assert one.values[:4].abs().max() > 0
    contract(models[0], x[None], RULES[rule])


def test_buffers_and_plain_tensors_that_are_written_into_stay_as_they_are():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3, padding=1)
            self.register_buffer("kept", torch.ones(H))
            self.plain = torch.ones(H)

        def forward(self, x):
            h = self.layer(x)
            self.kept[:, :2] = h[:, :2]
            self.plain[:, 2:] = h[:, 2:]
            return (self.kept + self.plain).relu()

    model = Keeps().eval()
    before = copy.deepcopy(model)
    x = image(1, 8, 8).float()
    explained = bilrp.explain(model, x, x, RULES["gamma"], patch=4)
    assert torch.equal(model.kept, before.kept)
    assert torch.equal(model.plain, before.plain)
    with torch.no_grad():
        assert float(explained.similarity) == pytest.approx(float(before(x[None]).square().sum()))


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda h: h.view(torch.int32).mul_(1), "is also read as"),
        (lambda h: h.set_(h * 2), "in place|overwritten"),
        (lambda h: setattr(h, "data", h * 2), "its .data"),
        (lambda h: torch._foreach_mul_([h], 2), "in place|overwritten"),
        (lambda h: torch.mul(h, 2, out=h), "out="),
    ],
)
def test_writes_that_cannot_be_followed_are_refused(write, match):
    def forward(self, x):
        h = self.layer(x)
        write(h)
        return h.relu()

    model = made(forward, layer=nn.Linear(6, 4)).float()
    with pytest.raises(NotImplementedError, match=match):
        bilrp.factor(model, torch.rand(1, 6), RULES["LRP-0"])


def test_a_buffer_that_a_sum_is_gathered_in():
    def together(self, x):
        total = torch.zeros(1, 4, dtype=x.dtype)
        total += self.layer(x)
        total += x[:, :4]
        return total.relu()

    def plain(self, x):
        return (self.layer(x) + x[:, :4]).relu()

    x = torch.rand(1, 6, dtype=torch.float64)
    models = (made(f, layer=nn.Linear(6, 4)) for f in (together, plain))
    one, other = (bilrp.factor(m, x, RULES["gamma"]) for m in models)
    torch.testing.assert_close(one.values, other.values)
