"""Rows of a map dropped where it is most active."""

from __future__ import annotations

import torch

from utils.precision import wide


def drop_top_rows(maps: torch.Tensor, share: float = 0.33) -> torch.Tensor:
    """(B, C, H, W) to the same with round(share * H) rows of each image set to 0: those with the highest peaks.

    Quispe & Pedrini, Top-DB-Net: Top DropBlock for Activation Enhancement in Person Re-Identification, ICPR 2020. How
    active a position is, is the sum of its squares over the channels; a row's peak is its most active position. Rows
    need not lie next to each other. This is for training: a test drops nothing.
    """
    peaks = wide(maps.detach()).square().sum(1).amax(2)
    top = peaks.topk(round(share * maps.shape[2]), dim=1).indices
    kept = torch.ones_like(peaks, dtype=torch.bool).scatter(1, top, False)
    return maps * kept[:, None, :, None]
