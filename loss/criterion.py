"""The weighted sum of the losses, and its parts by name for the log."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from config import Config
from loss.center import CenterLoss
from utils.lookup import load
from utils.precision import at_least_float32

Rows = Sequence[torch.Tensor]  # one (B, D) per branch
AddMargin = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Criterion(nn.Module):
    """Compute the total loss and its unweighted parts from a model's logits and features, one entry per branch.

    Label smoothing is epsilon/C on every class (Szegedy et al. 2016), as in `cross_entropy`. add_margins: the method
    `add_margin` of each head of the model, in the order of the logits. teacher_dim: width of a teacher's features.
    """

    def __init__(
        self, cfg: Config, num_classes: int, feature_dims: Sequence[int],
        add_margins: Sequence[AddMargin], teacher_dim: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.cfg, self.add_margins = cfg, add_margins
        self.id_loss, self.metric = cross_entropy, metric_losses(cfg)
        if cfg.loss.id_loss == "focal":
            self.id_loss = partial(load("loss.cross_entropy:focal_loss"), gamma=cfg.loss.focal_gamma)
        widths = feature_dims if cfg.loss.center_weight > 0 else []
        self.centers = nn.ModuleList(CenterLoss(num_classes, width) for width in widths)
        self.teacher = load("loss.teacher:TeacherLoss")(feature_dims, teacher_dim) if teacher_dim else None

    def forward(
        self, logits: Rows, features: Rows, labels: torch.Tensor, teacher: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        cfg, parts, total = self.cfg, {}, 0.0
        if cfg.loss.id_weight > 0:
            logits = [
                add_margin(at_least_float32(x), labels) for add_margin, x in zip(self.add_margins, logits, strict=True)
            ]
            parts["id"] = _mean(self.id_loss(x, labels, label_smoothing=cfg.loss.label_smoothing) for x in logits)
            total = total + cfg.loss.id_weight * parts["id"]
        for name, (weight, loss) in self.metric.items():
            parts[name] = _mean(loss(x, labels) for x in features)
            total = total + weight * parts[name]
        if self.centers:
            parts["center"] = _mean(loss(x, labels) for loss, x in zip(self.centers, features, strict=True))
            total = total + cfg.loss.center_weight * parts["center"]
        if self.teacher:
            parts["teacher"] = self.teacher(features, teacher)
            total = total + cfg.loss.teacher_weight * parts["teacher"]
        return total, parts

    @property
    def learned(self) -> list[nn.Parameter]:
        """The weights of the losses that the optimizer updates; the centers are not among them."""
        return list(self.teacher.parameters()) if self.teacher else []

    def move_centers(
        self, features: Sequence[torch.Tensor], labels: torch.Tensor, moved: torch.Tensor | None = None
    ) -> None:
        """Update the centers of the center loss, if any, by SGD on the loss without its weight, which is for features.

        features: one (B, D) per branch, concatenated over all batches of an optimizer step and all processes; labels
        (B,). moved: scalar on the device, 0 if the step was skipped because of NaN or inf.
        """
        for loss, x in zip(self.centers, features, strict=False):
            loss.move(x, labels, self.cfg.loss.center_lr / len(self.centers), moved)


def metric_losses(cfg: Config) -> dict[str, tuple[float, Callable[..., torch.Tensor]]]:
    """Return weight and function of (features, labels), by name, of each metric loss with a weight above 0.

    To add a loss, write one file, and add one line here and its weight in the Config.
    """
    c = cfg.loss
    hard = {"margin": None if c.soft_margin else c.triplet_margin}
    hard |= {"hard_factor": c.hard_factor, "alone": c.triplet_alone}
    triplet = "loss.triplet:batch_hard_triplet" if c.triplet == "hard" else "loss.weighted_triplet:weighted_triplet"
    centroid = {"margin": None if c.soft_margin else c.centroid_margin}
    cosface = {"margin": c.cosface_margin, "gamma": c.cosface_gamma}
    similarity = {"alpha": c.ms_alpha, "beta": c.ms_beta, "base": c.ms_base, "epsilon": c.ms_epsilon}
    losses = {  # weight, function, options
        "triplet": (c.triplet_weight, triplet, hard if c.triplet == "hard" else {}),
        "contrastive": (c.contrastive_weight, "loss.contrastive:contrastive_loss", {"margin": c.contrastive_margin}),
        "circle": (c.circle_weight, "loss.circle:circle_loss", {"margin": c.circle_margin, "gamma": c.circle_gamma}),
        "cosface": (c.cosface_weight, "loss.cosface:cosface_loss", cosface),
        "multi_similarity": (c.multi_similarity_weight, "loss.multi_similarity:multi_similarity_loss", similarity),
        "centroid": (c.centroid_weight, "loss.centroid_triplet:centroid_triplet", centroid),
        "range": (c.range_weight, "loss.range:range_loss", {"margin": c.range_margin}),
        "cluster": (c.cluster_weight, "loss.cluster:cluster_loss", {"margin": c.cluster_margin}),
    }
    return {
        name: (weight, partial(load(function), **options))
        for name, (weight, function, options) in losses.items()
        if weight > 0
    }


def _mean(values: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(values)).mean()


make_criterion = Criterion  # like make_model and make_optimizer
