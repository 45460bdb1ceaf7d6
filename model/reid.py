"""What all models are: a backbone, and behind it branches, each of them pooled feature → reduction → neck → classifier
(Luo et al., Bag of Tricks, CVPR workshops 2019). `branches/` has the arrangements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from model.attention import make_attention
from model.backbones import find_backbone
from model.heads import HEADS
from utils.errors import UserError
from utils.precision import wide


class Branch(nn.Module):
    """What is behind a pooling: a feature (B, C), reduced by `fc` to (B, width), its neck and its classifier.

    Metric losses get the reduced feature before the neck unless `metric` is False; the identity loss gets the
    classifier's logits unless `identity` is False.
    """

    def __init__(
        self,
        cfg: Config,
        width: int,
        num_classes: int,
        fc: nn.Module | None = None,
        metric: bool = True,
        identity: bool = True,
    ):
        super().__init__()
        self.width, self.metric = width, metric
        self.fc = fc or nn.Identity()
        self.neck = bnneck(width) if cfg.model.neck == "bnneck" else nn.Identity()
        self.classifier = None
        if identity:
            self.classifier = HEADS[cfg.model.head](
                width, num_classes, cfg.model.head_scale, cfg.model.head_margin, cfg.model.sub_centers
            )


class ReIDModel(nn.Module):
    """Images (B, 3, H, W), normalised, to what the mode asks for. A kind of model says how the map is pooled.

    Training: (logits, features), two lists: logits (B, C) of every branch with a classifier, features (B, D) before
    the neck of every branch that metric losses see. Evaluation: embeddings (B, D) of all branches next to each other,
    each of length 1 so that all have the same say; of one branch alone as it is, not L2-normalised.
    """

    branches: nn.ModuleList

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        self.test_after_neck = cfg.model.test_feature == "after"
        self.backbone = make_backbone(cfg)

    def pooled(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """The pooled feature (B, C) of each branch, in their order."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor):
        features = [branch.fc(x) for branch, x in zip(self.branches, self.pooled(images), strict=True)]
        after = [branch.neck(x) for branch, x in zip(self.branches, features, strict=True)]
        if self.training:
            logits = [b.classifier(x) for b, x in zip(self.branches, after, strict=True) if b.classifier is not None]
            return logits, [x for b, x in zip(self.branches, features, strict=True) if b.metric]
        embeddings = after if self.test_after_neck else features
        return torch.cat([F.normalize(wide(x)) for x in embeddings], 1) if len(embeddings) > 1 else embeddings[0]

    @property
    def heads(self) -> list[nn.Module]:
        """The classifiers, in the order of the logits."""
        return [branch.classifier for branch in self.branches if branch.classifier is not None]

    @property
    def feature_dims(self) -> list[int]:
        """Widths of the features that are trained on."""
        return [branch.width for branch in self.branches if branch.metric]

    @property
    def embedding_dim(self) -> int:
        """Width of the embedding."""
        return sum(branch.width for branch in self.branches)


def make_backbone(cfg: Config) -> nn.Module:
    """The backbone of the settings with its attention. Raises UserError where it has no place for any."""
    backbone = find_backbone(cfg.model.backbone)(cfg)
    if cfg.model.attention != "none":
        if not hasattr(backbone, "attention"):
            raise UserError(f"--backbone {cfg.model.backbone} has no place for attention; leave --attention out")
        stages = make_attention(
            cfg.model.attention, cfg.model.attention_stages, backbone.stage_channels, cfg.model.attention_ratio
        )
        backbone.attention.update(stages)
    return backbone


def embedding(inputs: int, width: int) -> nn.Sequential:
    """Pooled features (B, inputs) to (B, width): Linear, batch norm, ReLU.

    PCB, MGN and BDB reduce theirs so. OSNet's authors test on it, 512 wide with average pooling and no neck; their
    files have it under `fc`.
    """
    linear = nn.Linear(inputs, width)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.BatchNorm1d(width), nn.ReLU(inplace=True))


def bnneck(width: int) -> nn.BatchNorm1d:
    """Batch norm whose bias stays 0, so that the classifier's hyperplanes pass through the origin."""
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck
