"""The plain model and its initial weights; weights files of others are in test_weights.py."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from model import find_backbone, make_model
from model.weights import load_backbone

SHARED = Path(__file__).resolve().parents[2] / "shared" / "weights"


def config(backbone: str = "resnet18", **settings) -> Config:
    return Config(backbone=backbone, weights="none", **settings)


def backbone(name: str = "resnet18", **settings) -> torch.nn.Module:
    return find_backbone(name)(config(name, **settings))


def test_training_gives_logits_and_features_and_testing_embeddings():
    model = make_model(config(), num_classes=7)
    images = torch.randn(4, 3, 64, 32)
    (logits,), (features,) = model.train()(images)
    assert logits.shape == (4, 7) and features.shape == (4, 512)
    assert model.feature_dims == [512] and model.embedding_dim == 512
    branch = model.branches[0]
    assert branch.classifier.bias is None and branch.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not branch.neck.bias.requires_grad and branch.neck.bias.eq(0).all()
    branch.neck.weight.data.fill_(3.0)
    with torch.no_grad():
        after = model.eval()(images)
        model.test_after_neck = False
        before = model(images)
        assert torch.allclose(branch.neck(before), after) and not torch.allclose(before, after)
        model = make_model(config(pooling="max", neck="none"), 3).eval()
        assert torch.equal(model(images), model.backbone(images).flatten(2).max(2).values)


def test_stride_in_1x1_moves_the_stride_and_nothing_else():
    ours, caffe = (backbone("resnet50", stride_in_1x1=s) for s in (False, True))
    assert ours.layer2[0].conv1.stride == (1, 1) and ours.layer2[0].conv2.stride == (2, 2)
    assert caffe.layer2[0].conv1.stride == (2, 2) and caffe.layer2[0].conv2.stride == (1, 1)
    assert caffe.layer4[0].conv1.stride == caffe.layer4[0].conv2.stride == (1, 1)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in caffe.state_dict().items()}


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/weights is not here")
def test_the_shared_weights_load_whole_and_caffe_weights_without_their_stride_warn(monkeypatch):
    mobilenet, caffe = (str(SHARED / f"{name}_imagenet.pth") for name in ("mobilenet_v2", "resnet50_caffe"))
    for net, file in ((backbone("mobilenet_v2"), mobilenet), (backbone("resnet50", stride_in_1x1=True), caffe)):
        report = load_backbone(net, file)
        assert not report.skipped and not report.missing
    warnings = []
    monkeypatch.setattr(logging.getLogger("plainreid"), "warning", lambda text, *a: warnings.append(text))
    cfg = config("resnet50").replace(weights=caffe)
    make_model(cfg, 2)
    make_model(cfg.replace(stride_in_1x1=True), 2)
    assert len(warnings) == 1 and "--stride-in-1x1" in warnings[0]


def test_an_embedding_layer_is_loaded_from_files_of_others_and_from_our_own(tmp_path):
    cfg = config("osnet_x0_25", embedding_dim=96, neck="none")
    theirs = make_model(cfg, num_classes=5)
    state = theirs.backbone.state_dict() | {f"fc.{k}": v for k, v in theirs.branches[0].fc.state_dict().items()}
    state = {f"module.{k}": v for k, v in state.items()} | {"module.classifier.weight": torch.ones(7, 96)}
    path = tmp_path / "osnet.pth.tar"  # torchreid's: DataParallel's names, a NumPy number next to them
    torch.save({"state_dict": state, "epoch": 3, "rank1": np.float32(0.9)}, path)
    ours = make_model(cfg.replace(weights=str(path)), num_classes=2).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = theirs.eval()(images)
        assert expected.shape == (2, 96) and (expected >= 0).all() and torch.equal(ours(images), expected)
        torch.save({"model": ours.state_dict()}, tmp_path / "ours.pth")
        again = make_model(cfg.replace(weights=str(tmp_path / "ours.pth")), 9).eval()
        assert torch.equal(again(images), expected)
