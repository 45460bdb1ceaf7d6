"""Multiple granularity network (Wang et al., Learning Discriminative Features with Multiple Granularities for Person
Re-Identification, ACM Multimedia 2018)."""

from collections.abc import Sequence

import torch
from torch import nn

from config import Config
from model.branches.parts import Split, stripes
from model.pooling import make_pooling
from model.reid import Branch, ReIDModel, embedding


class MGN(ReIDModel):
    """Three copies of the backbone's end: one for the whole image, one for its halves, one for its thirds.

    Eight features, each reduced to 256 channels (--embedding-dim) with its own neck and classifier: the whole map of
    each copy (also for metric losses), two halves and three thirds (only classified). The paper uses images of
    384 × 128, a stride in the first copy's last stage (--last-stride 2, see `Split`) and max pooling (--pooling max).
    It classifies the whole maps before their reduction; fast-reid and we do so after it. fast-reid also applies the
    triplet loss to the concatenated halves and thirds. Raises UserError for a backbone that cannot be split.
    """

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__(cfg, num_classes)
        self.backbone = Split(self.backbone, 3, cfg.model.backbone)
        self.pool = make_pooling(cfg.model.pooling)
        inputs, width = self.backbone.out_channels, cfg.model.embedding_dim or 256
        self.branches = nn.ModuleList(
            Branch(cfg, width, num_classes, embedding(inputs, width), metric=whole)
            for whole in [True] * 3 + [False] * 5
        )

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        coarse, middle, fine = self.backbone(images)
        maps = [coarse, middle, fine, *stripes(middle, 2), *stripes(fine, 3)]
        return [self.pool(x) for x in maps]
