"""The weighted sum of the losses, and its parts by name for the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from config import Config
from loss.center import CenterLoss
from utils.lookup import load

AddMargin = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Criterion(nn.Module):
    """Logits and features of a model, one entry per branch, to the total loss and its unweighted parts.

    Label smoothing is epsilon/C on every class (Szegedy et al. 2016), as `cross_entropy` has it. `add_margins` are
    those of the model's heads, in the order of the logits.
    """

    def __init__(self, cfg: Config, num_classes: int, feature_dims: Sequence[int], add_margins: Sequence[AddMargin]):
        super().__init__()
        self.cfg, self.add_margins = cfg, add_margins
        self.id_loss, self.metric = id_loss(cfg), metric_losses(cfg)
        widths = feature_dims if cfg.loss.center_weight > 0 else []
        self.centers = nn.ModuleList(CenterLoss(num_classes, width) for width in widths)

    def forward(
        self, logits: list[torch.Tensor], features: list[torch.Tensor], labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        cfg, parts, total = self.cfg, {}, 0.0
        if cfg.loss.id_weight > 0:
            logits = [add_margin(x.float(), labels) for add_margin, x in zip(self.add_margins, logits, strict=True)]
            parts["id"] = _mean(self.id_loss(x, labels, label_smoothing=cfg.loss.label_smoothing) for x in logits)
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
    if cfg.loss.id_loss == "focal":
        return partial(load("loss.cross_entropy:focal_loss"), gamma=cfg.loss.focal_gamma)
    return cross_entropy


def metric_losses(cfg: Config) -> dict[str, tuple[float, Callable[..., torch.Tensor]]]:
    """Name to weight and function of (features, labels), of the metric losses with a weight above 0.

    A new one is one file, one line here, and its weight in the Config.
    """
    triplet = {"margin": None if cfg.loss.soft_margin else cfg.loss.triplet_margin, "hard_factor": cfg.loss.hard_factor}
    contrastive = {"margin": cfg.loss.contrastive_margin}
    circle = {"margin": cfg.loss.circle_margin, "gamma": cfg.loss.circle_gamma}
    cosface = {"margin": cfg.loss.cosface_margin, "gamma": cfg.loss.cosface_gamma}
    multi_similarity = {
        "alpha": cfg.loss.ms_alpha,
        "beta": cfg.loss.ms_beta,
        "base": cfg.loss.ms_base,
        "epsilon": cfg.loss.ms_epsilon,
    }
    centroid = {"margin": None if cfg.loss.soft_margin else cfg.loss.centroid_margin}
    losses = {  # weight, function, its options
        "triplet": (cfg.loss.triplet_weight, "loss.triplet:batch_hard_triplet", triplet),
        "contrastive": (cfg.loss.contrastive_weight, "loss.contrastive:contrastive_loss", contrastive),
        "circle": (cfg.loss.circle_weight, "loss.circle:circle_loss", circle),
        "cosface": (cfg.loss.cosface_weight, "loss.cosface:cosface_loss", cosface),
        "multi_similarity": (
            cfg.loss.multi_similarity_weight,
            "loss.multi_similarity:multi_similarity_loss",
            multi_similarity,
        ),
        "centroid": (cfg.loss.centroid_weight, "loss.centroid_triplet:centroid_triplet", centroid),
        "range": (cfg.loss.range_weight, "loss.range:range_loss", {"margin": cfg.loss.range_margin}),
        "cluster": (cfg.loss.cluster_weight, "loss.cluster:cluster_loss", {"margin": cfg.loss.cluster_margin}),
    }
    if cfg.loss.triplet == "weighted":
        losses["triplet"] = (cfg.loss.triplet_weight, "loss.triplet:weighted_triplet", {})
    return {
        name: (weight, partial(load(function), **options))
        for name, (weight, function, options) in losses.items()
        if weight > 0
    }


def make_criterion(
    cfg: Config, num_classes: int, feature_dims: Sequence[int], add_margins: Sequence[AddMargin]
) -> Criterion:
    """The losses of the settings, for features of these widths and the `add_margin` of each head."""
    return Criterion(cfg, num_classes, feature_dims, add_margins)


def _mean(values) -> torch.Tensor:
    return torch.stack(list(values)).mean()
