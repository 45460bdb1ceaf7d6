"""Augmentation of whole batches on the device, with random numbers that are the same on every device and process.

All transforms take images (B, H, W, 3) uint8 on any device and return new ones of the same shape, unless they say
otherwise; pixels from outside the image are black.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as vision
from torchvision.transforms.v2 import AutoAugment

from config import Config

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1: what the published weights were trained with
STD = (0.229, 0.224, 0.225)
# Brightness is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in the 16-bit fractions of Pillow's convert("L"). Such sums
# of bytes are exact in float32, so gray is the same to the last bit on every device.
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)

CONTIGUOUS = torch.contiguous_format

TRANSFORMS = {  # name to the settings that apply it to every image
    "flip": {"flip_prob": 1.0},
    "pad and crop": {"pad": 10},
    "2D translation": {"translate_prob": 1.0},
    "rotation": {"rotate_prob": 1.0},
    "affine": {"affine_prob": 1.0},
    "colour jitter": {"jitter_prob": 1.0},
    "grayscale": {"gray_prob": 1.0},
    "local grayscale (LGT)": {"lgt_prob": 1.0},
    "AutoAugment": {"autoaugment_prob": 1.0},
    "Cutout": {"cutout_prob": 1.0},
    "random erasing, mean": {"erase_prob": 1.0, "erase_fill": "mean"},
    "random erasing, zero": {"erase_prob": 1.0, "erase_fill": "zero"},
    "random erasing, random": {"erase_prob": 1.0, "erase_fill": "random"},
}
OFF = {name: 0 * value for on in TRANSFORMS.values() for name, value in on.items() if name != "erase_fill"}


def augment(images: torch.Tensor, cfg: Config, draws: Draws) -> torch.Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32, augmented as the settings say and normalised.

    AutoAugment sees the original image; geometry comes next, then colours, and what hides a part comes last, so that
    nothing blurs, tints or moves it. With everything off this is `normalise`.
    """
    aug = cfg.augment
    if aug.autoaugment_prob > 0:
        images = autoaugment(images, aug.autoaugment_prob, draws)
    if aug.flip_prob > 0:
        images = random_flip(images, aug.flip_prob, draws)
    if aug.translate_prob > 0:
        images = random_translation(images, aug.translate_prob, draws)
    if aug.pad > 0:
        images = pad_crop(images, aug.pad, draws)
    if aug.rotate_prob > 0:
        images = random_rotation(images, aug.rotate_prob, aug.rotate_degrees, draws)
    if aug.affine_prob > 0:
        images = random_affine(images, aug.affine_prob, draws)
    if aug.jitter_prob > 0:
        images = colour_jitter(images, aug.jitter_prob, aug.jitter, draws)
    if aug.gray_prob > 0:
        images = random_grayscale(images, aug.gray_prob, draws)
    if aug.lgt_prob > 0:
        images = local_grayscale(images, aug.lgt_prob, draws)
    if aug.cutout_prob > 0:
        images = cutout(images, aug.cutout_prob, aug.cutout_size, draws)
    if aug.erase_prob > 0 and aug.erase_fill != "mean":
        images = erase_(images.clone(memory_format=CONTIGUOUS), aug.erase_prob, aug.erase_fill, draws)
    floats = normalise(images)
    if aug.erase_prob > 0 and aug.erase_fill == "mean":
        erase_(floats.permute(0, 2, 3, 1), aug.erase_prob, aug.erase_fill, draws)
    return floats


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32, standardised with ImageNet's mean and deviation.

    The result is `torch.channels_last` in memory, which makes convolutions fast.
    """
    batch, height, width, _ = images.shape
    # Values for a whole row: loops over its pixels are fast, loops over three channels are not.
    mean, std = (torch.tensor(x).repeat(width) * 255 for x in (MEAN, STD))
    scale, shift = (x.to(images.device, non_blocking=True) for x in (1 / std, -mean / std))
    floats = images.reshape(batch, height, width * 3).float()
    torch.addcmul(shift, floats, scale, out=floats)
    return floats.view(batch, height, width, 3).permute(0, 3, 1, 2)


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """The inverse of `normalise`: (B, 3, H, W) float32 to (B, H, W, 3) uint8 RGB."""
    floats = images.permute(0, 2, 3, 1).cpu().float()
    return ((floats * torch.tensor(STD) + torch.tensor(MEAN)) * 255).round().clamp(0, 255).byte().numpy()


# ---- random numbers


class Draws:
    """All random numbers of one batch, drawn on the CPU from a key of integers such as (seed, epoch, step).

    Each method draws for the `total` images of the batch over all processes, and returns the numbers of the `batch`
    images from `first` on, so that a process with a share of a batch augments it as a single process would. Numbers are
    drawn for every image, chosen or not, so that no image's depend on what another's turned out to be.
    """

    def __init__(self, *key: int, batch: int, first: int = 0, total: int | None = None):
        self.total = batch if total is None else total
        if not 0 <= first <= first + batch <= self.total:
            raise ValueError(f"images {first} to {first + batch} are not part of a batch of {self.total}")
        self.part = slice(first, first + batch)
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
    """The batch with `change(some images, *their numbers)` in place of the chosen ones; nothing else is computed.

    images: (B, ...) on any device. chosen: (B,) bool, and numbers: (B, ...) each, both on the CPU.
    """
    index = chosen.nonzero()[:, 0]
    if not len(index):
        return images
    changed = change(images.index_select(0, index.to(images.device, non_blocking=True)), *(n[index] for n in numbers))
    order = torch.arange(len(images))
    order[index] = torch.arange(len(images), len(images) + len(index))
    return torch.cat([images, changed]).index_select(0, order.to(images.device, non_blocking=True))


# ---- geometry


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
    # A row of a window is contiguous: of the views of that length that begin at each value, copy those.
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
    """Rotate an image about its centre by an angle uniform in [-degrees, degrees]."""
    angle = draws.uniform(-degrees, degrees)
    return on_chosen(images, draws.chance(probability), affine, angle, torch.ones_like(angle), torch.zeros_like(angle))


def random_affine(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Rotate, scale and shear an image by the ranges of fast-reid's DO_AFFINE (He et al., FastReID, arXiv:2006.02631).

    These are torchvision's RandomAffine(degrees=10, scale=(0.9, 1.1), shear=0.1). There a shear is an angle in degrees,
    along x, so 0.1 is next to none; scale and angle do the work. Ours interpolates where fast-reid takes the nearest.
    """
    angle, scale, shear = draws.uniform(-10, 10), draws.uniform(0.9, 1.1), draws.uniform(-0.1, 0.1)
    return on_chosen(images, draws.chance(probability), affine, angle, scale, shear)


