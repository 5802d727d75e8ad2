"""BiLRP: exact explanations of deep similarity models on pairs of input features.

Eberle, Büttner, Kräutli, Müller, Valleriani and Montavon, "Building and Interpreting Deep
Similarity Models", IEEE TPAMI 44(3), 2022.
"""

from types import ModuleType

from bilrp import _names
from bilrp.compare.baselines import curvature, hessian_x_product, saliency
from bilrp.compare.metrics import acs, invariance, svm_accuracy
from bilrp.engine.api import Explanation, Factor, explain, factor, lrp
from bilrp.engine.layers import RelevanceMap, Step, register
from bilrp.engine.rules import LRP0, ZB, Epsilon, Gamma, Pass, Rule, WinnerTakeAll
from bilrp.engine.trace import Trace
from bilrp.engine.transforms import MaxOverTransforms
from bilrp.models.bigram import BigramNetwork
from bilrp.models.vgg import VGG16_NAMES, normalize, vgg16, vgg16_features, vgg16_rules
from bilrp.show.explorer import Explorer
from bilrp.show.frames import interact_frames

__version__ = "0.1.0"
__all__ = [
    "LRP0",
    "VGG16_NAMES",
    "ZB",
    "BigramNetwork",
    "Epsilon",
    "Explanation",
    "Explorer",
    "Factor",
    "Gamma",
    "MaxOverTransforms",
    "Pass",
    "RelevanceMap",
    "Rule",
    "Step",
    "Trace",
    "WinnerTakeAll",
    "acs",
    "curvature",
    "explain",
    "factor",
    "hessian_x_product",
    "interact_frames",
    "invariance",
    "lrp",
    "normalize",
    "register",
    "saliency",
    "svm_accuracy",
    "vgg16",
    "vgg16_features",
    "vgg16_rules",
]


def __getattr__(name: str) -> ModuleType:
    # `bilrp.plot`, `bilrp.data` and the like: only those pay for matplotlib and pooch who ask
    if name in _names.MODULES:
        return _names.module(name)
    raise AttributeError(f"module 'bilrp' has no attribute {name!r}")
