from __future__ import annotations

import logging
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from config import Config
from model import BACKBONES, make_model
from model.weights import load_backbone
from utils.errors import UserError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "weights"


def config(backbone: str, **settings) -> Config:
    return Config(backbone=backbone, weights="none", **settings)


def test_stride_in_1x1_moves_the_stride_and_nothing_else():
    ours, caffe = (BACKBONES["resnet50"](config("resnet50", stride_in_1x1=s)) for s in (False, True))
    assert ours.layer2[0].conv1.stride == (1, 1) and ours.layer2[0].conv2.stride == (2, 2)
    assert caffe.layer2[0].conv1.stride == (2, 2) and caffe.layer2[0].conv2.stride == (1, 1)
    assert caffe.layer4[0].conv1.stride == caffe.layer4[0].conv2.stride == (1, 1)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in caffe.state_dict().items()}


def test_training_gives_logits_and_features_and_testing_embeddings():
    model = make_model(config("resnet18"), num_classes=7)
    images = torch.randn(4, 3, 64, 32)
    (logits,), (features,) = model.train()(images)
    assert (
        logits.shape == (4, 7)
        and features.shape == (4, 512)
        and model.feature_dims == [512]
        and model.embedding_dim == 512
    )
    branch = model.branches[0]
    assert branch.classifier.bias is None and branch.classifier.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not branch.neck.bias.requires_grad and branch.neck.bias.eq(0).all()
    branch.neck.weight.data.fill_(3.0)
    with torch.no_grad():
        after = model.eval()(images)
        model.test_after_neck = False
        before = model(images)
    assert after.shape == before.shape == (4, 512)
    assert torch.allclose(branch.neck(before), after) and not torch.allclose(before, after)


def test_max_pooling_and_no_neck():
    model = make_model(config("resnet18", pooling="max", neck="none"), 3).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(model(images), model.backbone(images).flatten(2).max(2).values)


def test_weights_are_loaded_from_wrapped_prefixed_half_precision_files_and_accounted_for(tmp_path):
    source = BACKBONES["resnet18"](config("resnet18"))
    state = {f"module.{k}": v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    state["module.fc.weight"] = torch.zeros(1000, 512)
    del state["module.layer4.1.bn2.weight"]
    state["module.conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    target = BACKBONES["resnet18"](config("resnet18"))
    report = load_backbone(target, str(tmp_path / "w.pth"))
    assert report.skipped == ["conv1.weight", "fc.weight"]
    assert report.missing == ["conv1.weight", "layer4.1.bn2.weight"]
    assert len(report.loaded) == len(source.state_dict()) - 2
    assert "fc.weight" in str(report) and "layer4.1.bn2.weight" in str(report)
    assert target.layer3[0].conv1.weight.dtype == torch.float32
    assert torch.equal(target.layer3[0].conv1.weight, source.layer3[0].conv1.weight.half().float())


def test_a_file_of_which_nothing_fits_is_an_error(tmp_path):
    torch.save(BACKBONES["mobilenet_v2"](config("mobilenet_v2")).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"nothing in .*w\.pth fits.*--backbone"):
        load_backbone(BACKBONES["resnet18"](config("resnet18")), str(tmp_path / "w.pth"))
    torch.save({"model": {}}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="no tensor"):
        load_backbone(BACKBONES["resnet18"](config("resnet18")), str(tmp_path / "empty.pth"))


def test_no_network_gets_a_sentence_with_the_address_and_the_way_round(monkeypatch):
    def offline(*_args, **_kwargs):
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"https://.*resnet18.*--weights FILE.*--weights none"):
        load_backbone(BACKBONES["resnet18"](config("resnet18")), "imagenet")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/weights is not here")
@pytest.mark.parametrize(
    ("backbone", "file", "caffe"),
    [("mobilenet_v2", "mobilenet_v2_imagenet.pth", False), ("resnet50", "resnet50_caffe_imagenet.pth", True)],
)
def test_the_shared_weights_load_whole(backbone, file, caffe):
    report = load_backbone(BACKBONES[backbone](config(backbone, stride_in_1x1=caffe)), str(SHARED / file))
    assert not report.skipped and not report.missing


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/weights is not here")
def test_caffe_weights_without_their_stride_are_warned_about(monkeypatch):
    said = []
    monkeypatch.setattr(logging.getLogger("plainreid"), "warning", lambda text, *a: said.append(text))
    cfg = replace(config("resnet50"), weights=str(SHARED / "resnet50_caffe_imagenet.pth"))
    make_model(cfg, 2)
    assert "--stride-in-1x1" in said[0]
    make_model(cfg.replace(stride_in_1x1=True), 2)
    assert len(said) == 1


def test_a_backbone_that_is_not_there_is_refused_with_near_names():
    with pytest.raises(UserError, match=r"no backbone is called resnet49; did you mean .*resnet50"):
        make_model(config("resnet49"), 2)


def test_an_embedding_layer_is_made_loaded_from_files_of_others_and_from_our_own(tmp_path):
    cfg = config("osnet_x0_25", embedding_dim=96, neck="none")
    theirs = make_model(cfg, num_classes=5)
    state = theirs.backbone.state_dict() | {f"fc.{k}": v for k, v in theirs.branches[0].fc.state_dict().items()}
    path = tmp_path / "osnet.pth.tar"  # torchreid's: DataParallel's names, a NumPy number beside them
    content = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3, "rank1": np.float32(0.9)}
    torch.save(content | {"state_dict": content["state_dict"] | {"module.classifier.weight": torch.ones(7, 96)}}, path)
    ours = make_model(cfg.replace(weights=str(path)), num_classes=2).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = theirs.eval()(images)
        assert expected.shape == (2, 96) and (expected >= 0).all() and torch.equal(ours(images), expected)
    again = tmp_path / "ours.pth"
    torch.save({"model": ours.state_dict()}, again)
    with torch.no_grad():
        assert torch.equal(make_model(cfg.replace(weights=str(again)), 9).eval()(images), expected)
