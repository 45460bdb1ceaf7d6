"""Models of one and of several branches: the interface, the papers' forwards written slowly, split backbones, parts."""

from copy import deepcopy

import pytest
import torch
from helpers import filled
from torch import nn
from torchvision import models

from config import Config
from loss import make_criterion
from model import BRANCHES, build_model, find_backbone, make_model
from model.branches.lightmbn import LightMBN
from model.branches.parts import Split
from model.reid import ReIDModel, make_backbone
from model.weights import load_backbone
from tools.model_summary import count
from utils.errors import UserError

LABELS = torch.arange(4).repeat_interleave(2)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def config(branches: str = "one", backbone: str = "resnet18", **settings) -> Config:
    settings = {"height": 96, "width": 32, "weights": "none"} | settings
    return Config(branches=branches, backbone=backbone, **settings)


# ---- all of them


@pytest.mark.parametrize("backbone", ["osnet_x0_25", pytest.param("resnet18", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", BRANCHES)
def test_every_model_gives_logits_features_and_embeddings_and_a_step_lowers_its_loss(name, backbone):
    for settings in ({}, {"head": "arcface", "center_weight": 0.0}):
        cfg = config(name, backbone, **settings)
        model = build_model(cfg, 4).train()
        criterion = make_criterion(cfg, 4, model.feature_dims, [head.add_margin for head in model.heads])
        images = torch.randn(8, 3, 96, 32)

        def loss(model=model, criterion=criterion, images=images) -> torch.Tensor:
            torch.manual_seed(1)  # the same rows are dropped each time
            logits, features = model(images)
            assert [x.shape for x in logits] == [(8, 4)] * len(model.heads)
            assert [x.shape for x in features] == [(8, width) for width in model.feature_dims]
            return criterion(logits, features, LABELS)[0]

        before = loss()
        before.backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad.isfinite().all(), key
                assert parameter.grad.any() or parameter.ndim == 1 or ".gate." in key, key  # the ReLU may close a gate
            else:
                assert key.endswith("neck.bias")
        weights = [p for p in model.parameters() if p.requires_grad]
        length = torch.stack([p.grad.norm() for p in weights]).norm()
        with torch.no_grad():
            for p in weights:
                p -= 1e-3 / length * p.grad
            assert loss() < before
            embedding = model.eval()(images)
            assert embedding.shape == (8, model.embedding_dim) and embedding.dtype == torch.float32
            widths = [branch.width for branch in model.branches]
            norms = torch.stack([part.norm(dim=1) for part in embedding.split(widths, 1)])
            assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5) == (len(widths) > 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, features = model.train().to(memory_format=torch.channels_last)(images)
        sum(x.float().square().mean() for x in (*logits, *features)).backward()
    assert all(p.grad.isfinite().all() for p in weights)


@pytest.mark.parametrize(
    ("name", "heads", "widths", "parameters"),
    [
        ("one", 1, [2048], 23_512_128),  # torchvision's 25,557,032 less its classifier
        ("pcb", 6, [256] * 6, 26_661_440),
        ("mgn", 8, [256] * 3, 68_813_888),  # two more copies of layer4 and all of layer3 but its first block
        ("bdb", 2, [512, 1024], 31_124_032),  # one more block
    ],
)
def test_numbers_widths_and_parameters_are_the_papers_unless_embedding_dim_is_given(name, heads, widths, parameters):
    """Parameters but for the classifiers, on ResNet50, with necks of 2 numbers per channel that papers do not have."""
    with torch.device("meta"):
        model, narrow = (build_model(cfg, 5) for cfg in (config(name, "resnet50"), config(name, embedding_dim=64)))
    assert (len(model.heads), model.feature_dims) == (heads, widths)
    assert sum(p.numel() for key, p in model.named_parameters() if ".classifier." not in key) == parameters
    assert narrow.embedding_dim == (192 if name == "bdb" else 64 * heads)


# ---- the papers' forwards, written slowly


def norm(x: torch.Tensor, bn: nn.Module, training: bool = False) -> torch.Tensor:
    mean, var = (x.mean(0), x.var(0, unbiased=False)) if training else (bn.running_mean, bn.running_var)
    return (x - mean) / (var + bn.eps).sqrt() * bn.weight + bn.bias


def last_map(images: torch.Tensor, state: dict[str, torch.Tensor], last_stride: int) -> torch.Tensor:
    net = models.resnet18().double().eval()
    assert set(net.load_state_dict(state, strict=False).missing_keys) == {"fc.weight", "fc.bias"}
    if last_stride == 1:
        net.layer4[0].conv1.stride = net.layer4[0].downsample[0].stride = (1, 1)
    x = net.maxpool(net.bn1(net.conv1(images)).relu())
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


def slowly(model: ReIDModel, pooled: list[torch.Tensor]) -> tuple[list[torch.Tensor], ...]:
    """Features, the same after the neck, and logits that the branches' layers make of pooled features."""
    features = []
    for x, (linear, bn, _) in zip(pooled, (branch.fc for branch in model.branches), strict=True):
        features.append(norm(x @ linear.weight.T + linear.bias, bn).clamp(min=0))
    after = [norm(x, branch.neck) for x, branch in zip(features, model.branches, strict=True)]
    return features, after, [x @ head.weight.T for x, head in zip(after, model.heads, strict=True)]


@torch.no_grad()
def check(model: ReIDModel, images: torch.Tensor, pooled: list, metric: list[int], trained: list | None = None) -> None:
    """The model gives what follows from these pooled features, in training from those in `trained`, if given."""
    _, after, _ = slowly(model, pooled)
    embedding = torch.cat([x / x.square().sum(1, keepdim=True).sqrt() for x in after], 1)
    assert torch.allclose(model(images).double(), embedding, atol=1e-6)
    features, _, logits = slowly(model, trained or pooled)
    model.training = True  # only of the outermost module: batch norms keep their statistics
    torch.manual_seed(7)
    ours = model(images)
    pairs = [*zip(ours[0], logits, strict=True), *zip(ours[1], [features[n] for n in metric], strict=True)]
    assert all(torch.allclose(ours, theirs) for ours, theirs in pairs)


def test_pcb_is_six_stripes_averaged_reduced_and_classified_each_on_its_own():
    model = filled(build_model(config("pcb", embedding_dim=8, height=192), 3))
    images = torch.randn(2, 3, 192, 32, dtype=torch.float64)
    with torch.no_grad():
        maps = last_map(images, model.backbone.state_dict(), 1)
    pooled = [(maps[:, :, 2 * n].sum(2) + maps[:, :, 2 * n + 1].sum(2)) / 4 for n in range(6)]
    check(model, images, pooled, [0, 1, 2, 3, 4, 5])
    model = build_model(config("pcb", "osnet_x0_25", height=80), 2).eval()
    with pytest.raises(UserError, match=r"5 rows, too few for 6 parts; .*--height"):
        model(torch.randn(1, 3, 80, 32))


@pytest.mark.parametrize("last_stride", [1, 2])
def test_mgn_is_three_networks_with_a_common_start_and_eight_maxima_of_their_maps(last_stride):
    """With last stride 2 the strides are the paper's: only the global branch has it."""
    cfg = config("mgn", embedding_dim=8, last_stride=last_stride, pooling="max")
    model = filled(build_model(cfg, 3))
    images = torch.randn(2, 3, 96, 32, dtype=torch.float64)
    trunk, tails = model.backbone.trunk.state_dict(), [tail.state_dict() for tail in model.backbone.tails]
    with torch.no_grad():
        whole, halves, thirds = (
            last_map(images, trunk | tail, stride) for tail, stride in zip(tails, (last_stride, 1, 1), strict=True)
        )
    assert whole.shape[2] == 6 / last_stride and halves.shape[2] == thirds.shape[2] == 6
    parts = [whole, halves, thirds, halves[:, :, :3], halves[:, :, 3:]]
    parts += [thirds[:, :, :2], thirds[:, :, 2:4], thirds[:, :, 4:]]
    check(model, images, [part.flatten(2).max(2).values for part in parts], [0, 1, 2])


def test_bdb_is_an_average_and_a_maximum_after_one_more_block_in_training_of_four_rows_out_of_six():
    model = filled(build_model(config("bdb", embedding_dim=8), 3))
    images = torch.randn(2, 3, 96, 32, dtype=torch.float64)
    with torch.no_grad():
        maps = last_map(images, model.backbone.state_dict(), 1)
        part = model.bottleneck(maps)
    torch.manual_seed(7)
    top = torch.randint(5, (1,)).item()
    left = torch.cat([part[:, :, :top], part[:, :, top + 2 :]], 2)
    average, most = maps.flatten(2).mean(2), part.flatten(2).max(2).values
    trained = [average, left.flatten(2).max(2).values]  # values are above 0, so that what is dropped plays no part
    assert part.shape[2] == 6 and not torch.equal(trained[1], most)
    check(model, images, [average, most], [0, 1], trained)


# ---- split backbones


def split(name: str, copies: int = 3, **settings) -> tuple[nn.Module, Split]:
    whole = make_backbone(config("one", name, **settings)).eval()
    return whole, Split(whole, copies, name).eval()


@pytest.mark.parametrize(
    ("name", "last", "first"),  # weights around the cut
    [
        ("resnet18", "layer3.0.bn2.weight", "layer3.1.conv1.weight"),
        ("osnet_x0_25", "conv3.0.conv3.bn.weight", "conv3.1.conv1.conv.weight"),  # as LightMBN's
        ("mobilenet_v2", "features.7.conv.2.weight", "features.8.conv.0.0.weight"),
        ("shufflenet_v2_x0_5", "stage3.0.branch2.6.weight", "stage3.1.branch2.0.weight"),
        ("regnet_y_400mf", "trunk_output.block3.block3-0.f.c.1.weight", "trunk_output.block3.block3-1.f.a.0.weight"),
        ("convnext_tiny", "features.4.1.weight", "features.5.0.block.0.weight"),
    ],
)
def test_each_copy_gives_the_whole_backbones_map_has_its_own_weights_and_loads_its_file(name, last, first, tmp_path):
    whole, parts = split(name)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        wanted, maps = whole(images), parts(images)
    assert len(maps) == 3 and all(torch.equal(x, wanted) for x in maps) and wanted.any()
    assert (parts.out_channels, parts.stage_channels) == (whole.out_channels, whole.stage_channels)
    assert parts.imagenet == whole.imagenet
    sizes = [sum(p.numel() for p in part.parameters()) for part in (parts.trunk, *parts.tails)]
    assert sizes[0] + sizes[1] == sum(p.numel() for p in whole.parameters()) and sizes[1] == sizes[2] == sizes[3]
    places = [p.data_ptr() for part in (whole, parts.trunk, *parts.tails) for p in part.parameters()]
    assert len(set(places)) == len(places)
    keys = [{key for key, p in part.named_parameters()} for part in (parts.trunk, parts.tails[1])]
    assert last in keys[0] - keys[1] and first in keys[1] - keys[0]
    torch.save({f"module.{k}": v for k, v in whole.state_dict().items()}, tmp_path / "whole.pth")
    _, other = split(name)
    report = load_backbone(other, str(tmp_path / "whole.pth"))
    assert not report.missing and not report.skipped and sorted(other.state_dict()) == report.loaded
    with torch.no_grad():
        assert all(torch.equal(x, wanted) for x in other(images))


def test_our_own_checkpoints_start_mgn(tmp_path):
    model = build_model(config("mgn"), 3)
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    state = make_model(config("mgn", weights=str(tmp_path / "own.pth")), 9).backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.backbone.state_dict().items())


# ---- LightMBN against its authors' code


# how each of the seven is pooled, in lmbn_n.py and in lmbn_r.py
OSNETS = ["mean", "max", "max", "mean", "mean", "mean", "mean"]
RESNETS = ["max", "max", "max", "mean", "mean", "max", "max"]


def light(backbone: str = "osnet_x0_25", **settings) -> Config:
    return config("lightmbn", backbone, **{"embedding_dim": 12} | settings)


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


def features_of(model: LightMBN, cfg: Config, images: torch.Tensor, pooling: list[str]) -> list[torch.Tensor]:
    """The seven features before their necks."""
    model = deepcopy(model)  # running statistics change
    one, two, three = (net(images) for net in whole_backbones(model, cfg))
    whole = model.block(one)
    half, channels = two.shape[2] // 2, three.shape[1] // 2
    maps = [whole, rows_dropped(whole) if model.training else whole]
    maps += [two, two[:, :, :half], two[:, :, half:], three[:, :channels], three[:, channels:]]
    pooled = [x.mean((2, 3)) if how == "mean" else x.amax((2, 3)) for x, how in zip(maps, pooling, strict=True)]
    features = [x @ branch.fc.weight.T for x, branch in zip(pooled[:5], model.branches[:5], strict=True)]
    linear, bn, _ = model.shared
    return features + [norm(x @ linear.weight.T, bn, model.training).clamp(min=0) for x in pooled[5:]]


@pytest.mark.parametrize(
    ("cfg", "pooling"),
    [
        (light(), OSNETS),
        (light("osnet_ain_x0_25"), OSNETS),
        (light("mobilenet_v3_small"), RESNETS),
        (light("resnet18", last_stride=2), RESNETS),
    ],
)
def test_training_and_embedding_are_those_of_the_authors(cfg, pooling):
    """The embedding: seven features after their necks, each divided by its length, concatenated; nothing dropped."""
    model, images = filled(build_model(cfg, 5)), torch.randn(4, 3, 128, 32, dtype=torch.float64)
    with torch.no_grad():
        features = features_of(model, cfg, images, pooling)
        parts = [norm(x, branch.neck) for x, branch in zip(features, model.branches, strict=True)]
        expected = torch.cat([x / x.square().sum(1, keepdim=True).sqrt() for x in parts], 1)
        assert torch.allclose(model(images).double(), expected, atol=1e-6)
        expected = features_of(model.train(), cfg, images, pooling)
        logits, features = model(images)
    assert len(features) == 3 and len(logits) == 7
    assert all(torch.allclose(ours, theirs, atol=1e-9) for ours, theirs in zip(features, expected[:3], strict=True))
    for ours, x, branch in zip(logits, expected, model.branches, strict=True):
        assert torch.allclose(ours, norm(x, branch.neck, training=True) @ branch.classifier.weight.T, atol=1e-8)


# ---- facts of the authors' code


@pytest.mark.parametrize(
    ("backbone", "last_stride", "parameters", "multiply_adds"),
    [("osnet_x1_0", 1, 6_460_696, 2_428_139_520), ("resnet50", 2, 74_847_296, 12_100_829_184)],
)
def test_parameters_and_multiply_adds_are_those_of_the_authors(backbone, last_stride, parameters, multiply_adds):
    """Counted at 384 × 128 in LMBN_n and LMBN_r of jixunbo/LightMBN 1f4ec0d, less their classifiers."""
    counted = count(light(backbone, embedding_dim=0, height=384, width=128, last_stride=last_stride))
    assert (counted["parameters"], counted["multiply-adds"]) == (parameters, multiply_adds)
    assert counted["embedding"] == 7 * 512
