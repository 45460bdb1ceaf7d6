"""Multi-similarity loss (Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019)."""

import torch
from torch.nn.functional import softplus

from loss.matrices import cosine_similarities, masked_logsumexp
from loss.pairs import anchor_mean, pair_masks


def multi_similarity_loss(
    features: torch.Tensor,
    labels: torch.Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> torch.Tensor:
    """Mean over anchors of log(1 + sum_p exp(-alpha·(s_p - base)))/alpha + log(1 + sum_n exp(beta·(s_n - base)))/beta.

    s_p and s_n are the anchor's cosines (float32) to positives and negatives. Only hard pairs are summed: positives
    below the nearest negative's cosine + epsilon, and negatives above the farthest positive's cosine - epsilon. An
    epsilon above 2 keeps all pairs. features (B, D), labels (B,); base is the paper's lambda.
    An anchor without hard pairs counts as 0; anchors without a positive or a negative are left out. Raises ValueError
    when no anchor has both.
    """
    positive, negative = pair_masks(labels)
    cosines = cosine_similarities(features)
    nearest_negative = cosines.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    farthest_positive = cosines.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
    # "not easy" and not "hard", so that NaN is kept and not hidden
    hard_positive = positive & ~(cosines >= nearest_negative + epsilon)
    hard_negative = negative & ~(cosines <= farthest_positive - epsilon)
    pull = softplus(masked_logsumexp(-alpha * (cosines - base), hard_positive)) / alpha
    push = softplus(masked_logsumexp(beta * (cosines - base), hard_negative)) / beta
    return anchor_mean(pull + push, positive, negative, "multi-similarity")
