"""Focal loss (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017) over a softmax."""

import torch
from torch.nn.functional import log_softmax, nll_loss

from utils.precision import at_least_float32


def focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, gamma: float = 2.0, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean over images of -sum_c q_c·(1 - p_c)^gamma·log p_c: confident predictions count less.

    logits (B, C), labels (B,) in 0..C-1. p is the softmax, in float32; q is 1 - epsilon at the label plus epsilon/C
    everywhere, with label_smoothing as epsilon. gamma 0 is `cross_entropy(label_smoothing=epsilon)`. The constant
    factor alpha of other implementations (0.25) is left to the weight of the loss.
    """
    log_p = log_softmax(at_least_float32(logits), 1)
    # -expm1(log p) is 1 - p without cancellation; at 0 the gradient of a power below 1 would be infinite.
    terms = (-log_p.expm1()).clamp(min=1e-12).pow(gamma) * log_p
    return (1 - label_smoothing) * nll_loss(terms, labels) - label_smoothing * terms.mean()
