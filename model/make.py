"""The model of the settings, and its start weights."""

from __future__ import annotations

import logging

from config import Config
from model.branches import BRANCHES
from model.reid import ReIDModel
from model.weights import load_backbone


def build_model(cfg: Config, num_classes: int) -> ReIDModel:
    """The model of the settings with random weights. Raises UserError for settings that do not go together."""
    return BRANCHES[cfg.model.branches](cfg, num_classes)


def make_model(cfg: Config, num_classes: int) -> ReIDModel:
    """The model of the settings with its start weights. Raises UserError when these cannot be had or do not fit."""
    model = build_model(cfg, num_classes)
    fc = model.branches[0].fc if len(model.branches) == 1 else None
    report = load_backbone(model.backbone, cfg.model.weights, fc)
    log = logging.getLogger("plainreid")
    if report:
        log.info(str(report))
        if "caffe" in cfg.model.weights and not cfg.model.stride_in_1x1:
            log.warning("a caffe file most likely needs --stride-in-1x1: without, it loads, but its features are worse")
    return model
