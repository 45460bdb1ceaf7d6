"""The sum of the losses with their weights, and its parts by name for the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from config import Config
from loss.center import CenterLoss
from loss.centroid_triplet import centroid_triplet
from loss.circle import circle_loss
from loss.cluster import cluster_loss
from loss.contrastive import contrastive_loss
from loss.cosface import cosface_loss
from loss.cross_entropy import focal_loss
from loss.multi_similarity import multi_similarity_loss
from loss.range import range_loss
from loss.triplet import batch_hard_triplet, weighted_triplet

Harden = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Criterion(nn.Module):
    """Logits and features of a model, one entry a branch, to the total loss and its unweighted parts.

    Label smoothing is epsilon/C on every class (Szegedy et al. 2016), as `cross_entropy` has it.
    """

    def __init__(self, cfg: Config, num_classes: int, feature_dims: Sequence[int], hardens: Sequence[Harden]):
        super().__init__()
        self.cfg, self.hardens = cfg, hardens
        self.id_loss, self.metric = id_loss(cfg), metric_losses(cfg)
        widths = feature_dims if cfg.loss.center_weight > 0 else []
        self.centers = nn.ModuleList(CenterLoss(num_classes, width) for width in widths)

    def forward(
        self, logits: list[torch.Tensor], features: list[torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        cfg, parts, total = self.cfg, {}, 0.0
        if cfg.loss.id_weight > 0:
            hard = (harden(x.float(), labels) for harden, x in zip(self.hardens, logits, strict=True))
            parts["id"] = _mean(self.id_loss(x, labels, label_smoothing=cfg.loss.label_smoothing) for x in hard)
            total = total + cfg.loss.id_weight * parts["id"]
        for name, (weight, loss) in self.metric.items():
            parts[name] = _mean(loss(x, labels) for x in features)
            total = total + weight * parts[name]
        if self.centers:
            parts["center"] = _mean(loss(x, labels) for loss, x in zip(self.centers, features, strict=True))
            total = total + cfg.loss.center_weight * parts["center"]
        return total, parts

    def move_centers(
        self, features: Sequence[torch.Tensor], labels: torch.Tensor, moved: torch.Tensor | None = None
    ) -> None:
        """Move the centers of the center loss, after each step of the optimizer; without them, do nothing.

        features: one (B, D) per branch, as `forward` got them, of all batches of the step and of all processes,
        concatenated; labels (B,). moved: scalar on the device, 0 where the step was skipped because of NaN or inf.
        This is SGD at `center_lr` on the unweighted loss: the loss weight is for the features' pull only.
        """
        for loss, x in zip(self.centers, features, strict=False):
            loss.move(x, labels, self.cfg.loss.center_lr / len(self.centers), moved)


def id_loss(cfg: Config) -> Callable[..., torch.Tensor]:
    """The identity loss of (logits, labels, label_smoothing=)."""
    return partial(focal_loss, gamma=cfg.loss.focal_gamma) if cfg.loss.id_loss == "focal" else cross_entropy


def metric_losses(cfg: Config) -> dict[str, tuple[float, Callable[..., torch.Tensor]]]:
    """Name to weight and function of (features, labels), of the metric losses that are on and have no parameters."""
    margin = None if cfg.loss.soft_margin else cfg.loss.triplet_margin
    hard = partial(batch_hard_triplet, margin=margin, hard_factor=cfg.loss.hard_factor)
    losses = {
        "triplet": weighted_triplet if cfg.loss.triplet == "weighted" else hard,
        "contrastive": partial(contrastive_loss, margin=cfg.loss.contrastive_margin),
        "circle": partial(circle_loss, margin=cfg.loss.circle_margin, gamma=cfg.loss.circle_gamma),
        "cosface": partial(cosface_loss, margin=cfg.loss.cosface_margin, gamma=cfg.loss.cosface_gamma),
        "multi_similarity": partial(
            multi_similarity_loss,
            alpha=cfg.loss.ms_alpha,
            beta=cfg.loss.ms_beta,
            base=cfg.loss.ms_base,
            epsilon=cfg.loss.ms_epsilon,
        ),
        "centroid": partial(centroid_triplet, margin=None if cfg.loss.soft_margin else cfg.loss.centroid_margin),
        "range": partial(range_loss, margin=cfg.loss.range_margin),
        "cluster": partial(cluster_loss, margin=cfg.loss.cluster_margin),
    }
    weights = {name: cfg.get(f"{name}_weight") for name in losses}
    return {name: (weights[name], loss) for name, loss in losses.items() if weights[name] > 0}


def _mean(values) -> torch.Tensor:
    return torch.stack(list(values)).mean()


def make_criterion(cfg: Config, num_classes: int, feature_dims: Sequence[int], hardens: Sequence[Harden]) -> Criterion:
    """The losses of the settings, for features of these widths and logits that these make harder, in their order."""
    return Criterion(cfg, num_classes, feature_dims, hardens)
