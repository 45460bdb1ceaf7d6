"""Classification heads: features after the neck (B, D) to logits (B, C) for a cross entropy.

`head(features)` gives plain logits, for tests and accuracies. `head(features, labels)` lowers the logits of the labels
by the margin, for training; it is `head.add_margin(head(features), labels)`, so that a step that needs both computes
the product once.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from utils.precision import at_least_float32


class LinearHead(nn.Linear):
    """Products with one weight vector per class, without bias or margin (Luo et al., Bag of Tricks, CVPR workshops
    2019)."""

    std = 0.001  # of the initial weights

    def __init__(self, feature_dim: int, num_classes: int):
        super().__init__(feature_dim, num_classes, bias=False)
        nn.init.normal_(self.weight, std=self.std)

    def plain(self, features: torch.Tensor) -> torch.Tensor:
        return F.linear(features, self.weight)

    def add_margin(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Plain logits (B, C) and labels (B,) to the logits for training."""
        return logits

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        logits = self.plain(features)
        return logits if labels is None else self.add_margin(logits, labels)


class CosineHead(LinearHead):
    """Cosines times a scale, in float32 (Wang et al., NormFace, ACM Multimedia 2017). learned: the scale is trained."""

    std = 0.01  # as in fast-reid

    def __init__(self, feature_dim: int, num_classes: int, scale: float, learned: bool = False):
        super().__init__(feature_dim, num_classes)
        self.scale = nn.Parameter(torch.tensor(float(scale))) if learned else scale

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(at_least_float32(features)), F.normalize(at_least_float32(self.weight)))

    def plain(self, features: torch.Tensor) -> torch.Tensor:
        return self.scale * self.cosines(features)


class CosFaceHead(CosineHead):
    """The label's cosine minus the margin (Wang et al., CosFace; Wang et al., AM-Softmax; both 2018)."""

    def __init__(self, feature_dim: int, num_classes: int, scale: float, margin: float):
        super().__init__(feature_dim, num_classes, scale)
        self.margin = margin

    def add_margin(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        target = logits.gather(1, labels[:, None])
        return logits.scatter(1, labels[:, None], target - self.scale * self.margin)


class ArcFaceHead(CosFaceHead):
    """The label's angle plus the margin, in radians (Deng et al., ArcFace, CVPR 2019).

    An angle above pi - margin would wrap around; there the cosine is lowered by margin × sin(margin) instead, as in the
    authors' code.
    """

    def add_margin(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosine = logits.gather(1, labels[:, None]) / self.scale
        sine = (1 - cosine.square()).clamp(min=1e-12).sqrt()  # the clamp keeps the root's gradient finite at ±1
        rotated = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        lowered = cosine - self.margin * math.sin(self.margin)
        target = torch.where(cosine > math.cos(math.pi - self.margin), rotated, lowered)
        return logits.scatter(1, labels[:, None], self.scale * target)


class SubCenterArcFaceHead(ArcFaceHead):
    """ArcFace with several weight vectors per class, the nearest of which counts (Deng et al., Sub-center ArcFace, ECCV
    2020). Those of one class are neighbouring rows."""

    def __init__(self, feature_dim: int, num_classes: int, scale: float, margin: float, sub_centers: int):
        super().__init__(feature_dim, num_classes * sub_centers, scale, margin)
        self.out_features, self.sub_centers = num_classes, sub_centers

    def cosines(self, features: torch.Tensor) -> torch.Tensor:
        return super().cosines(features).unflatten(1, (-1, self.sub_centers)).amax(2)


class CircleHead(CosFaceHead):
    """Every cosine weighted by its distance from its optimum: 1 + margin for the label, -margin for the others (Sun et
    al., Circle Loss, CVPR 2020, with class-level labels; no gradient flows through the weights)."""

    def add_margin(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        cosine = logits / self.scale
        others = (cosine.detach() + self.margin).relu() * (cosine - self.margin)
        target = cosine.gather(1, labels[:, None])
        weight = (1 + self.margin - target.detach()).relu()
        return self.scale * others.scatter(1, labels[:, None], weight * (target - (1 - self.margin)))


# --head: a function of (Config, width of the features, number of classes)
HEADS = {
    "linear": lambda cfg, width, classes: LinearHead(width, classes),
    "cosine": lambda cfg, width, classes: CosineHead(width, classes, cfg.model.head_scale),
    "cosine_learned": lambda cfg, width, classes: CosineHead(width, classes, cfg.model.head_scale, learned=True),
    "cosface": lambda cfg, width, classes: CosFaceHead(width, classes, cfg.model.head_scale, cfg.model.head_margin),
    "arcface": lambda cfg, width, classes: ArcFaceHead(width, classes, cfg.model.head_scale, cfg.model.head_margin),
    "subcenter_arcface": lambda cfg, width, classes: SubCenterArcFaceHead(
        width, classes, cfg.model.head_scale, cfg.model.head_margin, cfg.model.sub_centers
    ),
    "circle": lambda cfg, width, classes: CircleHead(width, classes, cfg.model.head_scale, cfg.model.head_margin),
}
