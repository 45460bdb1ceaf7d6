"""Classification heads, which map features after the neck (B, D) to logits (B, C) for a cross entropy.

`head(features)` returns plain logits, for tests and accuracies. `head.add_margin(logits, labels)` lowers the logits of
the labels by the margin, for training.
"""

import torch
from torch import nn

from config import Config
from utils.lookup import load

HEADS = {  # --head: a class of (Config, width of the features, number of classes)
    "linear": "model.heads:LinearHead",
    "cosine": "model.margin_heads:CosineHead",
    "cosine_learned": "model.margin_heads:LearnedCosineHead",
    "cosface": "model.margin_heads:CosFaceHead",
    "arcface": "model.margin_heads:ArcFaceHead",
    "subcenter_arcface": "model.margin_heads:SubCenterArcFaceHead",
    "circle": "model.margin_heads:CircleHead",
}


def make_head(cfg: Config, width: int, num_classes: int) -> "LinearHead":
    return load(HEADS[cfg.model.head])(cfg, width, num_classes)


class LinearHead(nn.Linear):
    """Dot products with one weight vector per class, without bias or margin (Luo et al., Bag of Tricks, CVPR workshops
    2019)."""

    std = 0.001  # of the initial weights

    def __init__(self, cfg: Config, width: int, num_classes: int):
        super().__init__(width, num_classes, bias=False)
        nn.init.normal_(self.weight, std=self.std)

    def add_margin(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the logits for training, from plain logits (B, C) and labels (B,)."""
        return logits
