"""Classification heads: features after the neck (B, D) to logits (B, C) for a cross entropy.

`head(features)` gives plain logits, for tests and accuracies; `head.add_margin(logits, labels)` lowers those of the
labels by the margin, for training.
"""

import torch
from torch import nn

from config import Config
from utils.lookup import load

HEADS = {  # --head: a class, and the settings that follow the width of the features and the number of classes
    "linear": ("model.heads:LinearHead",),
    "cosine": ("model.margin_heads:CosineHead", "head_scale"),
    "cosine_learned": ("model.margin_heads:LearnedCosineHead", "head_scale"),
    "cosface": ("model.margin_heads:CosFaceHead", "head_scale", "head_margin"),
    "arcface": ("model.margin_heads:ArcFaceHead", "head_scale", "head_margin"),
    "subcenter_arcface": ("model.margin_heads:SubCenterArcFaceHead", "head_scale", "head_margin", "sub_centers"),
    "circle": ("model.margin_heads:CircleHead", "head_scale", "head_margin"),
}


def make_head(cfg: Config, width: int, num_classes: int) -> "LinearHead":
    spec, *settings = HEADS[cfg.model.head]
    return load(spec)(width, num_classes, *(cfg.get(name) for name in settings))


class LinearHead(nn.Linear):
    """Products with one weight vector per class, without bias or margin (Luo et al., Bag of Tricks, CVPR workshops
    2019)."""

    std = 0.001  # of the initial weights

    def __init__(self, feature_dim: int, num_classes: int):
        super().__init__(feature_dim, num_classes, bias=False)
        nn.init.normal_(self.weight, std=self.std)

    def add_margin(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Plain logits (B, C) and labels (B,) to the logits for training."""
        return logits
