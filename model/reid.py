"""The ReID model: backbone → pooling → embedding, if asked for → BNNeck → classifier (Luo et al., Bag of Tricks, CVPR
workshops 2019)."""

from __future__ import annotations

import logging

import torch
from torch import nn

from config import Config
from model.attention import make_attention
from model.backbones import find_backbone
from model.backbones.osnet import embedding
from model.heads import HEADS
from model.pooling import POOLING
from model.weights import load_backbone
from utils.errors import UserError


class ReIDModel(nn.Module):
    """Images (B, 3, H, W), normalised, to what the mode asks for.

    Training: (logits, features), two lists with one entry a branch (here one): logits (B, C) for the identity loss,
    features (B, D) before the neck for metric losses. Evaluation: embeddings (B, D), not L2-normalised.
    """

    def __init__(self, cfg: Config, num_classes: int):
        super().__init__()
        self.backbone = find_backbone(cfg.backbone)(cfg)
        add_attention(self.backbone, cfg)
        self.pool = POOLING[cfg.pooling]()
        width = self.backbone.out_channels
        self.fc = embedding(width, cfg.embedding_dim) if cfg.embedding_dim else nn.Identity()
        self.feature_dim = cfg.embedding_dim or width
        self.neck = bnneck(self.feature_dim) if cfg.neck == "bnneck" else nn.Identity()
        self.classifier = HEADS[cfg.head](
            self.feature_dim, num_classes, cfg.head_scale, cfg.head_margin, cfg.sub_centers
        )
        self.test_after_neck = cfg.test_feature == "after"

    def forward(self, images: torch.Tensor):
        feature = self.fc(self.pool(self.backbone(images)))
        after = self.neck(feature)
        if self.training:
            return [self.classifier(after)], [feature]
        return after if self.test_after_neck else feature


def add_attention(backbone: nn.Module, cfg: Config) -> None:
    """Fill what the backbone runs after its stages. Raises UserError where it has no such place."""
    if cfg.attention == "none":
        return
    if not hasattr(backbone, "attention"):
        raise UserError(f"--backbone {cfg.backbone} has no place for attention; leave --attention out")
    stages = make_attention(cfg.attention, cfg.attention_stages, backbone.stage_channels, cfg.attention_ratio)
    backbone.attention.update(stages)


def bnneck(width: int) -> nn.BatchNorm1d:
    """Batch norm whose bias stays 0, so that the classifier's hyperplanes pass through the origin."""
    neck = nn.BatchNorm1d(width)
    neck.bias.requires_grad_(False)
    return neck


def make_model(cfg: Config, num_classes: int) -> ReIDModel:
    """The model of the settings with its start weights. Raises UserError when these cannot be had or do not fit."""
    model = ReIDModel(cfg, num_classes)
    report = load_backbone(model.backbone, cfg.weights, model.fc)
    log = logging.getLogger("plainreid")
    if report:
        log.info(str(report))
        if "caffe" in cfg.weights and not cfg.stride_in_1x1:
            log.warning("a file named caffe most likely needs --stride-in-1x1: without, it loads and computes nonsense")
    return model
