"""Exact BiLRP beside the code that the paper's authors published, on VGG-16.

    python -m tests.benchmark_authors CHECKOUT -o assets/benchmark_authors.md

CHECKOUT is a folder with their repository, oeberle/BiLRP_explain_similarity; it is run as it is, on
the book's weights. One of its passes is LRP of one projected dimension, so a pair takes 200 of
them. Times are processor time of one thread, theirs and ours in turn.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor, nn

import bilrp
from bilrp.book.data import cats
from bilrp.book.measured import commit_of
from tests.benchmark import PATCH, by_patches
from tests.zoo import heading_of_machine

DIMS, SIZE, LAYERS = 100, 128, (5, 10, 17, 24, 31)


def their_network(checkout: Path, layer: int) -> tuple[nn.Module, Callable[[int], float]]:
    """Their explainer on the book's weights, and their gammas."""
    sys.path.insert(0, str(checkout))
    sys.modules.setdefault("cv2", ModuleType("cv2"))  # reads their pictures; not needed here
    from model import bilrp as theirs

    given = SimpleNamespace(features=bilrp.vgg16(31))  # what they take from torchvision's model
    with patch.object(theirs.models, "vgg16", lambda **_: given):
        network = theirs.VggLayers(str(layer), SIZE, SIZE, DIMS, device="cpu")
    return network, theirs.vgg_gamma


def processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compared(checkout: Path, layer: int, passes: int) -> dict[str, float]:
    """Median seconds of one of their passes and of our pair, and how alike a dimension is."""
    torch.set_num_threads(1)
    images, breeds = cats(SIZE)
    pair = bilrp.normalize(images[[breeds.index("tabby cat"), breeds.index("Siamese cat")]])
    network, gammas = their_network(checkout, layer)
    model = bilrp.vgg16(layer)
    # Their gammas go by numbers of layers from 0; so do these, for the sake of the comparison.
    rules = {1: bilrp.vgg16_rules()[1]} | {n + 1: bilrp.Gamma(gammas(n)) for n in range(1, layer)}
    phi = network(pair[:1])[1].detach()

    def one(k: int) -> Tensor:
        r = torch.zeros_like(phi)
        r[0, k] = phi[0, k]
        return network.lrp(pair[:1], r, gammas)

    def ours() -> object:
        return bilrp.explain(model, *pair, rules, patch=PATCH)

    one(0)
    ours()
    both = [
        (processor_seconds(partial(one, k)), processor_seconds(ours)) for k in range(1, passes + 1)
    ]
    theirs, own = (statistics.median(times) for times in zip(*both, strict=True))
    # Their pass and ours, of the same dimension, by patches.
    w = network.project[1].weight[0].detach().flatten()  # not their `weight`, which is not used
    exact = bilrp.factor(model, pair[0], rules, patch=PATCH).dense() @ w
    like = float(torch.cosine_similarity(exact, by_patches(one(0))[0], dim=0))
    return {"pass": theirs, "pair": own, "cosine": like}


def page(checkout: Path, passes: int) -> str:
    """A table over the five layers."""
    lines = [
        heading_of_machine("python -m tests.benchmark_authors CHECKOUT"),
        f"Theirs: commit {commit_of(checkout)}.",
        "",
        "| layer | seconds, one pass of theirs | 200, a pair | ours, a pair | ratio | cosine |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for layer in LAYERS:
        r = compared(checkout, layer, passes)
        lines.append(
            f"| {layer} | {r['pass']:.3f} | {2 * DIMS * r['pass']:.1f} | {r['pair']:.2f} "
            f"| {2 * DIMS * r['pass'] / r['pair']:.0f} | {r['cosine']:.5f} |"
        )
    lines += [
        "",
        f"- Medians over {passes} passes, theirs and ours in turn.",
        "- Cosine: of one projected dimension by patches, theirs and ours, both with their gammas. "
        "Their code counts layers from 0, so three convolutions differ from the paper's schedule.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--passes", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    text = page(options.checkout, options.passes)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
