"""Multiple granularity network (Wang et al., Learning Discriminative Features with Multiple Granularities for Person
Re-Identification, ACM Multimedia 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from config import Config
from model.branches.split import Split
from model.branches.stripes import stripes
from model.pooling import POOLING
from model.reid import Branch, ReIDModel, embedding


class MGN(ReIDModel):
    """Three copies of the backbone's end: one for the whole image, one for its halves, one for its thirds.

    Eight features: the whole map of each copy, on which metric losses work too, then two halves, then three thirds,
    which are only classified. Each is reduced to 256 channels (--embedding-dim) and has its own neck and classifier.
    The paper takes images of 384 × 128, has a stride in the first copy's last stage (--last-stride 2, see `Split`),
    pools by maximum (--pooling max), and classifies the three whole ones before their reduction, which fast-reid and we
    do after it. fast-reid also puts the triplet loss on the halves and on the thirds, joined to one feature each.
    Raises UserError for a backbone that cannot be split.
    """

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__(cfg, num_classes)
        self.backbone = Split(self.backbone, 3, cfg.model.backbone)
        self.pool = POOLING[cfg.model.pooling]()
        inputs, width = self.backbone.out_channels, cfg.model.embedding_dim or 256
        self.branches = nn.ModuleList(
            Branch(cfg, width, num_classes, embedding(inputs, width), metric=whole)
            for whole in [True] * 3 + [False] * 5
        )

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        coarse, middle, fine = self.backbone(images)
        maps = [coarse, middle, fine, *stripes(middle, 2), *stripes(fine, 3)]
        return [self.pool(x) for x in maps]
