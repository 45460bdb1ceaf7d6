"""Batch-hard triplet loss (Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017)."""

from __future__ import annotations

import torch


def batch_hard_triplet(
    features: torch.Tensor, labels: torch.Tensor, margin: float = 0.3, hard_factor: float = 0.0
) -> torch.Tensor:
    """Mean over anchors of max(0, margin + (1 + a)·d(anchor, farthest positive) - (1 - a)·d(anchor, nearest negative)).

    features: (B, D), any float type; distances are euclidean and computed in float32. labels: (B,).
    hard_factor: a, the harder example mining of Tiny Person ReID Baseline; 0 is the plain loss.
    Anchors without a positive or without a negative are left out of the mean.
    Raises ValueError when no anchor has both.
    """
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    usable = positive.any(1) & ~same.all(1)
    if not usable.any():
        raise ValueError("the triplet loss needs a batch with two images of one identity and one image of another")
    with torch.autocast(features.device.type, enabled=False):
        features = features.float()
        with torch.no_grad():  # only the pairs that are mined need a gradient
            distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
            farthest = distances.masked_fill(~positive, -torch.inf).argmax(1)
            nearest = distances.masked_fill(same, torch.inf).argmin(1)
        # index_select and not [...]: the gradient of the latter is added up by several threads in any order.
        to_positive = (1 + hard_factor) * distance(features, features.index_select(0, farthest))
        to_negative = (1 - hard_factor) * distance(features, features.index_select(0, nearest))
    return torch.relu(margin + to_positive - to_negative)[usable].mean()


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (B,) of the rows of (B, D). The clamp keeps the root's gradient finite at 0."""
    return (a - b).square().sum(1).clamp(min=1e-12).sqrt()
