"""Optimizers, their parameter groups, and freezing of the backbone."""

from functools import partial
from typing import Any

import torch
from torch import nn

from config import Config

OPTIMIZERS = {
    "adam": torch.optim.Adam,  # Kingma & Ba 2015; weight decay is an L2 penalty, as in SGD
    "amsgrad": partial(torch.optim.Adam, amsgrad=True),  # Reddi et al. 2018
    "adamw": torch.optim.AdamW,  # Loshchilov & Hutter 2019; decoupled weight decay
    "adamw_amsgrad": partial(torch.optim.AdamW, amsgrad=True),  # what deep-efficient-reid's code calls AMSGrad
    "sgd": torch.optim.SGD,
}


def make_optimizer(cfg: Config, *modules: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer of the settings for `parameter_groups` of the model and, if they have weights, the losses."""
    options: dict[str, Any] = {"lr": cfg.solver.lr, "fused": cfg.loop.fused}
    if cfg.solver.optimizer == "sgd":
        options |= {"momentum": cfg.solver.momentum, "nesterov": cfg.solver.nesterov}
    else:
        options["betas"] = (cfg.solver.momentum, 0.999)
    optimizer = OPTIMIZERS[cfg.solver.optimizer](parameter_groups(cfg, *modules), **options)
    if cfg.solver.optimizer == "sgd" and cfg.solver.momentum > 0:  # fused SGD needs buffers of weights unfrozen later
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def parameter_groups(cfg: Config, *modules: nn.Module) -> list[dict[str, Any]]:
    """Group all parameters that require a gradient: one group per pair of learning rate and weight decay.

    `lr_factor` of a group is its learning rate relative to the schedule's. The backbone is everything under
    `model.backbone`. Biases are recognized by name, including those of normalization layers (Bag of Tricks' code).
    `no_decay_norm_bias` applies to parameters of one dimension (timm's rule: biases, normalization weights, scales).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in (pair for module in modules for pair in module.named_parameters()):
        if not parameter.requires_grad:
            continue
        factor = cfg.solver.backbone_lr_factor if name.startswith("backbone.") else 1.0
        decay = 0.0 if cfg.solver.no_decay_norm_bias and parameter.ndim <= 1 else cfg.solver.weight_decay
        if name.endswith("bias"):
            factor, decay = factor * cfg.solver.bias_lr_factor, decay * cfg.solver.bias_decay_factor
        groups.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": cfg.solver.lr * factor, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]


def set_frozen(model: nn.Module, optimizer: torch.optim.Optimizer, frozen: bool) -> None:
    """Put the model into training mode, but a `frozen` backbone into evaluation mode and without gradients.

    A frozen backbone thus keeps batch norm's running statistics and has no dropout, as in fast-reid's LayerFreeze.
    """
    model.train()
    model.backbone.train(not frozen)
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for parameter in model.backbone.parameters():
        if parameter in trained:  # other parameters are always frozen
            parameter.requires_grad_(not frozen)
