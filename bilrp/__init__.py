"""BiLRP: exact explanations of deep similarity models on pairs of input features.

Eberle, Büttner, Kräutli, Müller, Valleriani and Montavon, "Building and Interpreting Deep
Similarity Models", IEEE TPAMI 44(3), 2022.
"""

from types import ModuleType

from bilrp import _names
from bilrp.compare.altered import Warped, randomized, recalibrated, warped
from bilrp.compare.baselines import curvature, hessian_x_product, saliency
from bilrp.compare.controls import (
    ControlledShare,
    Displaced,
    controlled_share,
    locality_null,
    marginal_null,
    opposite_displacement,
)
from bilrp.compare.intervals import Interval, bootstrap, sharing_interval
from bilrp.compare.metrics import acs, invariance, svm_accuracy
from bilrp.engine.api import explain, factor, features, lrp
from bilrp.engine.defaults import default_rules
from bilrp.engine.explanation import Explanation
from bilrp.engine.factors import Factor, load
from bilrp.engine.modules import RelevanceMap, Step
from bilrp.engine.registered import register, registered
from bilrp.engine.rules import (
    CPLRP,
    LRP0,
    ZB,
    AlphaBeta,
    AttnLRP,
    Epsilon,
    Flat,
    Gamma,
    Pass,
    Rule,
    WinnerTakeAll,
    WSquare,
    ZPlus,
)
from bilrp.engine.several import Several, several
from bilrp.engine.trace import Trace
from bilrp.engine.transforms import MaxOverTransforms
from bilrp.models.bigram import BigramNetwork
from bilrp.models.efficientnet import efficientnet_lite0, efficientnet_lite0_input
from bilrp.models.numerals import numeral_encoders
from bilrp.models.vgg import VGG16_NAMES, normalize, vgg16, vgg16_features, vgg16_rules
from bilrp.models.words import SentenceEncoder, WordVectors, sentence_encoder
from bilrp.show.explorer import Explorer
from bilrp.show.frames import interact_frames
from bilrp.show.text import TextExplorer

__version__ = "0.1.0"
__all__ = [
    "CPLRP",
    "LRP0",
    "VGG16_NAMES",
    "ZB",
    "AlphaBeta",
    "AttnLRP",
    "BigramNetwork",
    "ControlledShare",
    "Displaced",
    "Epsilon",
    "Explanation",
    "Explorer",
    "Factor",
    "Flat",
    "Gamma",
    "Interval",
    "MaxOverTransforms",
    "Pass",
    "RelevanceMap",
    "Rule",
    "SentenceEncoder",
    "Several",
    "Step",
    "TextExplorer",
    "Trace",
    "WSquare",
    "Warped",
    "WinnerTakeAll",
    "WordVectors",
    "ZPlus",
    "acs",
    "bootstrap",
    "controlled_share",
    "curvature",
    "default_rules",
    "efficientnet_lite0",
    "efficientnet_lite0_input",
    "explain",
    "factor",
    "features",
    "hessian_x_product",
    "interact_frames",
    "invariance",
    "load",
    "locality_null",
    "lrp",
    "marginal_null",
    "normalize",
    "numeral_encoders",
    "opposite_displacement",
    "randomized",
    "recalibrated",
    "register",
    "registered",
    "saliency",
    "sentence_encoder",
    "several",
    "sharing_interval",
    "svm_accuracy",
    "vgg16",
    "vgg16_features",
    "vgg16_rules",
    "warped",
]


def __getattr__(name: str) -> ModuleType:
    # `bilrp.plot`, `bilrp.data` and the like: only those pay for matplotlib and pooch who ask
    if name in _names.MODULES:
        return _names.module(name)
    raise AttributeError(f"module 'bilrp' has no attribute {name!r}")
