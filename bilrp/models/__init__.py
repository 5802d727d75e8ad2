"""Networks of the book with their rules."""

from bilrp.models.vgg import (
    MEAN,
    STD,
    VGG16_NAMES,
    normalize,
    vgg16,
    vgg16_features,
    vgg16_rules,
)

__all__ = ["MEAN", "STD", "VGG16_NAMES", "normalize", "vgg16", "vgg16_features", "vgg16_rules"]
