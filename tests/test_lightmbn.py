"""LightMBN beside its authors' code. What the interface asks of all models is in test_branches.py."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from helpers import filled
from torch import nn

from config import Config
from model import BACKBONES, build_model
from model.backbones.osnet import OSBlock
from model.branches.drop import drop_top_rows
from model.branches.lightmbn import LightMBN
from model.pooling import GeM
from model.reid import embedding
from model.weights import load_backbone
from tools.model_summary import count
from utils.errors import UserError

# how each of the seven is pooled, in lmbn_n.py and in lmbn_r.py
OSNETS = ["mean", "max", "max", "mean", "mean", "mean", "mean"]
RESNETS = ["max", "max", "max", "mean", "mean", "max", "max"]


def config(backbone: str = "osnet_x0_25", **settings) -> Config:
    settings = {"embedding_dim": 12} | settings
    return Config(backbone=backbone, weights="none", branches="lightmbn", **settings)


def make(backbone: str = "osnet_x0_25", **settings) -> LightMBN:
    torch.manual_seed(0)
    return build_model(config(backbone, **settings), 5)


def random_images(count: int = 4, height: int = 128, width: int = 32) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---- the whole forward pass, slowly


def whole_backbones(model: LightMBN, cfg: Config) -> list[nn.Module]:
    """Three uncut backbones with the weights of the three copies; the second and third have the finer map."""
    nets = []
    for tail, last_stride in zip(model.backbone.tails, (cfg.model.last_stride, 1, 1), strict=True):
        net = BACKBONES[cfg.model.backbone](
            Config(backbone=cfg.model.backbone, weights="none", last_stride=last_stride)
        ).double()
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
    model = deepcopy(model)  # running statistics move
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


MODELS = [
    (config("osnet_x0_25"), OSNETS),
    (config("osnet_ain_x0_25"), OSNETS),
    (config("osnet_x0_25", pooling="max"), ["max"] * 7),
    (config("mobilenet_v3_small"), RESNETS),
    (config("resnet18", last_stride=2), RESNETS),
]


@pytest.mark.parametrize(("cfg", "pooling"), MODELS)
def test_training_is_that_of_the_authors(cfg, pooling):
    model = filled(build_model(cfg, 5)).train()
    images = random_images()
    with torch.no_grad():
        expected = features_of(model, cfg, images, pooling)
        logits, features = model(images)
    assert len(features) == 3 and len(logits) == 7
    for ours, theirs in zip(features, expected[:3], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-9)
    for ours, x, branch in zip(logits, expected, model.branches, strict=True):
        assert torch.allclose(ours, normalised(x, branch.neck, True) @ branch.classifier.weight.T, atol=1e-8)


@pytest.mark.parametrize(("cfg", "pooling"), MODELS[:-1])
def test_the_embedding_is_that_of_the_authors_tests(cfg, pooling):
    """Seven features behind their necks, each divided by its length, next to each other; nothing is dropped."""
    model = filled(build_model(cfg, 5))
    images = random_images(2)
    with torch.no_grad():
        features = features_of(model, cfg, images, pooling)
        parts = [normalised(x, branch.neck, False) for x, branch in zip(features, model.branches, strict=True)]
        expected = torch.cat([x / x.square().sum(1, keepdim=True).sqrt() for x in parts], 1)
        assert torch.allclose(model(images).double(), expected, atol=1e-6)


# ---- facts of the authors' code


@pytest.mark.parametrize(
    ("backbone", "last_stride", "parameters", "multiply_adds"),
    [("osnet_x1_0", 1, 6_460_696, 2_428_139_520), ("resnet50", 2, 74_847_296, 12_100_829_184)],
)
def test_parameters_and_multiply_adds_are_those_of_the_authors_modules(
    backbone, last_stride, parameters, multiply_adds
):
    """Counted at 384 × 128 in LMBN_n and LMBN_r of jixunbo/LightMBN 1f4ec0d, less their classifiers."""
    counted = count(config(backbone, embedding_dim=0, height=384, last_stride=last_stride))
    assert (counted["parameters"], counted["multiply-adds"]) == (parameters, multiply_adds)
    assert counted["embedding"] == 7 * 512


def test_metric_losses_see_the_whole_the_dropped_and_the_parts_map_and_all_seven_are_classified():
    model = make()
    assert [branch.metric for branch in model.branches] == [True] * 3 + [False] * 4
    assert len(set(model.heads)) == 7 and model.feature_dims == [12] * 3


def test_both_halves_of_the_channels_go_through_one_reduction():
    model, images = filled(make()), random_images(2)
    assert [name for name, _ in model.named_parameters() if "shared" in name] == [
        "shared.0.weight", "shared.1.weight", "shared.1.bias",
    ]  # fmt: skip
    tail = model.backbone.tails[2]
    with torch.no_grad():
        first, second = model.pooled(images)[5:]
        tail.conv5.register_forward_hook(lambda module, args, maps: maps.roll(64, dims=1))
        assert not torch.allclose(first, second)
        assert torch.equal(model.pooled(images)[5], second) and torch.equal(model.pooled(images)[6], first)


@pytest.mark.parametrize(("backbone", "kind"), [("osnet_ain_x0_25", OSBlock), ("resnet50", None)])
def test_the_block_before_the_drop_is_one_of_the_backbones_own_kind(backbone, kind):
    with torch.device("meta"):
        model = build_model(config(backbone), 5)
    last = kind or type(model.backbone.tails[0].layer4[-1])
    assert type(model.block) is last
    assert model.block(torch.empty(2, model.backbone.out_channels, 6, 2, device="meta")).shape[1:] == (
        model.backbone.out_channels, 6, 2,
    )  # fmt: skip


# ---- pooling, weights, attention


def test_every_feature_learns_a_power_of_its_own():
    model = make(pooling="gem").train()
    logits, _ = model(random_images().float())
    torch.stack(logits).square().sum().backward()
    assert all(isinstance(pool, GeM) for pool in model.pools)
    assert len({id(pool.p) for pool in model.pools}) == 7 and all(pool.p.grad.abs() > 0 for pool in model.pools)


def test_published_weights_go_to_the_trunk_and_to_all_three_copies(tmp_path):
    """torchreid's file holds OSNet with an embedding, which LightMBN has none of, and a classifier."""
    net = BACKBONES["osnet_x0_25"](config())
    net.fc, net.classifier = embedding(128, 512), nn.Linear(512, 1000)
    state = {name: x.float() if x.is_floating_point() else x for name, x in filled(net).state_dict().items()}
    torch.save({"state_dict": {f"module.{name}": x for name, x in state.items()}}, tmp_path / "osnet.pth")
    model = make()
    report = load_backbone(model.backbone, str(tmp_path / "osnet.pth"))
    assert report.missing == [] and report.skipped == sorted(
        n for n in state if n.split(".")[0] in ("fc", "classifier")
    )
    loaded = model.backbone.state_dict()
    assert set(report.loaded) == set(loaded)
    for name, tensor in loaded.items():
        home, plain = name.split(".", 1) if name.startswith("trunk.") else (name[:7], name[8:])
        assert home in ("trunk", "tails.0", "tails.1", "tails.2") and torch.equal(tensor, state[plain])
    images = random_images(2)
    with torch.no_grad():
        for maps in model.backbone.double().eval()(images):
            assert torch.allclose(maps, net(images), atol=1e-4)  # float32 is rounded


