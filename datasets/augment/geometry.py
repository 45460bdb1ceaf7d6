"""Augmentations that move pixels: flip, crop, translation, rotation and affine maps of whole batches.

All take images (B, H, W, 3) uint8 on any device and give new ones of the same shape; what comes from outside is black.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as vision

from datasets.augment.draws import Draws, on_chosen


def random_flip(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Mirror each image left to right with this probability."""
    return on_chosen(images, draws.chance(probability), lambda some: some.flip(2))


def pad_crop(images: torch.Tensor, pad: int, draws: Draws) -> torch.Tensor:
    """Put `pad` black pixels around each image and cut a window of the old size at a random place."""
    top, left = draws.integers(0, 2 * pad + 1, 2).T
    return windows(F.pad(images, (0, 0, pad, pad, pad, pad)), top, left, *images.shape[1:3])


def windows(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(B, height, width, 3): a window of each larger image (B, H, W, 3), at its own top and left (B,), on the CPU."""
    batch, tall, wide, channels = images.shape
    rows = (torch.arange(batch) * tall + top)[:, None] + torch.arange(height)
    starts = (rows * wide + left[:, None]) * channels
    # A row of a window is one run of memory. Of the runs that begin at each value, a view, copy those.
    runs = images.reshape(-1).unfold(0, width * channels, 1)
    found = runs.index_select(0, starts.flatten().to(images.device, non_blocking=True))
    return found.view(batch, height, width, channels)


def random_translation(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Enlarge an image to 9/8 of its size, bilinear, and cut a window of the old size at a random place.

    Random2DTranslation of torchreid (Zhou and Xiang, Torchreid, arXiv:1910.10093).
    """
    height, width = images.shape[1:3]
    size = [round(height * 1.125), round(width * 1.125)]
    top, left = draws.integers(0, size[0] - height + 1), draws.integers(0, size[1] - width + 1)

    def enlarge_and_crop(some: torch.Tensor, top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        large = vision.resize(some.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
        return windows(large, top, left, height, width)

    return on_chosen(images, draws.chance(probability), enlarge_and_crop, top, left)


def random_rotation(images: torch.Tensor, probability: float, degrees: float, draws: Draws) -> torch.Tensor:
    """Turn an image about its centre by an angle uniform in [-degrees, degrees]."""
    angle = draws.uniform(-degrees, degrees)
    return on_chosen(images, draws.chance(probability), affine, angle, torch.ones_like(angle), torch.zeros_like(angle))


def random_affine(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Turn, scale and shear an image by the ranges of fast-reid's DO_AFFINE (He et al., FastReID, arXiv:2006.02631).

    These are torchvision's RandomAffine(degrees=10, scale=(0.9, 1.1), shear=0.1). There a shear is an angle in degrees,
    along x, so 0.1 is next to none; scale and angle do the work. Ours interpolates where fast-reid takes the nearest.
    """
    angle, scale, shear = draws.uniform(-10, 10), draws.uniform(0.9, 1.1), draws.uniform(-0.1, 0.1)
    return on_chosen(images, draws.chance(probability), affine, angle, scale, shear)


def affine(images: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor, shear: torch.Tensor) -> torch.Tensor:
    """Shear each image along x, scale and turn it clockwise about its centre, bilinear: torchvision's `affine`.

    angle, shear: (B,) in degrees; scale: (B,).
    """
    batch, height, width, _ = images.shape
    cos, sin, tan = angle.deg2rad().cos(), angle.deg2rad().sin(), shear.deg2rad().tan()
    # From a pixel of the result to its place in the image, about the centre: the inverse of turn · scale · shear.
    inverse = torch.stack([cos - sin * tan, sin + cos * tan, -sin, cos]).view(2, 2, batch) / scale
    # grid_sample's unit is half the width for x and half the height for y.
    inverse = inverse * torch.tensor([[1.0, height / width], [width / height, 1.0]])[..., None]
    theta = F.pad(inverse.permute(2, 0, 1), (0, 1)).to(images.device, non_blocking=True)
    grid = F.affine_grid(theta, [batch, 3, height, width], align_corners=False)
    floats = images.permute(0, 3, 1, 2).contiguous().float()
    moved = F.grid_sample(floats, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
