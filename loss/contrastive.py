"""Contrastive loss (Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006)."""

import torch

from loss.matrices import euclidean_distances
from loss.pairs import pair_masks


def contrastive_loss(features: torch.Tensor, labels: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Mean over all pairs of the batch of d²/2 for one identity, and of max(0, margin - d)²/2 for two.

    features (B, D), labels (B,); d is the euclidean distance, in float32, of the features as they are (not
    normalised), and the margin is in its unit. Raises ValueError when there is no pair: fewer than two images.
    """
    images = len(labels)
    if images < 2:
        raise ValueError("the contrastive loss needs a batch with two images")
    _, negative = pair_masks(labels)
    distances = euclidean_distances(features, features)
    halves = torch.where(negative, torch.relu(margin - distances), distances).square() / 2
    return halves.sum() / (images * (images - 1))  # each pair is there twice; an image and itself add nothing
