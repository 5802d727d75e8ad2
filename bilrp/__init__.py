"""BiLRP: exact explanations of deep similarity models on pairs of input features.

Eberle, Büttner, Kräutli, Müller, Valleriani and Montavon, "Building and Interpreting Deep
Similarity Models", IEEE TPAMI 44(3), 2022.
"""

from bilrp.baselines import curvature, hessian_x_product, saliency
from bilrp.bigram import BigramNetwork
from bilrp.explain import Explanation, Factor, explain, factor, lrp
from bilrp.explorer import Explorer
from bilrp.frames import interact_frames
from bilrp.layers import RelevanceMap, Step, register
from bilrp.metrics import acs, invariance, svm_accuracy
from bilrp.models import VGG16_NAMES, normalize, vgg16, vgg16_features, vgg16_rules
from bilrp.rules import LRP0, ZB, Epsilon, Gamma, Pass, Rule, WinnerTakeAll
from bilrp.trace import Trace
from bilrp.transforms import MaxOverTransforms

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
