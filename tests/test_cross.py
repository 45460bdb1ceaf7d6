"""Every backbone with every pooling and every head learns one batch of the demo set by heart.

A normal run takes each family of backbones, and each pooling with each head on a small one. All 50 × 5 × 7 take over an
hour on one core: `python -m pytest -m cross`, or a part of them with `-k osnet_x0_25`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import start_training

from config import Config
from datasets.demo.render import render_demo
from model import BACKBONES
from model.heads import HEADS
from model.pooling import POOLING
from processor.state import TrainState
from processor.train import Network, train_step

STEPS = 80  # most need fewer than ten
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
SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rendered")
    render_demo(path / "demo", train_ids=4, test_ids=1, distractors=0, junk=0, progress=False)
    return path


def start(data_root: Path, log_dir: Path, backbone: str, pooling: str, head: str) -> tuple[TrainState, Network, tuple]:
    """A run, and its first batch: two images of each of four people, as they are."""
    cfg = Config(
        dataset="demo", data_root=str(data_root), log_dir=str(log_dir), name="cross", device="cpu", height=64, width=32,
        batch_size=8, images_per_id=2, flip_prob=0.0, pad=0, erase_prob=0.0,
        backbone=backbone, weights="none", pooling=pooling, head=head,
        label_smoothing=0.0, center_weight=0.0, lr=3e-4,
    ).check()  # fmt: skip
    state, network, data = start_training(cfg)
    network.train(frozen=False)
    return state, network, next(data.train.epoch(0, state.session.device))


def learns(state: TrainState, network: Network, batch: tuple[torch.Tensor, torch.Tensor]) -> bool:
    """Within so many steps, are all identities right and both losses less than half of what they were?

    The triplet loss must fall for itself: neck and classifier alone learn eight images by heart, whatever comes before.
    """
    first = train_step(state, network, *batch)
    for _ in range(STEPS):
        now = train_step(state, network, *batch)
        if now["accuracy"] == 1 and all(now[loss] < first[loss] / 2 for loss in ("id", "triplet")):
            return True
    return False


@pytest.mark.parametrize(("backbone", "pooling", "head"), FAMILIES)
def test_each_family_of_backbones_learns_a_batch_by_heart(data_root, tmp_path, backbone, pooling, head):
    assert learns(*start(data_root, tmp_path, backbone, pooling, head))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLING)
def test_each_pooling_with_each_head_learns_a_batch_by_heart(data_root, tmp_path, pooling, head):
    assert learns(*start(data_root, tmp_path, SMALL, pooling, head))


@pytest.mark.cross
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pooling", POOLING)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_backbone_with_each_pooling_and_head_learns_a_batch_by_heart(data_root, tmp_path, backbone, pooling, head):
    assert learns(*start(data_root, tmp_path, backbone, pooling, head))


@pytest.mark.parametrize("frozen", ["the backbone", "all"])
def test_with_frozen_weights_nothing_is_learned_by_heart(data_root, tmp_path, frozen):
    run, network, batch = start(data_root, tmp_path, SMALL, "gem", "linear")
    if frozen == "all":
        run.optimizer.param_groups[0]["lr"] = 0.0
    else:
        run.model.backbone.requires_grad_(False)
    assert not learns(run, network, batch)


def test_the_families_are_all_there_with_every_pooling_and_every_head():
    def family(name: str) -> str:
        make = BACKBONES[name]
        return getattr(make, "func", make).__module__

    names, poolings, heads = (set(column) for column in zip(*FAMILIES, strict=True))
    assert {family(name) for name in names} == {family(name) for name in BACKBONES}
    assert poolings == set(POOLING) and heads == set(HEADS)
