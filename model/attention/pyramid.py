"""The pyramid of FPB: one map from those of two stages, and the regulariser that keeps the two apart
(Zhang et al., FPB: Feature Pyramid Branch for Person Re-Identification, 2021)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from model.attention.dual import FPB
from utils.precision import wide


class FeaturePyramid(nn.Module):
    """A fine map (B, F, 2h, 2w) and a coarse one (B, C, h, w) to (B, C, h, w), top-down and then bottom-up.

    In FPB these are the second and third stages of ResNet50, F = 512 and C = 1024, and stripes of the result are
    pooled. The second output, (B, 2 × width, h, w), is what `eigenvalue_spread` is for. Sizes need not be even.
    """

    def __init__(self, fine: int, coarse: int, width: int = 256):
        super().__init__()
        self.lateral_fine, self.lateral_coarse = conv_bn_relu(fine, width, 1), conv_bn_relu(coarse, width, 1)
        self.attention = FPB(width, 1 / 8)
        self.down, self.fuse_fine, self.refine, self.up = (conv_bn_relu(width, width, 3) for _ in range(4))
        self.skip_fine, self.skip_coarse = conv_bn_relu(width, width, 1), conv_bn_relu(width, width, 1)
        self.out = conv_bn_relu(width, coarse, 1)

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = coarse.shape[2:]
        fine, coarse = self.lateral_fine(fine), self.lateral_coarse(coarse)
        attended = self.attention(fine)
        top = self.down(coarse)
        middle = self.refine(self.fuse_fine(attended + F.interpolate(top, fine.shape[2:]))) + self.skip_fine(fine)
        bottom = self.up(top + F.adaptive_max_pool2d(middle, size)) + self.skip_coarse(coarse)
        return self.out(bottom), torch.cat([coarse, F.adaptive_max_pool2d(attended, size)], 1)


def conv_bn_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the size, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def eigenvalue_spread(maps: torch.Tensor, steps: int = 1) -> torch.Tensor:
    """Largest less smallest eigenvalue of the products of channels with channels, mean over the batch: 0 where the
    channels of (B, C, H, W) are orthogonal and alike in size. FPB's cross orthogonality, ABD-Net's OF penalty.

    Estimated by `steps` of power iteration from a random start, in float32; the authors take one. Their weight, on
    this mean, is 3.2e-7. With more channels than positions the smallest is 0, and this is the largest alone.
    """
    with torch.autocast(maps.device.type, enabled=False):
        rows = wide(maps).flatten(2)

        def dominant(shift: torch.Tensor | float) -> torch.Tensor:
            """The eigenvalue (B, 1, 1) of rows rows' - shift that is largest in size."""
            x = torch.randn_like(rows[:, :, :1])
            for _ in range(steps):
                x = F.normalize(rows @ (rows.transpose(1, 2) @ x) - shift * x, dim=1)
            return (x * (rows @ (rows.transpose(1, 2) @ x) - shift * x)).sum(1, keepdim=True)

        return -dominant(dominant(0.0)).mean()  # the smallest is the largest plus what is found with it as shift
