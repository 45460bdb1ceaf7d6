"""The plain model and its initial weights; weights files of others are in test_weights.py."""

import logging
from pathlib import Path

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


def test_metric_losses_see_the_feature_that_the_settings_name():
    images = torch.randn(4, 3, 64, 32)
    for name, width in (("pooled", 512), ("before", 24), ("after", 24)):
        torch.manual_seed(0)
        model = make_model(config(embedding_dim=24, embedding="linear", metric_feature=name), 7).train()
        pooled = model.pool(model.backbone(images))
        branch = model.branches[0]
        expected = {"pooled": pooled, "before": branch.fc(pooled), "after": branch.neck(branch.fc(pooled))}[name]
        (features,) = model(images)[1]
        assert model.feature_dims == [width] == [features.shape[1]] and torch.allclose(features, expected, atol=1e-5)


def test_stems_and_the_momentum_of_batch_norm_are_those_of_the_settings():
    images = torch.randn(2, 3, 64, 32)
    for stem, relu, kernel in (("no_relu", False, 3), ("no_relu_pool2", False, 2), ("ceil", True, 3)):
        model = make_model(config(stem=stem, bn_momentum=0.25), 3)
        net = model.backbone
        maps = net.relu(net.bn1(net.conv1(images)))
        assert (maps.min() >= 0) == relu and net.maxpool(maps).shape[2:] == (16, 8)
        assert (net.maxpool.kernel_size, net.maxpool.ceil_mode) == (kernel, stem == "ceil")
        found = {layer.momentum for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)}
        assert found == {0.25} and model.branches[0].neck.momentum == 0.1


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
