"""Vision Transformer (Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021) and Swin Transformer (Liu et al.,
ICCV 2021; V2: Liu et al., CVPR 2022), torchvision's."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.swin_transformer import PatchMergingV2

from config import Config
from model.backbones.stages import Backbone, cut
from utils.errors import UserError

LAYERS = [f"encoder.layers.encoder_layer_{n}" for n in range(12)]


class ViT(Backbone):
    """Patches of 16 × 16 pixels, twelve layers in four stages of three, all at 1/16 of the image, and a layer norm.

    The map is that of the patch tokens, because pooling, parts, attention and heat maps need positions; the class token
    runs along and is dropped at the end. The position embedding is kept as it was trained, for 14 × 14 patches, and
    resized to the images' own at every use: published weights fit, and images may have any multiple of 16.
    """

    def __init__(self, net: nn.Module):
        stages = [LAYERS[:3], LAYERS[3:6], LAYERS[6:9], [*LAYERS[9:], "encoder.ln"]]
        super().__init__(net, stages, [net.hidden_dim] * 4, last_stride=1)
        self.conv_proj, self.class_token = net.conv_proj, net.class_token

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.conv_proj(images)
        class_token, positions = self.encoder.pos_embedding.split((1, self.encoder.pos_embedding.shape[1] - 1), 1)
        class_token = (class_token + self.class_token).expand(len(maps), -1, -1)
        maps = maps + resize_positions(positions, maps.shape[2], maps.shape[3])
        for number, stage in enumerate(self.stages, 1):
            x = torch.cat([class_token, maps.flatten(2).transpose(1, 2)], 1)
            for layer in stage:
                x = self.get_submodule(layer)(x)
            class_token, x = x.split((1, x.shape[1] - 1), 1)
            maps = self.attend(number, x.transpose(1, 2).unflatten(2, maps.shape[2:]))
        return maps

    @staticmethod
    def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """From the names in torchvision's file, which is older than today's names of its MLPs (pull request 6053)."""
        return {k.replace("mlp.linear_1", "mlp.0").replace("mlp.linear_2", "mlp.3"): v for k, v in state.items()}


def resize_positions(positions: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Position embedding (1, n × n, C) of a square of patches to (1, C, height, width), bilinear as in TransReID (He et
    al., ICCV 2021). As products with matrices: the gradient of `F.interpolate` is not deterministic on CUDA."""
    n = math.isqrt(positions.shape[1])
    square = positions.transpose(1, 2).unflatten(2, (n, n))
    if (height, width) == (n, n):
        return square
    eye = torch.eye(n, device=positions.device)[None]
    rows, columns = (F.interpolate(eye, size, mode="linear")[0].to(positions.dtype) for size in (height, width))
    return rows.T @ square @ columns


class Swin(Backbone):
    """Swin Transformer up to its last layer norm. Its layers keep the channels last, attention gets them first."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).permute(0, 3, 1, 2)

    def attend(self, number: int, maps: torch.Tensor) -> torch.Tensor:
        return super().attend(number, maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DenseMerging(nn.Module):
    """Swin's patch merging at every position instead of every second, with zeros past the last row and column: the map
    keeps its size, and what the stride would have given is at its even positions."""

    def __init__(self, merging: nn.Module):
        super().__init__()
        self.reduction, self.norm = merging.reduction, merging.norm
        self.norm_first = not isinstance(merging, PatchMergingV2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) to (B, H, W, 2C)."""
        x = F.pad(x, (0, 0, 0, 1, 0, 1))
        top, bottom = x[:, :-1], x[:, 1:]
        x = torch.cat([top[:, :, :-1], bottom[:, :, :-1], top[:, :, 1:], bottom[:, :, 1:]], -1)
        return self.reduction(self.norm(x)) if self.norm_first else self.norm(self.reduction(x))


def swin(name: str, cfg: Config) -> Swin:
    """The Swin called `name`: (B, 3, H, W) to (B, 768, H/16, W/16), or H/32 with last stride 2."""
    net = models.get_model(name)
    if cfg.model.last_stride == 1:
        net.features[6] = DenseMerging(net.features[6])
    channels = [net.features[0][0].out_channels * 2**n for n in range(4)]
    stages = cut("features", (2, 4, 6, 8))
    backbone = Swin(net, [*stages[:3], [*stages[3], "norm"]], channels, cfg.model.last_stride)
    backbone.imagenet = models.get_model_weights(name).IMAGENET1K_V1
    return backbone


class ViTWeights:
    """torchvision's weights of a ViT, under today's names."""

    def __init__(self, weights: Any):
        self.weights, self.url = weights, weights.url

    def get_state_dict(self, progress: bool, check_hash: bool) -> dict[str, torch.Tensor]:
        return ViT.rename(self.weights.get_state_dict(progress=progress, check_hash=check_hash))

    def __str__(self) -> str:
        return str(self.weights)


def vit(name: str, cfg: Config) -> ViT:
    """The ViT called `name`: (B, 3, H, W) to (B, 768, H/16, W/16).

    Raises UserError for last stride 2, which it cannot have, and for sizes that are no multiples of 16.
    """
    if cfg.model.last_stride != 1:
        raise UserError(
            f"--last-stride {cfg.model.last_stride} cannot be had of {name}, which ends at 1/16; leave it out"
        )
    if cfg.data.height % 16 or cfg.data.width % 16:
        raise UserError(
            f"--backbone {name} takes images of whole 16 x 16 patches, not --height {cfg.data.height} --width {cfg.data.width}; "
            "give multiples of 16"
        )
    backbone = ViT(models.get_model(name))
    backbone.imagenet = ViTWeights(models.get_model_weights(name).IMAGENET1K_V1)
    return backbone


TRANSFORMERS = {
    "swin_t": partial(swin, "swin_t"),
    "swin_v2_t": partial(swin, "swin_v2_t"),
    "vit_b_16": partial(vit, "vit_b_16"),
}
