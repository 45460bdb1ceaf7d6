"""Random parts of a map set to zero while a model trains."""

from __future__ import annotations

import torch


def drop_rows(maps: torch.Tensor, share: float = 1 / 3) -> torch.Tensor:
    """Maps (B, C, H, W) with a block of round(share × H) whole rows set to 0, the same one in all images of the batch.

    All places where the block fits are equally likely. Drawn on the maps' device by torch's global generator, one
    number a call, for which nothing waits (Dai et al., Batch DropBlock, ICCV 2019).
    """
    height = maps.shape[2]
    size = round(share * height)
    top = torch.randint(height - size + 1, (1,), device=maps.device)
    rows = torch.arange(height, device=maps.device)
    return maps.masked_fill(((rows >= top) & (rows < top + size))[:, None], 0)
