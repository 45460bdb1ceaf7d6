"""Batch DropBlock network (Dai et al., Batch DropBlock Network for Person Re-identification and Beyond, ICCV 2019)."""

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from config import Config
from model.backbones.checks import init_convolutions
from model.branches.parts import drop_random_rows
from model.pooling import make_pooling
from model.reid import Branch, ReIDModel, embedding
from utils.errors import UserError


class BDB(ReIDModel):
    """A global branch, and one that drops a third of its rows: random ones in each step, the same in the whole batch.

    The global feature is pooled by --pooling (paper: avg) and reduced to 512 channels (--embedding-dim). The other one
    comes from one more bottleneck block, is max-pooled and reduced to twice as many; nothing is dropped in tests. Both
    have metric and identity losses. The paper uses images of 384 × 128, a soft-margin triplet loss (--soft-margin) and
    no neck (--neck none). The share of dropped rows follows the authors' code (0.33). Raises UserError for a backbone
    whose channels are not a multiple of 4.
    """

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__(cfg, num_classes)
        inputs, width = self.backbone.out_channels, cfg.model.embedding_dim or 512
        if inputs % Bottleneck.expansion:
            raise UserError(
                f"--backbone {cfg.model.backbone} ends in {inputs} channels, which --branches bdb cannot divide by "
                "4; use another one"
            )
        self.bottleneck = Bottleneck(inputs, inputs // Bottleneck.expansion)
        init_convolutions(self.bottleneck)
        self.pool, self.part_pool = make_pooling(cfg.model.pooling), make_pooling("max")
        self.branches = nn.ModuleList(Branch(cfg, n, num_classes, embedding(inputs, n)) for n in (width, 2 * width))

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        maps = self.backbone(images)
        part = self.bottleneck(maps)
        return [self.pool(maps), self.part_pool(drop_random_rows(part) if self.training else part)]
