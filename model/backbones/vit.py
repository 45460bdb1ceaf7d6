"""Vision Transformer (Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021), torchvision's."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from config import Config
from model.backbones.checks import refuse_last_stride_2
from model.backbones.stages import Backbone
from utils.errors import UserError

LAYERS = [f"encoder.layers.encoder_layer_{n}" for n in range(12)]


class ViT(Backbone):
    """Patches of 16 × 16 pixels, twelve layers in four stages of three, all at 1/16 of the image, and a layer norm.

    The map consists of the patch tokens, as pooling, parts, attention and heat maps need positions. The class token is
    kept in all layers and dropped at the end. The position embedding has its pretrained size, 14 × 14 patches, and is
    resized in every forward pass, so published weights fit, and image sides may be any multiple of 16.
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
        """Convert the older names of the MLPs in torchvision's file (pull request 6053)."""
        return {k.replace("mlp.linear_1", "mlp.0").replace("mlp.linear_2", "mlp.3"): v for k, v in state.items()}


def resize_positions(positions: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize a position embedding (1, n × n, C) of a square of patches to (1, C, height, width), bilinearly as in
    TransReID (He et al., ICCV 2021), by matrix products: `F.interpolate`'s gradient is not deterministic on CUDA."""
    n = math.isqrt(positions.shape[1])
    square = positions.transpose(1, 2).unflatten(2, (n, n))
    if (height, width) == (n, n):
        return square
    eye = torch.eye(n, device=positions.device)[None]
    rows, columns = (F.interpolate(eye, size, mode="linear")[0].to(positions.dtype) for size in (height, width))
    return rows.T @ square @ columns


def vit(cfg: Config) -> ViT:
    """The ViT of the settings: (B, 3, H, W) to (B, 768, H/16, W/16). Raises UserError for last stride 2, and for
    sizes that are not multiples of 16."""
    refuse_last_stride_2(cfg)
    height, width = cfg.data.height, cfg.data.width
    if height % 16 or width % 16:
        raise UserError(
            f"--backbone {cfg.model.backbone} needs whole 16 x 16 patches, not --height {height} --width {width}; give "
            "multiples of 16"
        )
    backbone = ViT(models.get_model(cfg.model.backbone))
    backbone.imagenet = models.get_model_weights(cfg.model.backbone).IMAGENET1K_V1.url
    return backbone