def affine(images: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor, shear: torch.Tensor) -> torch.Tensor:
    """Shear each image along x, scale and rotate it clockwise about its centre, bilinear: torchvision's `affine`, which
    has one angle per batch. angle, shear: (B,) in degrees; scale: (B,)."""
    batch, height, width, _ = images.shape
    cos, sin, tan = angle.deg2rad().cos(), angle.deg2rad().sin(), shear.deg2rad().tan()
    # From a pixel of the result to its place in the image, about the centre: the inverse of rotation · scale · shear.
    inverse = torch.stack([cos - sin * tan, sin + cos * tan, -sin, cos]).view(2, 2, batch) / scale
    # grid_sample's unit is half the width for x and half the height for y.
    inverse = inverse * torch.tensor([[1.0, height / width], [width / height, 1.0]])[..., None]
    theta = F.pad(inverse.permute(2, 0, 1), (0, 1)).to(images.device, non_blocking=True)
    grid = F.affine_grid(theta, [batch, 3, height, width], align_corners=False)
    floats = images.permute(0, 3, 1, 2).contiguous().float()
    moved = F.grid_sample(floats, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# ---- colour


def luma(planes: torch.Tensor) -> torch.Tensor:
    """Brightness (...) of the planes R, G, B (3, ...), float."""
    return planes[0] * LUMA[0] + planes[1] * LUMA[1] + planes[2] * LUMA[2]


def gray(images: torch.Tensor) -> torch.Tensor:
    """(..., H, W, 3) uint8, all three channels the brightness."""
    brightness = (luma(images.movedim(-1, 0).float()) + 0.5).to(torch.uint8)  # 0.5: conversion rounds down
    return brightness[..., None].expand_as(images)


def random_grayscale(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Turn whole images gray with this probability."""
    return on_chosen(images, draws.chance(probability), gray)


def colour_jitter(
    images: torch.Tensor, probability: float, limits: tuple[float, float, float, float], draws: Draws
) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue of an image, as torchvision's ColorJitter but in this order.

    limits: factors of brightness, contrast and saturation are uniform in [1 - limit, 1 + limit] (no less than 0),
    the hue is shifted by [-limit, limit] of the full circle (at most 0.5).
    """
    factors = [draws.uniform(max(0, 1 - limit), 1 + limit) for limit in limits[:3]]
    hue = draws.uniform(-limits[3], limits[3])
    return on_chosen(images, draws.chance(probability), jitter, *factors, hue)


def jitter(images: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
    """Each image with its own factors of brightness, contrast and saturation and its shift of the hue, all (B,);
    rounded once, at the end."""
    numbers = torch.stack(factors).to(images.device, non_blocking=True)
    brightness, contrast, saturation, hue = numbers[..., None, None]
    planes = images.movedim(-1, 0).contiguous() * (brightness / 255)
    planes = planes.clamp_(0, 1)
    planes = torch.lerp(luma(planes).mean((1, 2), keepdim=True), planes, contrast).clamp_(0, 1)
    planes = torch.lerp(luma(planes), planes, saturation).clamp_(0, 1)
    planes = shift_hue(planes, hue)
    return (planes * 255 + 0.5).to(torch.uint8).movedim(0, -1).contiguous()


def shift_hue(planes: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift the hue of (3, B, H, W) in 0 to 1 by a share (B, 1, 1) of the circle; saturation and value of HSV stay."""
    red, green, blue = planes
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    sixths = torch.where(high == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sixths = torch.where(high == red, green - blue, sixths)
    sixths = sixths / chroma.clamp(min=1e-8) + 6 * shift  # gray has no hue; the result is multiplied by its chroma, 0
    # Red, green and blue fall from the highest to the lowest value with the distance from their own hue.
    distances = [(sixths + offset).remainder_(6) for offset in (5, 3, 1)]
    return torch.stack([high - torch.minimum(d, 4 - d).clamp_(0, 1).mul_(chroma) for d in distances])


def autoaugment(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """One of the policies that were found for ImageNet (Cubuk et al., AutoAugment, CVPR 2019), by torchvision.

    Each image is transformed alone, which is slow, and its numbers come from a seed of its own.
    """
    policies = AutoAugment()

    def transform(some: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        results = []
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator: restore it
            for image, seed in zip(some.permute(0, 3, 1, 2), seeds.tolist(), strict=True):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
                results.append(policies(image))
        return torch.stack(results).permute(0, 2, 3, 1).contiguous()

    return on_chosen(images, draws.chance(probability), transform, draws.integers(0, 2**63 - 1))


# ---- rectangles


def random_boxes(height: int, width: int, probability: float, draws: Draws) -> torch.Tensor:
    """A rectangle for each image with this probability, else an empty one: (B, 4) top, left, height, width in pixels.

    As in the paper on random erasing: its share of the image's area is uniform in [0.02, 0.4], its height:width ratio
    is uniform in [0.3, 1/0.3], and every place is equally likely; one that does not fit is drawn again.
    """
    tries = 20  # most fit; an image for which none does stays whole
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
    """Change the pixels inside the boxes, in place: only the rows of pixels that a box crosses are touched.

    images: (B, H, W, 3), contiguous. boxes: (B, 4) on the CPU; they may reach over the border.
    colours: from such rows (R, W, 3) and their numbers (R,), counted through the batch, to their colours if inside.
    """
    batch, height, width, _ = images.shape
    top, left, tall, wide = boxes.T[..., None]
    y, x = torch.arange(height), torch.arange(width)
    numbers = ((y >= top) & (y < top + tall)).flatten().nonzero()[:, 0]
    inside = ((x >= left) & (x < left + wide))[numbers // height, :, None].expand(-1, -1, 3).contiguous()
    index = numbers.to(images.device, non_blocking=True)
    rows = images.view(batch * height, width, 3)
    old = rows.index_select(0, index)
    rows.index_copy_(0, index, torch.where(inside.to(images.device, non_blocking=True), colours(old, numbers), old))
    return images


def erase_(images: torch.Tensor, probability: float, fill: str, draws: Draws) -> torch.Tensor:
    """Fill a rectangle of each image with this probability, in place (Zhong et al., Random Erasing Data Augmentation,
    AAAI 2020).

    images: (B, H, W, 3), uint8 or normalised. fill: "random" for noise, each value of its own (the paper's RE-R), else
    0, which is black before normalisation (RE-0) and ImageNet's mean colour after it (RE-M).
    """
    _, height, width, _ = images.shape
    boxes = random_boxes(height, width, probability, draws)
    if fill != "random":
        return paint_(images, boxes, lambda old, numbers: torch.zeros_like(old))
    noise = draws.bytes(height, width, 3).view(-1, width, 3)
    return paint_(images, boxes, lambda old, numbers: noise[numbers].to(old.device, non_blocking=True))


def cutout(images: torch.Tensor, probability: float, size: float, draws: Draws) -> torch.Tensor:
    """Black out a square with its centre anywhere in the image, so that a part of it may lie outside.

    DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, arXiv:1708.04552 (their
    code fills 0 after normalisation: the mean colour). size: side as a share of the height.
    """
    _, height, width, _ = images.shape
    side = torch.full([len(images)], round(size * height))
    top, left = draws.integers(0, height) - side // 2, draws.integers(0, width) - side // 2
    boxes = torch.stack([top, left, side * draws.chance(probability), side], 1)
    return paint_(images.clone(memory_format=CONTIGUOUS), boxes, lambda old, numbers: torch.zeros_like(old))


def local_grayscale(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Turn a rectangle gray, its area and shape those of random erasing: LGT (Gong et al., arXiv:2101.08533, 2021).

    The authors' code also calls it random (or local) grayscale patch replacement.
    """
    boxes = random_boxes(*images.shape[1:3], probability, draws)
    return paint_(images.clone(memory_format=CONTIGUOUS), boxes, lambda old, numbers: gray(old))
