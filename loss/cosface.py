"""CosFace on pairs: the additive cosine margin (Wang et al., CVPR 2018) between images, as in fast-reid."""

import torch
from torch.nn.functional import softplus

from loss.matrices import cosine_similarities, masked_logsumexp
from loss.pairs import anchor_mean, pair_masks


def cosface_loss(
    features: torch.Tensor, labels: torch.Tensor, margin: float = 0.25, gamma: float = 128.0
) -> torch.Tensor:
    """Mean over anchors of log(1 + sum_n exp(gamma·(s_n + m))·sum_p exp(-gamma·s_p)).

    s_p and s_n are the cosines (float32) to all positives and negatives of the anchor, m is the margin. It is
    circle_loss with all weights 1; fast-reid calls it `pairwise_cosface`. features (B, D), labels (B,).
    Anchors without a positive or a negative are left out. Raises ValueError when no anchor has both.
    """
    positive, negative = pair_masks(labels)
    cosines = cosine_similarities(features)
    pull = masked_logsumexp(-gamma * cosines, positive)
    push = masked_logsumexp(gamma * (cosines + margin), negative)
    return anchor_mean(softplus(pull + push), positive, negative, "cosface")
