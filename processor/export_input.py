"""Preprocessing as a module that can be exported: pictures of any size to what a model takes, as in our own tests."""

from __future__ import annotations

import torch
from torch import nn

from datasets.augment import MEAN, STD


class Preprocess(nn.Module):
    """Pictures (B, H, W, 3) uint8 RGB, all of one size, whichever, to (B, 3, height, width) float32, normalised.

    They are resized as `datasets.images.read_image` does it, with cv2. Where a side grows, about a tenth of the values
    are one grey level off, because cv2 rounds in between. Resizing is a product with two matrices, which are made of
    the pictures' size whenever the graph runs.
    """

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width
        self.register_buffer("mean", 255 * torch.tensor(MEAN))
        self.register_buffer("std", 255 * torch.tensor(STD))

    def resize(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) to (B, height, width, 3), whole grey levels as float32."""
        rows, columns = pictures.shape[1:3]
        # Sizes are compared as tensors, because an `if` would hold for the size that is traced alone.
        high, wide = (torch.full((), n, dtype=torch.float64, device=pictures.device) for n in (rows, columns))
        shrinks = (high > self.height) | (wide > self.width)
        area = (high >= self.height) & (wide >= self.width)
        down = resize_matrix(rows, self.height, high, shrinks, area)
        across = resize_matrix(columns, self.width, wide, shrinks, area)
        resized = (down @ pictures.float().flatten(2)).unflatten(2, (columns, 3))
        resized = across @ resized
        twice = (high == 2 * self.height) & (wide == 2 * self.width)  # OpenCV has a way of its own for that
        return torch.where(area & ~twice, resized.round(), (resized + 0.5).floor())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return ((self.resize(pictures) - self.mean) / self.std).permute(0, 3, 1, 2)


def resize_matrix(old: int, new: int, size: torch.Tensor, shrinks: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """(new, old) float32: how much of each old row or column is in each new one, if cv2.resize does it.

    size: `old` as a tensor; shrinks: a side of the picture shrinks, so that `read_image` asks for INTER_AREA, not
    INTER_LINEAR; area: none grows. OpenCV (modules/imgproc/src/resize.cpp) takes the mean of the area behind a new
    pixel only where none grows; where one does, INTER_AREA blends two neighbours on both sides, at places of its own.
    """
    pixel = torch.arange(old, dtype=torch.float64, device=size.device)
    i = torch.arange(new, dtype=torch.float64, device=size.device)[:, None]
    scale = size / new
    covered = (torch.minimum(pixel + 1, (i + 1) * scale) - torch.maximum(pixel, i * scale)).clamp(min=0) / scale
    between = (i + 0.5) * scale - 0.5  # INTER_LINEAR: where the new pixel's centre lies among the old ones'
    factor = torch.full_like(size, new) / size
    first = (i * (1 / factor)).floor()
    share = (i + 1 - (first + 1) * factor).float()  # float32 as in OpenCV, for it decides what the next line rounds
    mixed = first + torch.where(share <= 0, 0.0, share - share.floor())
    place = torch.where(shrinks, mixed, between).clamp(min=0).minimum(size - 1)
    blend = (1 - (place - pixel).abs()).clamp(min=0)
    return torch.where(area & shrinks, covered, blend).float()
