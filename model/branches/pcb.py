"""Part-based convolutional baseline (Sun et al., Beyond Part Models: Person Retrieval with Refined Part Pooling, ECCV
2018), without the refinement of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from config import Config
from model.backbones.osnet import embedding
from model.branches.stripes import stripes
from model.pooling import POOLING
from model.reid import Branch, ReIDModel


class PCB(ReIDModel):
    """Six horizontal stripes of the last map, each pooled, reduced to 256 channels (--embedding-dim) and classified.

    There is no global feature. The paper trains on the identity loss alone; here metric losses, where they are on, see
    each stripe. Its test features are those before the reduction: with them the embedding would be 12,288 wide.
    """

    parts = 6

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__(cfg, num_classes)
        self.pool = POOLING[cfg.pooling]()
        inputs, width = self.backbone.out_channels, cfg.embedding_dim or 256
        self.branches = nn.ModuleList(
            Branch(cfg, width, num_classes, embedding(inputs, width)) for _ in range(self.parts)
        )

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        return [self.pool(stripe) for stripe in stripes(self.backbone(images), self.parts)]
