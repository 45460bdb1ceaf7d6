"""Augmentation of whole batches on the device, with random numbers that are the same on every device and process.

All transforms take images (B, H, W, 3) uint8 on any device and return new ones of the same shape, unless they say
otherwise; pixels from outside the image are black.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from config import Config
from utils.lookup import load

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, RGB in 0..1, with which the published weights were trained
STD = (0.229, 0.224, 0.225)

# Applied in this order: a function of (images, settings, draws) and the names of its settings; the first turns it on.
# AutoAugment gets the original image. Hiding a part comes last, so that nothing blurs, tints or moves the hidden part.
STEPS = (
    ("datasets.augment_rare:autoaugment", "autoaugment_prob"),
    ("datasets.augment:random_flip", "flip_prob"),
    ("datasets.augment_rare:random_translation", "translate_prob"),
    ("datasets.augment:pad_crop", "pad"),
    ("datasets.augment_rare:random_rotation", "rotate_prob", "rotate_degrees"),
    ("datasets.augment_rare:random_affine", "affine_prob"),
    ("datasets.augment_rare:colour_jitter", "jitter_prob", "jitter"),
    ("datasets.augment_rare:random_grayscale", "gray_prob"),
    ("datasets.augment_rare:local_grayscale", "lgt_prob"),
    ("datasets.augment_rare:cutout", "cutout_prob", "cutout_size"),
    ("datasets.augment_rare:random_erasing", "erase_prob", "erase_fill"),
)


def augment(images: torch.Tensor, cfg: Config, draws: "Draws") -> torch.Tensor:
    """Augment (B, H, W, 3) uint8 RGB as the settings say, and normalize it to (B, 3, H, W) float32."""
    aug = cfg.augment
    for function, *settings in STEPS:
        values = [getattr(aug, name) for name in settings]
        if values[0] > 0 and "mean" not in values:  # erasing with the mean color comes last
            images = load(function)(images, *values, draws)
    floats = normalise(images)
    if aug.erase_prob > 0 and aug.erase_fill == "mean":  # 0 after normalization
        paint_(floats.permute(0, 2, 3, 1), random_boxes(*images.shape[1:3], aug.erase_prob, draws), black)
    return floats


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Normalize (B, H, W, 3) uint8 RGB to (B, 3, H, W) float32 with ImageNet's mean and standard deviation.

    The result is `torch.channels_last` in memory, which makes convolutions fast.
    """
    batch, height, width, _ = images.shape
    # Values for a whole row: loops over its pixels are fast, loops over three channels are not.
    mean, std = (torch.tensor(x).repeat(width) * 255 for x in (MEAN, STD))
    scale, shift = (to_device(x, images.device) for x in (1 / std, -mean / std))
    floats = images.reshape(batch, height, width * 3).float()
    torch.addcmul(shift, floats, scale, out=floats)
    return floats.view(batch, height, width, 3).permute(0, 3, 1, 2)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a CPU tensor to the device; to a GPU from page-locked memory, so that the CPU does not wait for the copy."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """The inverse of `normalise`: (B, 3, H, W) float32 to (B, H, W, 3) uint8 RGB."""
    floats = images.permute(0, 2, 3, 1).cpu().float()
    return ((floats * torch.tensor(STD) + torch.tensor(MEAN)) * 255).round().clamp(0, 255).byte().numpy()


class Draws:
    """All random numbers of one batch, drawn on the CPU from a key of integers such as (seed, epoch, step).

    Each method draws for the `total` images of the batch over all processes, chosen or not, and returns the numbers of
    the `batch` images from `first` on: a process with a share of a batch augments it like a single process.
    """

    def __init__(self, *key: int, batch: int, first: int = 0, total: int | None = None):
        self.total, self.part = total or batch, slice(first, first + batch)
        seed = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]  # different keys: independent streams
        self.generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """(B, *shape) float32, uniform in [low, high)."""
        return torch.empty(self.total, *shape).uniform_(low, high, generator=self.generator)[self.part]

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """(B, *shape) int64, low <= n < high, all equally likely."""
        return torch.randint(low, high, (self.total, *shape), generator=self.generator)[self.part]

    def chance(self, probability: float) -> torch.Tensor:
        """(B,) bool, each true with this probability."""
        return self.uniform(0, 1) < probability

    def bytes(self, *shape: int) -> torch.Tensor:
        """(B, *shape) uint8, 0 to 255, all equally likely."""
        count = self.total * math.prod(shape)
        # Eight per 64-bit number: six times as fast as drawing them one by one.
        numbers = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=self.generator)
        return numbers.view(torch.uint8)[:count].view(self.total, *shape)[self.part]


def on_chosen(images: torch.Tensor, chosen: torch.Tensor, change: Callable, *numbers: torch.Tensor) -> torch.Tensor:
    """Replace the chosen images by `change(chosen images, *their numbers)`; nothing is computed for the others.

    images: (B, ...) on any device. chosen: (B,) bool, and numbers: (B, ...) each, both on the CPU.
    """
    index = chosen.nonzero()[:, 0]
    if not len(index):
        return images
    changed = change(images.index_select(0, to_device(index, images.device)), *(n[index] for n in numbers))
    order = torch.arange(len(images))
    order[index] = torch.arange(len(images), len(images) + len(index))
    return torch.cat([images, changed]).index_select(0, to_device(order, images.device))


def random_flip(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Mirror each image left to right with this probability."""
    return on_chosen(images, draws.chance(probability), lambda some: some.flip(2))


