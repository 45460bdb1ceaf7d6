"""The batch hard triplet loss, with harder example mining."""

import torch
from torch.nn.functional import softplus

from loss.pairs import anchor_mean, distance, pair_masks
from utils.precision import at_least_float32


def batch_hard_triplet(
    features: torch.Tensor, labels: torch.Tensor, margin: float | None = 0.3, hard_factor: float = 0.0,
    alone: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Mean over anchors of max(0, margin + (1 + a)·d(anchor, farthest positive) - (1 - a)·d(anchor, nearest negative)).

    Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017.
    features: (B, D), any float type; distances are euclidean and computed in float32. labels: (B,).
    margin: None for the soft margin, softplus(...) in place of max(0, margin + ...).
    hard_factor: a, the harder example mining of Tiny Person ReID Baseline; 0 is the plain loss.
    alone: an anchor without a positive is its own positive, at distance 0 (for deep-efficient-reid's random batches).
    Anchors without a positive or a negative are left out. Raises ValueError when no anchor has both (with labels on a
    GPU the loss is then 0).
    """
    positive, negative = pair_masks(labels)
    positive = ~negative if alone else positive
    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        with torch.no_grad():  # only the mined pairs need a gradient
            distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
            farthest = distances.masked_fill(~positive, -torch.inf).argmax(1)
            nearest = distances.masked_fill(~negative, torch.inf).argmin(1)
        # index_select and not [...]: the gradient of the latter is added up by several threads in any order.
        to_positive = (1 + hard_factor) * distance(features, features.index_select(0, farthest))
        to_negative = (1 - hard_factor) * distance(features, features.index_select(0, nearest))
    return anchor_mean(hinge(to_positive, to_negative, margin), positive, negative, "triplet")


def hinge(to_positive: torch.Tensor, to_negative: torch.Tensor, margin: float | None) -> torch.Tensor:
    """max(0, margin + to_positive - to_negative), or its smooth form softplus(to_positive - to_negative) for None."""
    if margin is None:
        return softplus(to_positive - to_negative)
    return torch.relu(margin + to_positive - to_negative)
