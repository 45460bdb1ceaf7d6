"""Pairs of images of a batch, their distances, and means over anchors.

Nothing here waits for a GPU: what is left out is masked, not selected with a boolean index. Matrix products are in
float64, which neither autocast nor TF32 affects.
"""

from __future__ import annotations

import torch

from utils.precision import at_least_float32

MASKED = -1e9  # for -inf in a softmax or logsumexp, where a row of nothing but -inf would give NaN


def pair_masks(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (B,) to two masks (B, B): pairs of two images of one identity, and pairs of two identities."""
    same = labels[:, None] == labels[None, :]
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def first_images(positive: torch.Tensor) -> torch.Tensor:
    """(B,) mask of the first image of each identity in the batch, for sums over identities."""
    return ~positive.tril().any(1)


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (B,) of the rows of (B, D). The clamp keeps the root's gradient finite at 0."""
    return (a - b).square().sum(1).clamp(min=1e-12).sqrt()


def euclidean_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (A, B) of all rows of (A, D) and (B, D), at least 1e-6; float32, or float64 of float64."""
    rows, columns = a.double(), b.double()
    squares = rows.square().sum(1)[:, None] + columns.square().sum(1) - 2 * rows @ columns.T
    return squares.clamp(min=1e-12).sqrt().to(at_least_float32(a).dtype)


def cosine_similarities(features: torch.Tensor) -> torch.Tensor:
    """Cosines (B, B) of all pairs of rows (B, D); float32, or float64 of float64.

    A row of zeros, or shorter than 1e-6, has no direction: its cosines and its gradient are 0.
    """
    rows = features.double()
    squares = rows.square().sum(1, keepdim=True)
    unit = torch.where(squares <= 1e-12, 0.0, rows * squares.clamp(min=1e-12).rsqrt())  # NaN stays NaN
    return (unit @ unit.T).to(at_least_float32(features).dtype)


def means(mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(A, D) mean of the features (B, D) that each row of the mask (A, B) selects; 0 where it selects none."""
    selected = mask.double()
    sums, counts = selected @ features.double(), selected.sum(1, keepdim=True)
    return (sums / counts.clamp(min=1)).to(at_least_float32(features).dtype)


def masked_logsumexp(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log(sum(exp(values))) of each row (A, B) over the mask, (A,); about -1e9 where the mask selects none."""
    return values.masked_fill(~mask, MASKED).logsumexp(1)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values (B,) over the mask; 0, with a gradient of 0, where it selects none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def anchor_mean(values: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, loss: str) -> torch.Tensor:
    """Mean of the anchors' losses (B,) over those that have a positive and a negative in the batch.

    Raises ValueError when none has, but only on a CPU; on a GPU the mean is 0.
    """
    usable = positive.any(1) & negative.any(1)
    check_any(usable, f"the {loss} loss needs a batch with two images of one identity and one image of another")
    return masked_mean(values, usable)


def check_any(usable: torch.Tensor, message: str) -> None:
    """Raises ValueError when the mask selects nothing; only on a CPU, as looking would stall a GPU in every step."""
    if usable.device.type == "cpu" and not usable.any():
        raise ValueError(message)
