"""The sum of the losses with their weights, and its parts by name for the log."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from config import Config
from loss.center import CenterLoss
from loss.triplet import batch_hard_triplet


class Criterion(nn.Module):
    """Logits and features of a model, one entry a branch, to the total loss and its unweighted parts.

    Label smoothing is epsilon/C on every class (Szegedy et al. 2016), as `cross_entropy` has it.
    """

    def __init__(self, cfg: Config, num_classes: int, feature_dim: int):
        super().__init__()
        self.cfg = cfg
        self.center = CenterLoss(num_classes, feature_dim) if cfg.center_weight > 0 else None

    def forward(
        self, logits: list[torch.Tensor], features: list[torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        cfg, parts, total = self.cfg, {}, 0.0
        if cfg.id_weight > 0:
            parts["id"] = _mean(cross_entropy(x.float(), labels, label_smoothing=cfg.label_smoothing) for x in logits)
            total = total + cfg.id_weight * parts["id"]
        if cfg.triplet_weight > 0:
            parts["triplet"] = _mean(
                batch_hard_triplet(x, labels, cfg.triplet_margin, cfg.hard_factor) for x in features
            )
            total = total + cfg.triplet_weight * parts["triplet"]
        if self.center is not None:
            parts["center"] = _mean(self.center(x, labels) for x in features)
            total = total + cfg.center_weight * parts["center"]
        return total, parts

    def undo_center_weight(self) -> None:
        """Divide the centers' gradient by the loss weight: it weighs the features' pull only."""
        if self.center is not None and self.center.centers.grad is not None:
            self.center.centers.grad /= self.cfg.center_weight


def _mean(values) -> torch.Tensor:
    return torch.stack(list(values)).mean()


def make_criterion(cfg: Config, num_classes: int, feature_dim: int) -> Criterion:
    """The losses of the settings. The features must be those before the neck, (B, feature_dim)."""
    return Criterion(cfg, num_classes, feature_dim)
