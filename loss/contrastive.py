"""Contrastive loss (Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006)."""

import torch

from loss.matrices import euclidean_distances
from loss.pairs import pair_masks


def contrastive_loss(features: torch.Tensor, labels: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Mean over all pairs of the batch: d²/2 for the same identity, max(0, margin - d)²/2 for different identities.

    features (B, D), labels (B,); d is the euclidean distance of the features as given (not normalized), in float32, and
    the margin is in the same unit. Raises ValueError when there is no pair: fewer than two images.
    """
    images = len(labels)
    if images < 2:
        raise ValueError("the contrastive loss needs a batch with two images")
    _, negative = pair_masks(labels)
    distances = euclidean_distances(features, features)
    halves = torch.where(negative, torch.relu(margin - distances), distances).square() / 2
    return halves.sum() / (images * (images - 1))  # each pair occurs twice; an image paired with itself adds 0
