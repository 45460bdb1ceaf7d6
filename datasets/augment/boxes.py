"""Augmentations inside of a rectangle: random erasing, Cutout, local grayscale transformation."""

from __future__ import annotations

from collections.abc import Callable

import torch

from datasets.augment.colour import gray
from datasets.augment.draws import Draws


def random_boxes(
    height: int,
    width: int,
    probability: float,
    draws: Draws,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: float = 0.3,
) -> torch.Tensor:
    """A rectangle for each image with this probability, else an empty one: (B, 4) top, left, height, width in pixels.

    As in random erasing: it covers a share of the image uniform in `area`, its height:width ratio is uniform in
    [aspect, 1/aspect], and every place is equally likely; one that would not fit is drawn again.
    """
    tries = 20  # most fit; an image for which none does stays whole
    size = draws.uniform(*area, tries) * (height * width)
    ratio = draws.uniform(aspect, 1 / aspect, tries)
    tall, wide = (size * ratio).sqrt().round(), (size / ratio).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    place = draws.uniform(0, 1, 2)
    top, left = ((height - tall + 1) * place[:, 0]).floor(), ((width - wide + 1) * place[:, 1]).floor()
    tall = tall * (draws.chance(probability) & fits.any(1))
    return torch.stack([top, left, tall, wide], 1)


def paint_(images: torch.Tensor, boxes: torch.Tensor, colours: Callable) -> torch.Tensor:
    """Change the pixels inside of the boxes, in place: only the rows of pixels that a box crosses are touched.

    images: (B, H, W, 3), contiguous. boxes: (B, 4) on the CPU; they may reach over the border.
    colours: from such rows (R, W, 3) and their numbers (R,), counted through the batch, to their colours if inside.
    """
    batch, height, width, _ = images.shape
    top, left, tall, wide = boxes.T[..., None]
    y, x = torch.arange(height), torch.arange(width)
    numbers = ((y >= top) & (y < top + tall)).flatten().nonzero()[:, 0]
    inside = ((x >= left) & (x < left + wide))[numbers // height, :, None].expand(-1, -1, 3).contiguous()
    there = numbers.to(images.device, non_blocking=True)
    rows = images.view(batch * height, width, 3)
    old = rows.index_select(0, there)
    rows.index_copy_(0, there, torch.where(inside.to(images.device, non_blocking=True), colours(old, numbers), old))
    return images


def own(images: torch.Tensor) -> torch.Tensor:
    """A copy that `paint_` may change."""
    return images.clone(memory_format=torch.contiguous_format)


def erase_(images: torch.Tensor, probability: float, fill: str, draws: Draws) -> torch.Tensor:
    """`random_erasing` in place, for a batch of one's own."""
    _, height, width, _ = images.shape
    boxes = random_boxes(height, width, probability, draws)
    if fill != "random":
        return paint_(images, boxes, lambda old, numbers: torch.zeros_like(old))
    noise = draws.bytes(height, width, 3).view(-1, width, 3)
    return paint_(images, boxes, lambda old, numbers: noise[numbers].to(old.device, non_blocking=True))


def random_erasing(images: torch.Tensor, probability: float, fill: str, draws: Draws) -> torch.Tensor:
    """Fill a rectangle of each image with this probability (Zhong et al., Random Erasing Data Augmentation, AAAI 2020).

    images: (B, H, W, 3), uint8 or normalised. fill: "random" for noise, each value of its own (the paper's RE-R), else
    0, which is black before normalisation (RE-0) and ImageNet's mean colour after it (RE-M).
    """
    return erase_(own(images), probability, fill, draws)


def cutout(images: torch.Tensor, probability: float, size: float, draws: Draws) -> torch.Tensor:
    """Black out a square with its centre anywhere in the image, so that a part of it may lie outside.

    DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, arXiv:1708.04552 (their
    code fills 0 after normalisation: the mean colour). images: (B, H, W, 3) uint8. size: side as a share of the height.
    """
    _, height, width, _ = images.shape
    side = torch.full([len(images)], round(size * height))
    top, left = draws.integers(0, height) - side // 2, draws.integers(0, width) - side // 2
    boxes = torch.stack([top, left, side * draws.chance(probability), side], 1)
    return paint_(own(images), boxes, lambda old, numbers: torch.zeros_like(old))


def local_grayscale(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Turn a rectangle gray, its area and shape those of random erasing: LGT (Gong et al., arXiv:2101.08533, 2021).

    images: (B, H, W, 3) uint8. The authors' code also calls it random (or local) grayscale patch replacement.
    """
    boxes = random_boxes(*images.shape[1:3], probability, draws)
    return paint_(own(images), boxes, lambda old, numbers: gray(old))
