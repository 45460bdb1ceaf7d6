"""Augmentations of colour: jitter, grayscale, and AutoAugment's policies.

All take images (B, H, W, 3) uint8 on any device and give new ones of the same shape.
"""

from __future__ import annotations

import torch
from torchvision.transforms.v2 import AutoAugment

from datasets.augment.draws import Draws, on_chosen

# The luma of ITU-R BT.601 (0.299 R + 0.587 G + 0.114 B) in the 16-bit fractions of Pillow's convert("L"). Such sums of
# bytes are exact in float32, so gray is the same to the last bit on every device.
LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)


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
    the hue is turned by [-limit, limit] of the full circle (at most 0.5).
    """
    factors = [draws.uniform(max(0, 1 - limit), 1 + limit) for limit in limits[:3]]
    hue = draws.uniform(-limits[3], limits[3])
    return on_chosen(images, draws.chance(probability), jitter, *factors, hue)


def jitter(
    images: torch.Tensor,
    brightness: torch.Tensor,
    contrast: torch.Tensor,
    saturation: torch.Tensor,
    hue: torch.Tensor,
) -> torch.Tensor:
    """Each image with its own three factors and turn of the hue, all (B,); rounded once, at the end."""
    numbers = torch.stack([brightness, contrast, saturation, hue]).to(images.device, non_blocking=True)
    brightness, contrast, saturation, hue = numbers[..., None, None]
    planes = images.movedim(-1, 0).contiguous() * (brightness / 255)
    planes = planes.clamp_(0, 1)
    planes = torch.lerp(luma(planes).mean((1, 2), keepdim=True), planes, contrast).clamp_(0, 1)
    planes = torch.lerp(luma(planes), planes, saturation).clamp_(0, 1)
    planes = turn_hue(planes, hue)
    return (planes * 255 + 0.5).to(torch.uint8).movedim(0, -1).contiguous()


def turn_hue(planes: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue of (3, B, H, W) in 0 to 1 by a share (B, 1, 1) of the circle; saturation and value of HSV stay."""
    red, green, blue = planes
    high = torch.maximum(torch.maximum(red, green), blue)
    chroma = high - torch.minimum(torch.minimum(red, green), blue)
    sixths = torch.where(high == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sixths = torch.where(high == red, green - blue, sixths)
    sixths = sixths / chroma.clamp(min=1e-8) + 6 * turn  # gray has no hue: what it gets is times its chroma, 0
    # Red, green and blue fall from the highest to the lowest value with the distance from their own hue.
    distances = [(sixths + offset).remainder_(6) for offset in (5, 3, 1)]
    return torch.stack([high - torch.minimum(d, 4 - d).clamp_(0, 1).mul_(chroma) for d in distances])


def autoaugment(images: torch.Tensor, probability: float, draws: Draws) -> torch.Tensor:
    """One of the policies that were found for ImageNet (Cubuk et al., AutoAugment, CVPR 2019), by torchvision.

    Each image is transformed by itself, which is slow, and its numbers come from a seed of its own.
    """
    return on_chosen(images, draws.chance(probability), _autoaugment, draws.integers(0, 2**63 - 1))


def _autoaugment(images: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    policies, results = AutoAugment(), []
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator: give it back as it was
        for image, seed in zip(images.permute(0, 3, 1, 2), seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
            results.append(policies(image))
    return torch.stack(results).permute(0, 2, 3, 1).contiguous()
