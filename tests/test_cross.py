"""Each family of backbones, and each pooling with each head, overfits one batch."""

from __future__ import annotations

import pytest
import torch

from config import Config
from loss import make_criterion
from model import build_model
from model.heads import HEADS
from model.pooling import POOLING
from solver import make_optimizer

STEPS = 80  # most need fewer than ten
SMALL = "shufflenet_v2_x0_5"
FAMILIES = [
    ("resnet18", "avg", "linear"),
    ("resnet18_ibn_b", "avg_max", "cosine_learned"),
    ("osnet_x0_25", "gem", "cosface"),
    ("osnet_ain_x0_25", "gem_fixed", "arcface"),
    ("mobilenet_v2", "avg", "subcenter_arcface"),
    ("mobilenet_v3_small", "max", "circle"),
    ("shufflenet_v2_x0_5", "avg_max", "linear"),
    ("efficientnet_b0", "gem", "cosine"),
    ("regnet_y_400mf", "avg", "cosface"),
    ("convnext_tiny", "max", "arcface"),
    ("swin_t", "avg_max", "subcenter_arcface"),
    ("vit_b_16", "gem", "circle"),
]


def learns(backbone: str, pooling: str, head: str, frozen: bool = False) -> bool:
    """Within so many steps, are all identities right and both losses below half of what they were?

    The triplet loss must fall too: neck and classifier alone can learn eight images, whatever comes before.
    """
    torch.manual_seed(0)
    cfg = Config(
        height=64, width=32, backbone=backbone, weights="none", pooling=pooling, head=head,
        label_smoothing=0.0, center_weight=0.0, lr=3e-4,
    ).check()  # fmt: skip
    model = build_model(cfg, 4).train()
    model.backbone.requires_grad_(not frozen)
    criterion = make_criterion(cfg, 4, model.feature_dims, [head.add_margin for head in model.heads])
    optimizer = make_optimizer(cfg, model)
    images, labels, first = torch.randn(8, 3, 64, 32), torch.arange(4).repeat_interleave(2), None
    images = images.repeat_interleave(16, 2)[:, :, :64].repeat_interleave(8, 3)[..., :32]  # coarse patterns
    for _ in range(STEPS):
        logits, features = model(images)
        total, parts = criterion(logits, features, labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        first = first or {name: part.item() for name, part in parts.items()}
        if (logits[0].argmax(1) == labels).all() and all(parts[name] < first[name] / 2 for name in ("id", "triplet")):
            return True
    return False


@pytest.mark.parametrize("pooling", POOLING)
def test_each_pooling_overfits_a_batch_with_some_heads_and_a_frozen_backbone_does_not(pooling):
    number = list(POOLING).index(pooling)
    assert all(learns(SMALL, pooling, head) for head in list(HEADS)[number::5])
    if pooling == "gem":
        assert not learns(SMALL, "gem", "linear", frozen=True)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "pooling", "head"), FAMILIES)
def test_each_family_of_backbones_overfits_a_batch(backbone, pooling, head):
    assert learns(backbone, pooling, head)
