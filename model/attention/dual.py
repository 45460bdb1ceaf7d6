"""Attention over positions and over channels, in the two arrangements that person ReID has for it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from model.attention.common import reduced, zero_bn
from model.attention.squeeze import SE


class PositionAttention(nn.Module):
    """x plus, at each position, the mean of all positions weighed by a softmax of dot products.

    PAM of DANet (Fu et al., CVPR 2019) with the batch norm that ABD-Net (Chen et al., ICCV 2019) puts behind it. Theirs
    normalises gamma times the mean, gamma a number that starts at 0. Its size is undone by the normalisation, so here
    the batch norm's own weight takes its place. Starts as the identity. The papers' ratio is 1/8.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        inner = reduced(channels, ratio)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1, bias=False)  # the softmax would undo a bias
        self.value = nn.Conv2d(channels, channels, 1, bias=False)  # and here the batch norm
        self.bn = zero_bn(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (f(x).flatten(2).transpose(1, 2) for f in (self.query, self.key, self.value))
        mean = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.bn(mean.transpose(1, 2).unflatten(2, x.shape[2:]))


class ChannelAttention(nn.Module):
    """x plus, for each channel, the mean of all channels, those weighing most that are least like it.

    CAM of DANet with ABD-Net's batch norm, as above. Nothing but the batch norm has weights.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.bn = zero_bn(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = x.flatten(2)
        # DANet's softmax(max - similarity) is the softmax of the negative similarity.
        mean = F.scaled_dot_product_attention(-maps, maps, maps, scale=1.0)
        return x + self.bn(mean.unflatten(2, x.shape[2:]))


class PLR(nn.Sequential):
    """Positions, then squeeze-and-excitation: the attention of PLR-OSNet, which has it after its first two stages
    (Xie et al., Learning Diverse Features with Part-Level Resolution for Person Re-Identification, 2020).

    As in Deep Person Re-identification; the authors' code takes x itself as value, and weighs every position for
    itself because the pooling of its squeeze-and-excitation is commented out. Their branches are not part of this.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__(PositionAttention(channels, ratio), SE(channels, ratio))


class FPB(nn.Sequential):
    """Positions, then channels: the attention of Zhang et al., FPB: Feature Pyramid Branch for Person
    Re-Identification, 2021, which has it after the second stage. Their pyramid of two stages is not part of this.

    As in Deep Person Re-identification, without the authors' dropout of 0.2. Starts as the identity.
    """

    def __init__(self, channels: int, ratio: float):
        super().__init__(PositionAttention(channels, ratio), ChannelAttention(channels))