def test_attention_is_once_in_the_trunk_and_in_each_copy_on_its_own():
    model = make(attention="gc_gate", attention_stages=(1, 2))
    trunk, *tails = (model.backbone.trunk, *model.backbone.tails)
    assert list(trunk.attention) == ["1"] and [list(tail.attention) for tail in tails] == [["2"]] * 3
    assert len({id(p) for tail in tails for p in tail.attention.parameters()}) == 3 * 7


@pytest.mark.parametrize("backbone", ["vit_b_16", "swin_t"])
def test_a_backbone_that_cannot_be_split_is_refused(backbone):
    with pytest.raises(UserError, match=backbone), torch.device("meta"):
        build_model(config(backbone), 5)


def test_a_map_of_a_single_row_has_no_two_parts():
    with pytest.raises(UserError, match="--height"):
        make().eval()(torch.zeros(1, 3, 16, 32))


# ---- the drop


def peaks(*heights: float) -> torch.Tensor:
    """Maps (1, 2, H, 3) whose rows have one active position each."""
    maps = torch.full((1, 2, len(heights), 3), 0.1)
    for row, height in enumerate(heights):
        maps[0, row % 2, row, row % 3] = height
    return maps


def dropped(maps: torch.Tensor, **settings) -> list[list[int]]:
    """The rows of each image that are 0 all over; the others must be as before."""
    out = drop_top_rows(maps, **settings)
    assert out.shape == maps.shape and out.dtype == maps.dtype
    zero = (out == 0).all(3).all(1)
    assert torch.equal(out.transpose(1, 2)[~zero], maps.transpose(1, 2)[~zero])
    return [image.nonzero().flatten().tolist() for image in zero]


def test_rows_with_the_highest_peaks_are_dropped_wherever_they_are():
    assert dropped(peaks(1, 9, 2, 3, 8, 4)) == [[1, 4]]
    assert dropped(peaks(1, -9, 2, 3, -8, 4)) == [[1, 4]]  # it is squares that count


def test_every_image_has_its_own_rows():
    assert dropped(torch.cat([peaks(1, 9, 2, 3, 8, 4), peaks(7, 6, 5, 4, 3, 2)])) == [[1, 4], [0, 1]]


def test_a_rows_peak_counts_and_not_its_sum():
    maps = torch.zeros(1, 1, 3, 4)
    maps[0, 0, 0] = 2.0  # 4 in every one of four positions
    maps[0, 0, 1, 2] = 3.0
    maps[0, 0, 2] = 1.0
    assert dropped(maps) == [[1]]


def test_a_position_is_as_active_as_the_squares_of_all_its_channels():
    maps = torch.full((1, 4, 3, 2), 0.5)
    maps[0, :, 0, 0] = 2.0  # 16
    maps[0, 3, 2, 1] = 3.5  # 13, though the larger value
    assert dropped(maps) == [[0]]


@pytest.mark.parametrize(("rows", "number"), [(1, 0), (2, 1), (6, 2), (8, 3), (12, 4), (24, 8)])
def test_a_third_of_the_rows_is_dropped(rows, number):
    maps = torch.rand(3, 2, rows, 2, generator=torch.Generator().manual_seed(rows)) + 0.1
    assert [len(image) for image in dropped(maps)] == [number] * 3
    assert [len(image) for image in dropped(maps, share=1.0)] == [rows] * 3


def test_rows_are_those_of_a_slow_count():
    maps = torch.randn(3, 4, 9, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drop_top_rows(maps), rows_dropped(maps))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    maps = (300 * peaks(1, 2, 3, 4, 5, 6)).to(dtype)  # squares of up to 3.2e6
    assert dropped(maps) == [[4, 5]]


def test_only_kept_rows_get_a_gradient():
    maps = peaks(1, 9, 2).requires_grad_()
    drop_top_rows(maps).sum().backward()
    assert torch.equal(maps.grad, torch.tensor([1.0, 0, 1]).view(1, 1, 3, 1).expand_as(maps))
