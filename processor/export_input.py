"""Preprocessing as a module that can be exported: pictures of any size to what a model takes, as in our own tests."""

from __future__ import annotations

import torch
from torch import nn

from datasets.augment import MEAN, STD

# OpenCV blends 8-bit pictures in integers: weights in 1/2048, and bits dropped on the way.
WEIGHT, FIRST_DROP, SECOND_DROP, LAST_DROP = 2048, 16, 65536, 4


class Preprocess(nn.Module):
    """Pictures (B, H, W, 3) uint8 RGB, all of one size, whichever, to (B, 3, height, width) float32, normalised.

    They are resized as `datasets.images.read_image` has cv2 do it (OpenCV 4 and 5, modules/imgproc/src/resize.cpp): the
    mean of the area behind a new pixel where the picture shrinks and no side grows, else a blend of four neighbours.
    """

    def __init__(self, height: int, width: int):
        super().__init__()
        self.height, self.width = height, width
        self.register_buffer("mean", 255 * torch.tensor(MEAN))
        self.register_buffer("std", 255 * torch.tensor(STD))

    def resize(self, pictures: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) to (B, height, width, 3), whole grey levels as float32."""
        x = pictures.float()
        # Sizes are compared as tensors, because an `if` would hold for the size that is traced alone.
        rows, columns = (torch.full((), n, dtype=torch.float64, device=x.device) for n in x.shape[1:3])
        shrinks = (rows > self.height) | (columns > self.width)
        area = shrinks & (rows >= self.height) & (columns >= self.width)
        twice = (rows == 2 * self.height) & (columns == 2 * self.width)
        down, across = covered(x.shape[1], self.height, rows), covered(x.shape[2], self.width, columns)
        means = across @ (down @ x.flatten(2)).unflatten(2, x.shape[2:])
        means = torch.where(twice, (means + 0.5).floor(), means.round())  # OpenCV rounds its fast case otherwise
        sides = neighbours(self.height, rows, shrinks), neighbours(self.width, columns, shrinks)
        return torch.where(area, means, blend(x, *sides))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return ((self.resize(pictures) - self.mean) / self.std).permute(0, 3, 1, 2)


def covered(old: int, new: int, size: torch.Tensor) -> torch.Tensor:
    """(new, old) float32: the share of each old row or column in the area of each new one. size: `old` as a tensor."""
    pixel = torch.arange(old, dtype=torch.float64, device=size.device)
    i = torch.arange(new, dtype=torch.float64, device=size.device)[:, None]
    scale = size / new
    common = torch.minimum(pixel + 1, (i + 1) * scale) - torch.maximum(pixel, i * scale)
    return (common.clamp(min=0) / scale).float()


def neighbours(new: int, size: torch.Tensor, shrinks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each new row or column: the two old ones that it is blended of, and the share of the second, all (new,).

    INTER_LINEAR takes those about its centre. INTER_AREA, which is asked for where the picture `shrinks`, takes others
    if one of its sides grows. float32 and float64 are as in OpenCV, for they decide what is rounded down.
    """
    i = torch.arange(new, dtype=torch.float64, device=size.device)
    factor = torch.full_like(size, new) / size
    centre = ((i + 0.5) * (1 / factor) - 0.5).float()
    start = (i * (1 / factor)).floor()
    share = (i + 1 - (start + 1) * factor).float()
    share = torch.where(share <= 0, 0.0, share - share.floor())
    first = torch.where(shrinks, start, centre.floor().double())
    share = torch.where(shrinks, share, centre - centre.floor())
    last = size - 1
    return first.clamp(min=0).minimum(last).long(), (first + 1).clamp(min=0).minimum(last).long(), share


def blend(x: torch.Tensor, rows: tuple[torch.Tensor, ...], columns: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """(B, H, W, 3) to (B, height, width, 3) of whole grey levels, of what `neighbours` gives for both sides."""

    def weights(share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (WEIGHT * (1 - share)).round(), (WEIGHT * share).round()

    (left, right, share), (top, bottom, share_down) = columns, rows
    first, second = (w[:, None] for w in weights(torch.where(left == right, 0.0, share)))
    x = x.index_select(2, left) * first + x.index_select(2, right) * second
    x = (x / FIRST_DROP).floor().double()  # float32 would not hold the products below
    first, second = (w[:, None, None].double() for w in weights(share_down))
    upper, lower = x.index_select(1, top) * first, x.index_select(1, bottom) * second
    return (
        (((upper / SECOND_DROP).floor() + (lower / SECOND_DROP).floor() + LAST_DROP // 2) / LAST_DROP).floor().float()
    )
