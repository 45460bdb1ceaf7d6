"""Horizontal parts of a map."""

from __future__ import annotations

import torch

from utils.errors import UserError


def stripes(maps: torch.Tensor, count: int) -> list[torch.Tensor]:
    """(B, C, H, W) to `count` maps of whole rows, from top to bottom; neighbours share a row where H is no multiple.

    Rows are those of adaptive pooling: floor(i·H / count) to ceil((i + 1)·H / count). Raises UserError for fewer rows
    than parts.
    """
    rows = maps.shape[2]
    if rows < count:
        raise UserError(f"the model's last map has {rows} rows, too few for {count} parts; give a larger --height")
    return [maps[:, :, i * rows // count : -(-(i + 1) * rows // count)] for i in range(count)]
