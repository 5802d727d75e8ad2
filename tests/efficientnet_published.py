"""What the published code of EfficientNet-Lite0 computes, for tests/test_efficientnet.py.

pip download --no-deps efficientnet_lite_pytorch==0.1.0
python -m tests.efficientnet_published efficientnet_lite_pytorch-0.1.0-py3-none-any.whl

prints the numbers that stand in that test. The published code is run from the wheel, not
installed; it is not part of the book.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from bilrp.book.data import efficientnet_lite0_state

SIZES = (64, 100, 224)
BLOCKS = (1, 5, 16)


def waves(size: int) -> Tensor:
    """An input (1, 3, size, size) within [-1, 1] that is the same with every version of torch."""
    place = torch.arange(3 * size * size, dtype=torch.float64)
    return (place**1.5 / 7).sin().float().view(1, 3, size, size)


def summary(x: Tensor) -> list[float]:
    """Mean, mean square, largest number, where that is, and the number in the middle."""
    x = x.double().flatten()
    found = (x.mean(), x.pow(2).mean(), x.max(), x.argmax(), x[len(x) // 2])
    return [round(float(v), 6) for v in found]


def main() -> None:
    """Print the summaries of the published network, features and maps after some blocks."""
    sys.path.insert(0, sys.argv[1])
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(efficientnet_lite0_state())
    model.eval()
    for size in SIZES:
        with torch.no_grad():
            print(size, summary(model.extract_features(waves(size)).mean((2, 3))))
    found: dict[int, Tensor] = {}
    for number in BLOCKS:
        model._blocks[number - 1].register_forward_hook(
            lambda _, __, out, number=number: found.update({number: out})
        )
    with torch.no_grad():
        model.extract_features(waves(64))
    for number in BLOCKS:
        print("block", number, summary(found[number]))


if __name__ == "__main__":
    main()
