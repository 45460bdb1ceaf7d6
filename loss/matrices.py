"""Distances and similarities of all pairs of a batch, and means and sums over masks, for all losses except the hard
triplet loss. Matrix products are in float64, which neither autocast nor TF32 affects."""

import torch

from loss.pairs import MASKED
from utils.precision import at_least_float32


def euclidean_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (A, B) of all rows of (A, D) and (B, D), at least 1e-6; float32 (float64 for float64)."""
    rows, columns = a.double(), b.double()
    squares = rows.square().sum(1)[:, None] + columns.square().sum(1) - 2 * rows @ columns.T
    return squares.clamp(min=1e-12).sqrt().to(at_least_float32(a).dtype)


def cosine_similarities(features: torch.Tensor) -> torch.Tensor:
    """Cosines (B, B) of all pairs of rows (B, D); float32 (float64 for float64).

    A row of zeros, or shorter than 1e-6, has no direction: its cosines and its gradient are 0.
    """
    rows = features.double()
    squares = rows.square().sum(1, keepdim=True)
    unit = torch.where(squares <= 1e-12, 0.0, rows * squares.clamp(min=1e-12).rsqrt())  # NaN stays NaN
    return (unit @ unit.T).to(at_least_float32(features).dtype)


def first_images(positive: torch.Tensor) -> torch.Tensor:
    """(B,) mask of the first image of each identity in the batch, for sums over identities."""
    return ~positive.tril().any(1)


def means(mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(A, D) mean of the features (B, D) that each row of the mask (A, B) selects; 0 where it selects none."""
    selected = mask.double()
    sums, counts = selected @ features.double(), selected.sum(1, keepdim=True)
    return (sums / counts.clamp(min=1)).to(at_least_float32(features).dtype)


def masked_logsumexp(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log(sum(exp(values))) of each row (A, B) over the mask, (A,); about -1e9 where the mask selects none."""
    return values.masked_fill(~mask, MASKED).logsumexp(1)
