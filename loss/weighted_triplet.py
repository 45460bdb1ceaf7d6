"""The weighted regularization triplet of AGW."""

import torch
from torch.nn.functional import softplus

from loss.matrices import euclidean_distances
from loss.pairs import MASKED, anchor_mean, pair_masks


def weighted_triplet(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over anchors of softplus(sum_p w_p·d_p - sum_n w_n·d_n) over all their positives and negatives; no margin.

    The weighted regularization triplet of AGW (Ye et al., Deep Learning for Person Re-identification: A Survey and
    Outlook, 2021): w_p is the softmax of the distances d_p to the positives, w_n that of -d_n, so that hard pairs
    weigh most. features (B, D), labels (B,); distances are euclidean, in float32. Unlike in the authors' code, an image
    is not its own positive, and the weights sum to 1 (theirs adds 1e-6 to sums that may be smaller than that).
    Anchors without a positive or a negative are left out. Raises ValueError as batch_hard_triplet does.
    """
    positive, negative = pair_masks(labels)
    distances = euclidean_distances(features, features)
    to_positive = (distances.masked_fill(~positive, MASKED).softmax(1) * distances).sum(1)
    to_negative = ((-distances).masked_fill(~negative, MASKED).softmax(1) * distances).sum(1)
    return anchor_mean(softplus(to_positive - to_negative), positive, negative, "weighted triplet")
