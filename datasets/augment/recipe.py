"""Augmentation of whole batches on the device, as the settings say: which transforms there are, and in which order."""

from __future__ import annotations

import numpy as np
import torch

from config import Config
from config.config import SECTION_OF
from datasets.augment.boxes import cutout, erase_, local_grayscale, random_erasing
from datasets.augment.colour import autoaugment, colour_jitter, random_grayscale
from datasets.augment.draws import Draws
from datasets.augment.geometry import pad_crop, random_affine, random_flip, random_rotation, random_translation

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0..1: what the published weights were trained with
STD = (0.229, 0.224, 0.225)

# Settings that switch off every transform, and for each transform those that switch it on again for every image.
OFF = {name: 0.0 for name in SECTION_OF if name.endswith("_prob")} | {"pad": 0}
TRANSFORMS = {
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


def augment(images: torch.Tensor, cfg: Config, draws: Draws) -> torch.Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32, augmented as the settings say and normalised, on its device.

    First what wants the picture as it was, then moves, then colours, and what hides a part last, so that nothing blurs,
    tints or moves it. With everything off this is `normalise`.
    """
    if cfg.augment.autoaugment_prob > 0:
        images = autoaugment(images, cfg.augment.autoaugment_prob, draws)
    if cfg.augment.flip_prob > 0:
        images = random_flip(images, cfg.augment.flip_prob, draws)
    if cfg.augment.translate_prob > 0:
        images = random_translation(images, cfg.augment.translate_prob, draws)
    if cfg.augment.pad > 0:
        images = pad_crop(images, cfg.augment.pad, draws)
    if cfg.augment.rotate_prob > 0:
        images = random_rotation(images, cfg.augment.rotate_prob, cfg.augment.rotate_degrees, draws)
    if cfg.augment.affine_prob > 0:
        images = random_affine(images, cfg.augment.affine_prob, draws)
    if cfg.augment.jitter_prob > 0:
        images = colour_jitter(images, cfg.augment.jitter_prob, cfg.augment.jitter, draws)
    if cfg.augment.gray_prob > 0:
        images = random_grayscale(images, cfg.augment.gray_prob, draws)
    if cfg.augment.lgt_prob > 0:
        images = local_grayscale(images, cfg.augment.lgt_prob, draws)
    if cfg.augment.cutout_prob > 0:
        images = cutout(images, cfg.augment.cutout_prob, cfg.augment.cutout_size, draws)
    if cfg.augment.erase_prob > 0 and cfg.augment.erase_fill != "mean":
        images = random_erasing(images, cfg.augment.erase_prob, cfg.augment.erase_fill, draws)
    floats = normalise(images)
    if cfg.augment.erase_prob > 0 and cfg.augment.erase_fill == "mean":
        erase_(floats.permute(0, 2, 3, 1), cfg.augment.erase_prob, cfg.augment.erase_fill, draws)
    return floats


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """What `normalise` undid: (B, 3, H, W) float32 to (B, H, W, 3) uint8 RGB."""
    floats = images.permute(0, 2, 3, 1).cpu().float()
    return ((floats * torch.tensor(STD) + torch.tensor(MEAN)) * 255).round().clamp(0, 255).byte().numpy()


def normalise(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32, standardised with ImageNet's mean and deviation.

    The result keeps the channels of a pixel side by side in memory (`torch.channels_last`), as fast convolutions want.
    """
    batch, height, width, _ = images.shape
    # Values for a whole row: loops over its pixels are fast, loops over three channels are not.
    mean, std = (torch.tensor(x).repeat(width) * 255 for x in (MEAN, STD))
    scale, shift = (x.to(images.device, non_blocking=True) for x in (1 / std, -mean / std))
    floats = images.reshape(batch, height, width * 3).float()
    torch.addcmul(shift, floats, scale, out=floats)
    return floats.view(batch, height, width, 3).permute(0, 3, 1, 2)
