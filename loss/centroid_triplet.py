"""Centroid triplet loss (Wieczorek et al., On the Unreasonable Effectiveness of Centroids in Image Retrieval, 2021)."""

import torch

from loss.matrices import euclidean_distances, means
from loss.pairs import anchor_mean, distance, pair_masks
from loss.triplet import hinge
from utils.precision import at_least_float32


def centroid_triplet(features: torch.Tensor, labels: torch.Tensor, margin: float | None = 0.3) -> torch.Tensor:
    """Mean over anchors of max(0, margin + d(anchor, own centroid) - d(anchor, nearest other identity's centroid)).

    The own centroid is the mean of the other images of the anchor's identity; the centroid of another identity is the
    mean of all its images. The gradient flows through both. features (B, D), labels (B,); distances are euclidean, in
    float32, as in the authors' code. margin: None for the soft margin.
    Anchors without a positive or a negative are left out. Raises ValueError when no anchor has both.
    """
    positive, negative = pair_masks(labels)
    to_own = distance(at_least_float32(features), means(positive, features))
    to_others = euclidean_distances(features, means(~negative, features))
    to_nearest = to_others.masked_fill(~negative, torch.inf).amin(1)
    return anchor_mean(hinge(to_own, to_nearest, margin), positive, negative, "centroid triplet")
