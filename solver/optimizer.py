"""Optimizers of the model and of the loss's own parameters."""

from __future__ import annotations

import torch
from torch import nn

from config import Config


def make_optimizers(cfg: Config, model: nn.Module, criterion: nn.Module) -> dict[str, torch.optim.Optimizer]:
    """`model`: Adam or SGD over what is trainable in the model; `center`: SGD over the centers, where there are any."""
    params = [p for p in model.parameters() if p.requires_grad]
    if cfg.optimizer == "adam":
        optimizers = {"model": torch.optim.Adam(params, lr=cfg.lr, weight_decay=cfg.weight_decay)}
    else:
        sgd = torch.optim.SGD(params, lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay)
        optimizers = {"model": sgd}
    centers = list(criterion.parameters())
    if centers:
        optimizers["center"] = torch.optim.SGD(centers, lr=cfg.center_lr)
    return optimizers
