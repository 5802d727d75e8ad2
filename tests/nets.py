"""Small random networks that hold every kind of layer, and slow oracles to compare with."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import pairwise

import pytest
import torch
import zennit.composites
import zennit.rules
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

import bilrp
from bilrp.engine.owners import one_input, owners_of


def randomise(model: nn.Module, seed: int, bias: bool = True) -> nn.Module:
    """Seeded weights in float64, BatchNorm statistics included; biases set to zero on request."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
            for name, p in module.named_parameters(recurse=False):
                p.normal_(0, 1 / max(1, p[0].numel()) ** 0.5, generator=generator)
                if name == "bias":
                    p.mul_(0.3 if bias else 0.0)
    return model.eval()


def mlp(seed: int = 0, bias: bool = True, relu_top: bool = True, width: int = 8) -> nn.Sequential:
    """6 -> width -> width -> 5, with ReLUs."""
    layers = [nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    layers += [nn.Linear(width, 5)] + ([nn.ReLU()] if relu_top else [])
    return randomise(nn.Sequential(*layers), seed, bias)


def cnn(seed: int = 0, bias: bool = True) -> nn.Sequential:
    """A small VGG: (3, H, W) -> (8, H/8, W/8)."""
    return randomise(
        nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        seed,
        bias,
    )


def zoo(seed: int = 0) -> nn.Sequential:
    """Every supported layer once, nested, with strides, dilation, groups and odd paddings."""
    return randomise(
        nn.Sequential(
            nn.BatchNorm2d(3),
            nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1, bias=False),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.Dropout2d(),
            ),
            nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2),
            nn.ReLU(),
            nn.Identity(),
            nn.Conv2d(8, 8, (3, 2), stride=2),
            nn.ReLU(),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(32, 12),
            nn.BatchNorm1d(12),
            nn.ReLU(),
            nn.BatchNorm1d(12),
        ),
        seed,
    )


def vector(seed: int, size: int = 6) -> Tensor:
    """Non-negative input in float64."""
    return torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def image(seed: int, height: int = 16, width: int = 16) -> Tensor:
    """Image in [0, 1], (3, height, width), in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, height, width, dtype=torch.float64, generator=generator)


def unfactored(model: nn.Sequential, x: Tensor, x2: Tensor, gamma: float) -> Tensor:
    """BiLRP as the paper writes it, Eq. (2), with all pairs of neurons, layer after layer.

    For Linear/ReLU networks with non-negative activations. Slow and plain: the test's oracle.
    """
    linears = [m for m in model if isinstance(m, nn.Linear)]

    def activations(v: Tensor) -> list[Tensor]:
        out = [v]
        for linear in linears:
            out.append((out[-1] @ linear.weight.T + linear.bias).clamp(min=0))
        return out

    a, a2 = activations(x), activations(x2)
    relevance = torch.diag(a[-1] * a2[-1])
    for level in reversed(range(len(linears))):
        w, b = linears[level].weight, linears[level].bias
        rho_w, rho_b = w + gamma * w.clamp(min=0), b + gamma * b.clamp(min=0)
        z, z2 = (rho_w @ v[level] + rho_b for v in (a, a2))
        new = torch.zeros(len(a[level]), len(a2[level]), dtype=x.dtype)
        for k in range(len(z)):
            for k2 in range(len(z2)):
                if relevance[k, k2] != 0:
                    message = torch.outer(a[level] * rho_w[k], a2[level] * rho_w[k2])
                    new += message / (z[k] * z2[k2]) * relevance[k, k2]
        relevance = new
    return relevance


def tokens(seed=1, count=5, size=6):
    """(T, d), of both signs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, dtype=torch.float64, generator=generator)


class Plain(nn.Module):
    """A function as a model, with layers of its own."""

    def __init__(self, f, **layers):
        super().__init__()
        self.f = f
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.f(self, x)


def made(f, seed=1, **layers):
    return randomise(Plain(f, **layers), seed)


def zennit_lrp(model, x, relevance, first, others):
    """LRP of zennit: `first` for layer one, `others` for the rest; max-pooling by its gradient."""
    named = list(model.named_modules())
    layers = [name for name, m in named if isinstance(m, nn.Linear | nn.Conv2d)]
    rules = [(name, first() if name == layers[0] else others()) for name in layers]
    rules += [(name, zennit.rules.Pass()) for name, m in named if isinstance(m, nn.ReLU)]
    composite = zennit.composites.NameMapComposite([([name], rule) for name, rule in rules])
    x = x.clone().requires_grad_()
    with composite.context(model) as modified:
        (gradient,) = torch.autograd.grad(modified(x), x, relevance)
    return gradient


