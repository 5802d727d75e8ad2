"""Models of the book: VGG-16 features with the paper's rules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bilrp._checks import check_whole, is_whole
from bilrp._names import needs
from bilrp.engine.owners import check_finite
from bilrp.engine.rules import ZB, Gamma, Rule
from bilrp.models.pixels import check_pixels

# torchvision's normalisation of ImageNet pixels in [0, 1], red, green, blue.
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def normalize(x: Tensor) -> Tensor:
    """Pixels in [0, 1] to the input of VGG-16.

    Parameters
    ----------
    x : Tensor (3, H, W) or (N, 3, H, W), float
        Red, green, blue in [0, 1].

    Returns
    -------
    Tensor
        Of the same shape, (x - mean) / std with torchvision's numbers.

    Raises
    ------
    ValueError
        If there are not 3 channels or the values leave [0, 1], naming what was found.
    """
    check_pixels(x, "normalize")
    return (x - MEAN.to(x)) / STD.to(x)


def vgg16(layer: int = 31) -> nn.Sequential:
    """VGG-16 features up to and including a layer, with the real ImageNet weights.

    Parameters
    ----------
    layer : int
        Counted from 1 as in the paper; 5, 10, 17, 24 and 31 are the five max-poolings.

    Returns
    -------
    nn.Sequential
        The first layers of torchvision's `vgg16().features`, in eval mode, without gradients.

    Raises
    ------
    ValueError
        If layer is not in 1..31.
    bilrp.data.DataError
        If the weights are neither here nor to be had.

    Source
    ------
    Simonyan and Zisserman (2015), configuration D; Eberle et al. (2022), Section 5.
    """
    with needs("vgg"):
        import torchvision  # takes a second to import: only those pay who ask for VGG-16

    from bilrp.book.data import vgg16_state

    check_whole("layer", layer, 1, 31)
    with torch.device("meta"):  # random weights would be drawn only to be thrown away
        features = torchvision.models.vgg16(weights=None).features
    features.load_state_dict(vgg16_state(), strict=True, assign=True)
    return features[:layer].eval().requires_grad_(False)


@torch.no_grad()
def vgg16_features(
    x: Tensor, layers: Sequence[int] = (5, 10, 17, 24, 31), batch: int = 32
) -> dict[int, Tensor]:
    """Features of many images at several layers of VGG-16, in one pass.

    Parameters
    ----------
    x : Tensor (N, 3, H, W)
        As the network takes them: `bilrp.normalize` of pixels in [0, 1].
    layers : sequence of int
        Counted from 1 as in the paper; default: the five max-poolings.
    batch : int
        Images computed at once.

    Returns
    -------
    dict of int to Tensor (N, D)
        The features of each layer, flattened, in float32 and on the device of x.

    Raises
    ------
    ValueError
        If x is not (N, 3, H, W) with N >= 1, holds NaN, is too small for the highest layer, or a
        layer is not in 1..31.
    bilrp.data.DataError
        If the weights are neither here nor to be had.

    Source
    ------
    Eberle et al. (2022), Section 5.1.
    """
    with needs("vgg"):
        from tqdm import tqdm

    if x.dim() != 4 or x.shape[1] != 3 or len(x) == 0 or not x.is_floating_point():
        raise ValueError(f"x must be (N, 3, H, W), floating-point; got {x.dtype} {tuple(x.shape)}")
    if len(layers) == 0 or not all(is_whole(k, 1, 31) for k in layers):
        raise ValueError(f"layers must be whole numbers from 1 to 31, got {layers!r}")
    check_finite(x)
    smallest = 2 ** sum(pool <= max(layers) for pool in (5, 10, 17, 24, 31))
    if min(x.shape[2:]) < smallest:
        raise ValueError(
            f"layer {max(layers)} needs images of at least {smallest} x {smallest} pixels, "
            f"got {x.shape[2]} x {x.shape[3]}"
        )
    model = vgg16(max(layers)).to(x.device)
    found: dict[int, list[Tensor]] = {k: [] for k in layers}
    with tqdm(total=len(x), desc="VGG-16", unit="image") as progress:
        for a in x.float().split(batch):
            for number, layer in enumerate(model, start=1):
                a = layer(a)
                if number in found:
                    # a copy: the ReLU of the next layer works in place
                    found[number].append(a.flatten(1).clone())
            progress.update(len(a))
    return {k: torch.cat(parts) for k, parts in found.items()}


def vgg16_rules() -> dict[int | range, Rule]:
    """The paper's rules for VGG-16 by layer, counted from 1.

    z^B for the pixels (layer 1), gamma 0.5 for layers 2-10, 0.25 for 11-17, 0.1 for 18-24 and 0
    for 25-31. For inputs made by `bilrp.normalize`.

    Source
    ------
    Eberle et al. (2022), Section 5.
    """
    return {
        1: ZB((0 - MEAN) / STD, (1 - MEAN) / STD),
        range(2, 11): Gamma(0.5),
        range(11, 18): Gamma(0.25),
        range(18, 25): Gamma(0.1),
        range(25, 32): Gamma(0.0),
    }


# Where the convolutions stand in vgg16(), by their names in the literature.
VGG16_NAMES = {
    "0": "conv1_1",
    "2": "conv1_2",
    "5": "conv2_1",
    "7": "conv2_2",
    "10": "conv3_1",
    "12": "conv3_2",
    "14": "conv3_3",
    "17": "conv4_1",
    "19": "conv4_2",
    "21": "conv4_3",
    "24": "conv5_1",
    "26": "conv5_2",
    "28": "conv5_3",
}
