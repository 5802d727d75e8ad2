"""What is frozen, a number, or moved: against derivatives with the same parts detached."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bilrp


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
