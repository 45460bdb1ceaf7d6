"""Augmentation of whole batches on the device. All random numbers come from one CPU generator a batch, so the
same seed gives the same batch on every device; each image draws its own."""

from __future__ import annotations

import numpy as np
import torch

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1: what the published weights were trained with
STD = (0.229, 0.224, 0.225)


def batch_generator(*key: int) -> torch.Generator:
    """A CPU generator for one batch, from (seed, epoch, step): independent streams, whatever ran before."""
    seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32, standardised with ImageNet's mean and deviation."""
    mean = torch.tensor(MEAN, device=images.device) * 255
    std = torch.tensor(STD, device=images.device) * 255
    return ((images - mean) / std).permute(0, 3, 1, 2)


def random_flip(images: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image of (B, H, W, C) left to right with this probability."""
    flipped = (torch.rand(len(images), generator=generator) < probability).to(images.device)
    return torch.where(flipped[:, None, None, None], images.flip(2), images)


def pad_crop(images: torch.Tensor, pad: int, generator: torch.Generator) -> torch.Tensor:
    """Put `pad` black pixels around each image of (B, H, W, C) and cut a window of the old size at a random place."""
    batch, height, width, _ = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    top, left = torch.randint(0, 2 * pad + 1, (2, batch), generator=generator).to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    numbers = torch.arange(batch, device=images.device)
    return padded[numbers[:, None, None], rows[:, :, None], columns[:, None, :]]


def random_erasing(
    images: torch.Tensor,
    probability: float,
    generator: torch.Generator,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: float = 0.3,
) -> torch.Tensor:
    """Fill one random rectangle of each image with 0 (Zhong et al., Random Erasing Data Augmentation, AAAI 2020).

    images: (B, 3, H, W), already normalised, so that 0 is the mean colour. The rectangle covers a share of the image
    drawn from `area`, its height:width ratio lies in [aspect, 1/aspect]; one that would not fit is drawn again.
    """
    batch, _, height, width = images.shape
    tries = 20  # most fit; an image for which none does stays whole
    size = torch.empty(batch, tries).uniform_(*area, generator=generator) * (height * width)
    ratio = torch.empty(batch, tries).uniform_(aspect, 1 / aspect, generator=generator)
    tall, wide = (size * ratio).sqrt().round(), (size / ratio).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first), wide.gather(1, first)
    place = torch.rand(2, batch, 1, generator=generator)
    top, left = ((height - tall + 1) * place[0]).floor(), ((width - wide + 1) * place[1]).floor()
    chosen = (torch.rand(batch, 1, generator=generator) < probability) & fits.any(1, keepdim=True)
    y, x = torch.arange(height), torch.arange(width)
    rows = chosen & (y >= top) & (y < top + tall)
    columns = (x >= left) & (x < left + wide)
    mask = rows[:, None, :, None].to(images.device) & columns[:, None, None, :].to(images.device)
    return images.masked_fill(mask, 0.0)


def augment(images: torch.Tensor, flip: float, pad: int, erase: float, generator: torch.Generator) -> torch.Tensor:
    """The recipe of Bag of Tricks: flip, pad and crop, normalise, erase. (B, H, W, 3) uint8 to (B, 3, H, W) float32."""
    if flip > 0:
        images = random_flip(images, flip, generator)
    if pad > 0:
        images = pad_crop(images, pad, generator)
    floats = normalise(images)
    return random_erasing(floats, erase, generator) if erase > 0 else floats
