"""Which rules a model gets that is not told any."""

from __future__ import annotations

from torch import Tensor, nn

from bilrp.engine.rules import Gamma, Rules


def default_rules(model: nn.Module, x: Tensor | None = None) -> Rules:
    """Rules for a model that is not told any, by its family.

    Parameters
    ----------
    model : nn.Module
    x : Tensor, optional
        An input; not needed for the families so far.

    Returns
    -------
    Rule or mapping
        Networks with attention or recurrent layers: gamma 0, gates frozen. All others: joint gamma
        of 0.02, biases as owners.
    """
    frozen = (nn.MultiheadAttention, nn.RNNBase)
    attends = any(
        isinstance(m, frozen) or "attention" in type(m).__name__.lower() for m in model.modules()
    )
    return Gamma(0.0) if attends else Gamma(0.02)
