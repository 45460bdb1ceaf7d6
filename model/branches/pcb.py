"""Part-based convolutional baseline (Sun et al., Beyond Part Models: Person Retrieval with Refined Part Pooling, ECCV
2018), without refined part pooling."""

from collections.abc import Sequence

import torch
from torch import nn

from config import Config
from model.branches.parts import stripes
from model.pooling import make_pooling
from model.reid import Branch, ReIDModel, embedding


class PCB(ReIDModel):
    """Six horizontal stripes of the last map, each pooled, reduced to 256 channels (--embedding-dim) and classified.

    There is no global feature. The paper uses images of 384 × 128, whose stripes have four rows each, and only the
    identity loss; here metric losses, if any, use each stripe. Each stripe has its own reduction: the authors' code
    shares one, but separate ones do better (mAP on Market-1501 78.5 against 73.3 in huanghoujing/beyond-part-models;
    paper: 77.3). The paper tests on the features before the reduction, an embedding of 12,288 numbers.
    """

    parts = 6

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__(cfg, num_classes)
        self.pool = make_pooling(cfg.model.pooling)
        inputs, width = self.backbone.out_channels, cfg.model.embedding_dim or 256
        self.branches = nn.ModuleList(
            Branch(cfg, width, num_classes, embedding(inputs, width)) for _ in range(self.parts)
        )

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        return [self.pool(stripe) for stripe in stripes(self.backbone(images), self.parts)]
