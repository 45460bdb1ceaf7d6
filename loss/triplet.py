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
    with torch.autocast(features.device.type, enabled=False):
        distances = euclidean(features.float())
    same = labels[:, None] == labels[None, :]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    usable = positive.any(1) & ~same.all(1)
    if not usable.any():
        raise ValueError("the triplet loss needs a batch with two images of one identity and one image of another")
    farthest = distances.masked_fill(~positive, -torch.inf).amax(1)[usable]
    nearest = distances.masked_fill(same, torch.inf).amin(1)[usable]
    return torch.relu(margin + (1 + hard_factor) * farthest - (1 - hard_factor) * nearest).mean()


def euclidean(features: torch.Tensor) -> torch.Tensor:
    """All pairwise distances (B, B) of (B, D). The clamp keeps the root's gradient finite where two rows are equal."""
    squares = features.square().sum(1)
    return (squares[:, None] + squares[None, :] - 2 * features @ features.T).clamp(min=1e-12).sqrt()