def pad_crop(images: torch.Tensor, pad: int, draws: Draws) -> torch.Tensor:
    """Pad each image with `pad` black pixels on all sides, then crop it to the old size at a random place."""
    top, left = draws.integers(0, 2 * pad + 1, 2).T
    return windows(F.pad(images, (0, 0, pad, pad, pad, pad)), top, left, *images.shape[1:3])


def windows(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Crop larger images (B, H, W, 3) to (B, height, width, 3), each at its own top and left (B,), both on the CPU."""
    batch, tall, wide, channels = images.shape
    rows = (torch.arange(batch) * tall + top)[:, None] + torch.arange(height)
    starts = (rows * wide + left[:, None]) * channels
    # A row of a window is contiguous: of all views of that length, select those that begin where a row does.
    runs = images.reshape(-1).unfold(0, width * channels, 1)
    found = runs.index_select(0, to_device(starts.flatten(), images.device))
    return found.view(batch, height, width, channels)


def random_boxes(height: int, width: int, probability: float, draws: Draws) -> torch.Tensor:
    """Draw a rectangle per image with this probability, else an empty one: (B, 4) top, left, height, width in pixels.

    As in random erasing: the share of the image's area is uniform in [0.02, 0.4], the height:width ratio in
    [0.3, 1/0.3], and every place is equally likely. A rectangle that does not fit is drawn again.
    """
    tries = 20  # most rectangles fit; if none does, the image stays unchanged
    size = draws.uniform(0.02, 0.4, tries) * (height * width)
    ratio = draws.uniform(0.3, 1 / 0.3, tries)
    tall, wide = (size * ratio).sqrt().round(), (size / ratio).sqrt().round()
    fits = (tall < height) & (wide < width)
    first = fits.int().argmax(1, keepdim=True)
    tall, wide = tall.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    place = draws.uniform(0, 1, 2)
    top, left = ((height - tall + 1) * place[:, 0]).floor(), ((width - wide + 1) * place[:, 1]).floor()
    tall = tall * (draws.chance(probability) & fits.any(1))
    return torch.stack([top, left, tall, wide], 1)


def paint_(images: torch.Tensor, boxes: torch.Tensor, colours: Callable) -> torch.Tensor:
    """Change the pixels inside the boxes, in place; only rows of pixels that a box crosses are touched.

    images: (B, H, W, 3), contiguous. boxes: (B, 4) on the CPU; they may reach over the border. colours: function of
    such rows (R, W, 3) and their numbers (R,), counted through the batch, that returns the colors inside the boxes.
    """
    batch, height, width, _ = images.shape
    top, left, tall, wide = boxes.T[..., None]
    y, x = torch.arange(height), torch.arange(width)
    numbers = ((y >= top) & (y < top + tall)).flatten().nonzero()[:, 0]
    inside = ((x >= left) & (x < left + wide))[numbers // height, :, None].expand(-1, -1, 3).contiguous()
    index = to_device(numbers, images.device)
    rows = images.view(batch * height, width, 3)
    old = rows.index_select(0, index)
    rows.index_copy_(0, index, torch.where(to_device(inside, images.device), colours(old, numbers), old))
    return images


def black(old: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Return zeros, as `colours` of `paint_`."""
    return torch.zeros_like(old)
