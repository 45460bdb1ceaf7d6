"""Circle loss on pairs (Sun et al., Circle Loss: A Unified Perspective of Pair Similarity Optimization, CVPR 2020)."""

import torch
from torch.nn.functional import softplus

from loss.matrices import cosine_similarities, masked_logsumexp
from loss.pairs import anchor_mean, pair_masks


def circle_loss(
    features: torch.Tensor, labels: torch.Tensor, margin: float = 0.25, gamma: float = 128.0
) -> torch.Tensor:
    """Mean over anchors of log(1 + sum_n exp(gamma·a_n·(s_n - m))·sum_p exp(-gamma·a_p·(s_p - 1 + m))).

    s_p and s_n are the cosines (float32) to all positives and negatives of the anchor, a_p = max(0, 1 + m - s_p) and
    a_n = max(0, s_n + m) their weights, through which no gradient flows; m is the margin. features (B, D), labels
    (B,). Each image is an anchor, as in fast-reid. The paper's form for class labels is the head `CircleHead`.
    Anchors without a positive or a negative are left out. Raises ValueError when no anchor has both.
    """
    positive, negative = pair_masks(labels)
    cosines = cosine_similarities(features)
    fixed = cosines.detach()
    pull = -gamma * torch.relu(1 + margin - fixed) * (cosines - (1 - margin))
    push = gamma * torch.relu(fixed + margin) * (cosines - margin)
    values = softplus(masked_logsumexp(pull, positive) + masked_logsumexp(push, negative))
    return anchor_mean(values, positive, negative, "circle")
