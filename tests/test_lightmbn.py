"""LightMBN against its authors' code. What holds for all models is in test_branches.py."""

from copy import deepcopy

import pytest
import torch
from helpers import filled
from torch import nn

from config import Config
from model import build_model, find_backbone
from model.branches.lightmbn import LightMBN
from model.reid import embedding
from model.weights import load_backbone
from tools.model_summary import count

# how each of the seven is pooled, in lmbn_n.py and in lmbn_r.py
OSNETS = ["mean", "max", "max", "mean", "mean", "mean", "mean"]
RESNETS = ["max", "max", "max", "mean", "mean", "max", "max"]


def config(backbone: str = "osnet_x0_25", **settings) -> Config:
    settings = {"embedding_dim": 12} | settings
    return Config(backbone=backbone, weights="none", branches="lightmbn", **settings)


def make(backbone: str = "osnet_x0_25", **settings) -> LightMBN:
    torch.manual_seed(0)
    return build_model(config(backbone, **settings), 5)


def random_images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 128, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---- the whole forward pass, slowly


def whole_backbones(model: LightMBN, cfg: Config) -> list[nn.Module]:
    """Three uncut backbones with the weights of the three copies; the second and third have the finer map."""
    nets = []
    for tail, last_stride in zip(model.backbone.tails, (cfg.model.last_stride, 1, 1), strict=True):
        settings = Config(backbone=cfg.model.backbone, weights="none", last_stride=last_stride)
        net = find_backbone(cfg.model.backbone)(settings).double()
        net.load_state_dict(model.backbone.trunk.state_dict() | tail.state_dict())  # strict: nothing more or less
        nets.append(net.train(model.training))
    return nets


def rows_dropped(maps: torch.Tensor) -> torch.Tensor:
    """A third of the rows of each image set to 0, those with the most active positions, found one by one."""
    maps = maps.clone()
    for image in range(len(maps)):
        rows = []
        for y in range(maps.shape[2]):
            rows.append((max(sum(v * v for v in position) for position in maps[image, :, y].T.tolist()), y))
        for _, y in sorted(rows, reverse=True)[: round(0.33 * len(rows))]:
            maps[image, :, y] = 0
    return maps


def normalised(x: torch.Tensor, bn: nn.BatchNorm1d, training: bool) -> torch.Tensor:
    mean, var = (x.mean(0), x.var(0, unbiased=False)) if training else (bn.running_mean, bn.running_var)
    return (x - mean) / (var + 1e-5).sqrt() * bn.weight + bn.bias


def features_of(model: LightMBN, cfg: Config, images: torch.Tensor, pooling: list[str]) -> list[torch.Tensor]:
    """The seven features before their necks."""
    model = deepcopy(model)  # running statistics change
    one, two, three = (net(images) for net in whole_backbones(model, cfg))
    whole = model.block(one)
    half, channels = two.shape[2] // 2, three.shape[1] // 2
    maps = [whole, rows_dropped(whole) if model.training else whole]
    maps += [two, two[:, :, :half], two[:, :, half:], three[:, :channels], three[:, channels:]]
    pooled = [
        x.flatten(2).mean(2) if how == "mean" else x.flatten(2).max(2)[0] for x, how in zip(maps, pooling, strict=True)
    ]
    features = [x @ branch.fc.weight.T for x, branch in zip(pooled[:5], model.branches[:5], strict=True)]
    linear, bn, _ = model.shared
    return features + [normalised(x @ linear.weight.T, bn, model.training).clamp(min=0) for x in pooled[5:]]


@pytest.mark.parametrize(
    ("cfg", "pooling"),
    [
        (config("osnet_x0_25"), OSNETS),
        (config("osnet_ain_x0_25"), OSNETS),
        (config("mobilenet_v3_small"), RESNETS),
        (config("resnet18", last_stride=2), RESNETS),
    ],
)
def test_training_and_embedding_are_those_of_the_authors(cfg, pooling):
    """The embedding: seven features after their necks, each divided by its length, concatenated; nothing dropped."""
    model, images = filled(build_model(cfg, 5)), random_images()
    with torch.no_grad():
        features = features_of(model, cfg, images, pooling)
        parts = [normalised(x, branch.neck, False) for x, branch in zip(features, model.branches, strict=True)]
        expected = torch.cat([x / x.square().sum(1, keepdim=True).sqrt() for x in parts], 1)
        assert torch.allclose(model(images).double(), expected, atol=1e-6)
        expected = features_of(model.train(), cfg, images, pooling)
        logits, features = model(images)
    assert len(features) == 3 and len(logits) == 7
    assert all(torch.allclose(ours, theirs, atol=1e-9) for ours, theirs in zip(features, expected[:3], strict=True))
    for ours, x, branch in zip(logits, expected, model.branches, strict=True):
        assert torch.allclose(ours, normalised(x, branch.neck, True) @ branch.classifier.weight.T, atol=1e-8)


# ---- facts of the authors' code


@pytest.mark.parametrize(
    ("backbone", "last_stride", "parameters", "multiply_adds"),
    [("osnet_x1_0", 1, 6_460_696, 2_428_139_520), ("resnet50", 2, 74_847_296, 12_100_829_184)],
)
def test_parameters_and_multiply_adds_are_those_of_the_authors(backbone, last_stride, parameters, multiply_adds):
    """Counted at 384 × 128 in LMBN_n and LMBN_r of jixunbo/LightMBN 1f4ec0d, less their classifiers."""
    counted = count(config(backbone, embedding_dim=0, height=384, last_stride=last_stride))
    assert (counted["parameters"], counted["multiply-adds"]) == (parameters, multiply_adds)
    assert counted["embedding"] == 7 * 512


def test_published_weights_go_to_the_trunk_and_to_all_three_copies(tmp_path):
    """torchreid's file holds OSNet with an embedding and a classifier, which LightMBN does not have."""
    net = find_backbone("osnet_x0_25")(config())
    net.fc, net.classifier = embedding(128, 512), nn.Linear(512, 1000)
    state = {name: x.float() if x.is_floating_point() else x for name, x in filled(net).state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": x for name, x in state.items()}}, tmp_path / "osnet.pth")
    model = make()
    report = load_backbone(model.backbone, str(tmp_path / "osnet.pth"))
    assert report.missing == [] and {name.split(".")[2] for name in report.skipped} == {"fc", "classifier"}
    images = random_images(2)
    with torch.no_grad():
        for maps in model.backbone.double().eval()(images):
            assert torch.allclose(maps, net(images), atol=1e-4)  # float32 is rounded
