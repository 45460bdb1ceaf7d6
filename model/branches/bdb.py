"""Batch DropBlock network (Dai et al., Batch DropBlock Network for Person Re-identification and Beyond, ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from config import Config
from model.branches.drop_random import drop_rows
from model.pooling import POOLING, Maximum
from model.reid import Branch, ReIDModel, embedding
from utils.errors import UserError


class BDB(ReIDModel):
    """A global branch, and one whose map loses the same third of its rows in a whole batch, at random in every step.

    The global feature is pooled as --pooling says (paper: avg) and reduced to 512 channels (--embedding-dim). The other
    one comes from a further bottleneck block, is pooled by maximum and reduced to twice as many; in tests nothing is
    dropped. Both have metric and identity losses. The paper takes images of 384 × 128. Its triplet loss is the one with
    --soft-margin, and its classifiers see the features without a neck (--neck none). The share of the rows is that of
    the authors' code, 0.33.
    """

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__(cfg, num_classes)
        inputs, width = self.backbone.out_channels, cfg.model.embedding_dim or 512
        self.bottleneck = bottleneck(inputs, cfg.model.backbone)
        self.pool, self.part_pool = POOLING[cfg.model.pooling](), Maximum()
        self.branches = nn.ModuleList(Branch(cfg, n, num_classes, embedding(inputs, n)) for n in (width, 2 * width))

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        maps = self.backbone(images)
        part = self.bottleneck(maps)
        return [self.pool(maps), self.part_pool(drop_rows(part) if self.training else part)]


def bottleneck(channels: int, name: str) -> Bottleneck:
    """ResNet's block of three convolutions, from maps (B, C, H, W) to the same shape, initialised as in a ResNet.

    Raises UserError where the backbone called `name` ends in a number of channels that is no multiple of 4.
    """
    if channels % Bottleneck.expansion:
        raise UserError(
            f"--backbone {name} ends in {channels} channels, which --branches bdb cannot divide by 4; take another"
        )
    block = Bottleneck(channels, channels // Bottleneck.expansion)
    for conv in (block.conv1, block.conv2, block.conv3):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return block
