"""Augmentations that few recipes use, imported when chosen, with the interface of those in `datasets.augment`."""

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as vision
from torchvision.transforms.v2 import AutoAugment

from datasets.augment import Draws, black, on_chosen, paint_, random_boxes, to_device, windows

# Brightness is 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) in the 16-bit fractions of Pillow's convert("L"). Such sums
# of bytes are exact in float32, so gray is the same to the last bit on every device.
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)

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


# ---- geometry


def random_translation(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Enlarge an image to 9/8 of its size, bilinearly, then crop it to the old size at a random place.

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
    """Rotate an image about its center by an angle uniform in [-degrees, degrees]."""
    angle = draws.uniform(-degrees, degrees)
    return on_chosen(images, draws.chance(probability), affine, angle, torch.ones_like(angle), torch.zeros_like(angle))


def random_affine(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Rotate, scale and shear an image by the ranges of fast-reid's DO_AFFINE (He et al., FastReID, arXiv:2006.02631).

    These are torchvision's RandomAffine(degrees=10, scale=(0.9, 1.1), shear=0.1). There, shear is an angle in degrees
    along x, so 0.1 is almost none; scale and angle do the work. Ours is bilinear; fast-reid takes the nearest pixel.
    """
    angle, scale, shear = draws.uniform(-10, 10), draws.uniform(0.9, 1.1), draws.uniform(-0.1, 0.1)
    return on_chosen(images, draws.chance(probability), affine, angle, scale, shear)


def affine(images: torch.Tensor, angle: torch.Tensor, scale: torch.Tensor, shear: torch.Tensor) -> torch.Tensor:
    """Shear each image along x, scale and rotate it clockwise about its center, bilinearly, like torchvision's
    `affine`, which has one angle per batch. angle, shear: (B,) in degrees; scale: (B,)."""
    batch, height, width, _ = images.shape
    cos, sin, tan = angle.deg2rad().cos(), angle.deg2rad().sin(), shear.deg2rad().tan()
    # From a pixel of the result to its place in the image, about the center: the inverse of rotation · scale · shear.
    inverse = torch.stack([cos - sin * tan, sin + cos * tan, -sin, cos]).view(2, 2, batch) / scale
    # grid_sample's unit is half the width for x and half the height for y.
    inverse = inverse * torch.tensor([[1.0, height / width], [width / height, 1.0]])[..., None]
    theta = to_device(F.pad(inverse.permute(2, 0, 1), (0, 1)), images.device)
    grid = F.affine_grid(theta, [batch, 3, height, width], align_corners=False)
    floats = images.permute(0, 3, 1, 2).contiguous().float()
    moved = F.grid_sample(floats, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# ---- color


def luma(planes: torch.Tensor) -> torch.Tensor:
    """Brightness (...) of the planes R, G, B (3, ...), float."""
    return planes[0] * LUMA[0] + planes[1] * LUMA[1] + planes[2] * LUMA[2]


def gray(images: torch.Tensor) -> torch.Tensor:
    """Return images (..., H, W, 3) uint8 with the brightness in all three channels."""
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
    """Change each image by its own factors of brightness, contrast and saturation and its own shift of the hue, all
    (B,); round once, at the end."""
    numbers = to_device(torch.stack(factors), images.device)
    brightness, contrast, saturation, hue = numbers[..., None, None]
    planes = images.movedim(-1, 0).contiguous() * (brightness / 255)
    planes = planes.clamp_(0, 1)
    planes = torch.lerp(luma(planes).mean((1, 2), keepdim=True), planes, contrast).clamp_(0, 1)
    planes = torch.lerp(luma(planes), planes, saturation).clamp_(0, 1)
    planes = shift_hue(planes, hue)
    return (planes * 255 + 0.5).to(torch.uint8).movedim(0, -1).contiguous()


def shift_hue(planes: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Shift the hue of (3, B, H, W) in 0 to 1 by a share (B, 1, 1) of the circle; keep HSV's saturation and value."""
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

    Each image is transformed separately, which is slow, and its random numbers come from its own seed.
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


def cutout(images: torch.Tensor, probability: float, size: float, draws: Draws) -> torch.Tensor:
    """Black out a square with its center anywhere in the image, so that a part of it may lie outside.

    DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, arXiv:1708.04552 (their
    code fills 0 after normalization: the mean color). size: side as a share of the height.
    """
    _, height, width, _ = images.shape
    side = torch.full([len(images)], round(size * height))
    top, left = draws.integers(0, height) - side // 2, draws.integers(0, width) - side // 2
    boxes = torch.stack([top, left, side * draws.chance(probability), side], 1)
    images = images.clone(memory_format=torch.contiguous_format)
    return paint_(images, boxes, black)


def random_erasing(images: torch.Tensor, probability: float, fill: str, draws: Draws) -> torch.Tensor:
    """Fill a rectangle of each image with this probability (Zhong et al., Random Erasing, AAAI 2020): fill "zero" is
    black (RE-0), "random" noise (RE-R)."""
    _, height, width, _ = images.shape
    images, boxes = images.clone(memory_format=torch.contiguous_format), random_boxes(height, width, probability, draws)
    if fill == "zero":
        return paint_(images, boxes, black)
    noise = draws.bytes(height, width, 3).view(-1, width, 3)
    return paint_(images, boxes, lambda old, numbers: to_device(noise[numbers], old.device))


def local_grayscale(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """Turn a rectangle gray, with area and shape as in random erasing: LGT (Gong et al., arXiv:2101.08533, 2021).

    The authors' code also calls it random (or local) grayscale patch replacement.
    """
    boxes = random_boxes(*images.shape[1:3], probability, draws)
    return paint_(images.clone(memory_format=torch.contiguous_format), boxes, lambda old, numbers: gray(old))