def without_batch_norms(model: nn.Module) -> nn.Module:
    """A copy whose batch norms are part of the convolutions before them.

    zennit's own merging leaves their epsilon in, so that features change in the fifth digit.
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        for (first, conv), (second, norm) in pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return model


def zennit_resnet(model: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
    """LRP-0 of sums of features, (K, *x), by zennit; `rows` (K, features) are their weights.

    Of a model `without_batch_norms`.
    """
    from zennit.torchvision import ResNetCanonizer

    maps = [*zennit.composites.layer_map_base(1e-12), (nn.Conv2d, zennit.rules.Epsilon(1e-12))]
    composite = zennit.composites.LayerMapComposite(maps, canonizers=[ResNetCanonizer()])
    with composite.context(model) as modified:
        many = x.expand(len(rows), *x.shape).clone().requires_grad_()
        out = modified(many)
        return torch.autograd.grad(out, many, rows * out.detach())[0].detach()


def contract(model: nn.Module, x: Tensor, rules=None, seed: int = 0) -> bilrp.Trace:
    """What must hold for every model and every rule; x is one input, in float64 or int64.

    The features are the model's; the input and all sinks own them completely; pushing forward is
    the adjoint of pulling back, for the input and for every sink; y and its ledger agree.
    """
    rules = bilrp.default_rules(model, x) if rules is None else rules
    batch = one_input(x, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of cancellation: LRP-0 of anything
        trace = bilrp.Trace(model, batch, rules)
        patch = math.gcd(*batch.shape[2:]) if batch.dim() == 4 else 8
        patch = patch // 2 if batch.dim() == 4 and patch % 2 == 0 else patch
        f = bilrp.factor(model, x, rules, patch=patch)
    assert not model.training
    with torch.no_grad():
        expected = model(batch)
    torch.testing.assert_close(trace.features, expected, rtol=1e-10, atol=1e-12)

    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(3, *batch.shape, dtype=torch.float64, generator=generator)
    u[0] = 1
    c = torch.randn(2, *expected.shape, dtype=torch.float64, generator=generator)
    rows = trace.push_rows(u, sinks=True)
    total = rows[0] + rows[3:].sum(0)
    size = rows[0].abs() + rows[3:].abs().sum(0)
    assert bool(((total - expected).abs() <= 1e-10 * size.max()).all())

    back, kept = trace.pull_rows(c)
    assert back.shape == (2, *batch.shape)
    left, right = rows[:3].flatten(1) @ c.flatten(1).T, u.flatten(1) @ back.flatten(1).T
    bound = rows[:3].abs().flatten(1) @ c.abs().flatten(1).T
    assert bool(((left - right).abs() <= 1e-10 * bound.max() + 1e-30).all())
    for name, pulled in zip(trace.absorbing, kept, strict=True):
        own = [k for k, (_, sink) in enumerate(trace.sinks) if sink.name == name]
        pushed = rows[3:][own].sum(0)
        assert float(((pushed * c).flatten(1).sum(1) - pulled).abs().max()) <= 1e-10 * float(
            size.max() * c.abs().sum()
        )

    if trace.input.is_floating_point() and expected.numel() <= 4000:
        one_by_one = torch.randn(3, *expected.shape, dtype=torch.float64, generator=generator)
        owners = owners_of(batch, patch, None)
        pooled = owners.pool(trace.pull_rows(one_by_one)[0])
        found = f.dense() @ one_by_one.flatten(1).T
        bound = f.dense().abs() @ one_by_one.abs().flatten(1).T
        wrong = (found - pooled).abs() > 1e-9 * bound.max() + 1e-30
        assert not bool(wrong.any()), "owners have other parts than pulling back gives them"

    own = f.owned()
    torch.testing.assert_close(f.features, expected.flatten())
    assert float((own.sum(0) - f.features).abs().max()) <= 1e-10 * float(own.abs().sum(0).max())
    torch.testing.assert_close(own[0].view(expected.shape), rows[0], rtol=1e-9, atol=1e-9)
    e = f.explain(f)
    assert e.similarity == pytest.approx(float(expected.square().sum()), rel=1e-9)
    magnitudes = float(e.ledger.abs().sum())
    assert float(e.ledger.sum()) == pytest.approx(e.similarity, abs=1e-10 * magnitudes)
    return trace
