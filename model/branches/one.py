"""One branch: the whole map pooled, as most models have it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from config import Config
from model.pooling import POOLING
from model.reid import Branch, ReIDModel, embedding


class OneBranch(ReIDModel):
    """The Bag of Tricks baseline (Luo et al., CVPR workshops 2019): one feature of the whole image."""

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__(cfg, num_classes)
        self.pool = POOLING[cfg.model.pooling]()
        width = cfg.model.embedding_dim or self.backbone.out_channels
        fc = embedding(self.backbone.out_channels, width) if cfg.model.embedding_dim else None
        self.branches = nn.ModuleList([Branch(cfg, width, num_classes, fc)])

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        return [self.pool(self.backbone(images))]
