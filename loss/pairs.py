"""Pairs of images of a batch, their distances, and means over anchors.

Nothing here waits for a GPU: unused values are masked, not removed with a boolean index.
"""

import torch

MASKED = -1e9  # replaces -inf in a softmax or logsumexp, where a row of only -inf would give NaN


def pair_masks(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two masks (B, B) for labels (B,): pairs of two images of one identity, and pairs of two identities."""
    same = labels[:, None] == labels[None, :]
    return same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (B,) of the rows of (B, D). The clamp keeps the root's gradient finite at 0."""
    return (a - b).square().sum(1).clamp(min=1e-12).sqrt()


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values (B,) over the mask; 0, with a gradient of 0, where it selects none."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def anchor_mean(values: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, loss: str) -> torch.Tensor:
    """Mean of the losses (B,) of those anchors that have a positive and a negative in the batch.

    Raises ValueError when no anchor has both, but only on a CPU; on a GPU the mean is then 0.
    """
    usable = positive.any(1) & negative.any(1)
    check_any(usable, f"the {loss} loss needs a batch with two images of one identity and one image of another")
    return masked_mean(values, usable)


def check_any(usable: torch.Tensor, message: str) -> None:
    """Raises ValueError when the mask selects nothing; only on a CPU, as the check would stall a GPU in every step."""
    if usable.device.type == "cpu" and not usable.any():
        raise ValueError(message)
