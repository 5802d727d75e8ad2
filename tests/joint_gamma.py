"""Gamma for each convolution alone beside joint gamma, on networks with shortcuts and norms.

python -m tests.joint_gamma    writes assets/joint_gamma.md; the zoo's page shows it
"""

from __future__ import annotations

import warnings
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

import bilrp
from bilrp.book import data
from bilrp.book.measured import commit_of
from bilrp.engine.rules import Branch
from tests import zoo

TARGET = Path(__file__).resolve().parents[1] / "assets" / "joint_gamma.md"
MODELS = ("resnet18", "regnet_x_400mf", "densenet121", "mobilenet_v2", "efficientnet_b0")
TRAINED = "EfficientNet-Lite0, trained"
SIZE = 64


class EachGamma(bilrp.Rule):
    """The paper's rho(w) = w + gamma max(0, w), Eq. (5), at every layer."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def branches(self, a, weight, bias, pre, out):
        def rho(t):
            return None if t is None else t + self.gamma * t.clamp(min=0)

        return [Branch(((a, rho(weight)),), rho(bias))]


def measured(name: str, rule: bilrp.Rule) -> tuple[float, float]:
    """Magnitudes over magnitude of the sum of what is shared out, and the error of the ledger.

    Of the parts of all owners, the four quarters of an image and all sinks, of all features.
    """
    model, pictures = _trained() if name == TRAINED else _random(name)
    trace = bilrp.Trace(model, pictures[:1], rule)
    rows = trace.push_rows(quarters(), sinks=True)
    total = rows.sum(0)
    size = float(rows.abs().sum() / total.abs().sum())
    return size, float((total - trace.features).abs().max() / rows.abs().sum(0).max())


def _random(name: str) -> tuple[nn.Module, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pictures = torch.rand(8, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    return zoo.randomise(zoo.built(name), pictures), pictures


def _trained() -> tuple[nn.Module, Tensor]:
    """The published weights, and a photo."""
    photo = data.photos(data.names("cats")[:1], SIZE)
    return bilrp.efficientnet_lite0().double(), bilrp.efficientnet_lite0_input(photo).double()


def quarters() -> Tensor:
    """Shares of the four quarters of an image."""
    own = zoo.quadrants(SIZE) == torch.arange(4)[:, None, None]
    return own[:, None, None].expand(4, 1, 3, SIZE, SIZE).double()


def row(name: str) -> str:
    cells = [name]
    for rule in (bilrp.LRP0(), EachGamma(0.1), bilrp.Gamma(0.1), bilrp.Gamma(0.1, "shared")):
        size, error = measured(name, rule)
        cells.append(f"{size:.2g} ({error:.0e})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Write the table."""
    warnings.simplefilter("ignore")
    commit = commit_of()
    lines = [
        f"{date.today()}, commit {commit}, `python -m tests.joint_gamma`.",
        "",
        "| | gamma 0 | 0.1, each layer | 0.1, joint | 0.1, joint, biases shared |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in (*MODELS, TRAINED):
        lines.append(row(name))
        print(lines[-1], flush=True)
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
