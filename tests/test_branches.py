"""Models of one and of several branches: one interface, the papers' forwards written slowly, backbones with copied
ends, stripes and dropped rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import filled
from torch import nn
from torch.nn import functional as F
from torchvision import models

from config import Config
from loss import make_criterion
from model import BRANCHES, build_model, make_model
from model.branches.bdb import bottleneck
from model.branches.drop_random import drop_rows
from model.branches.split import Split
from model.branches.stripes import stripes
from model.reid import ReIDModel, make_backbone
from model.weights import load_backbone
from processor.checkpoint import load_model, save_checkpoint
from solver import make_optimizer, set_frozen
from utils.errors import UserError

SMALL = ["resnet18", "osnet_x0_25", "mobilenet_v2"]
LABELS = torch.arange(4).repeat_interleave(2)
SPLIT = [
    "resnet18", "osnet_x0_25", "osnet_ain_x0_25", "mobilenet_v2", "mobilenet_v3_small",
    "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
]  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def config(branches: str = "one", backbone: str = "resnet18", **settings) -> Config:
    settings = {"height": 96, "width": 32} | settings
    return Config(branches=branches, backbone=backbone, weights="none", **settings)


def on_meta(cfg: Config, num_classes: int = 5) -> ReIDModel:
    """Shapes without numbers, in evaluation mode."""
    with torch.device("meta"):
        return build_model(cfg, num_classes).eval()


# ---- all of them: the interface


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("name", BRANCHES)
def test_training_gives_a_logit_a_head_and_a_feature_a_metric_branch_and_testing_one_embedding(name, backbone):
    model = build_model(config(name, backbone), 5)
    images = torch.randn(2, 3, 96, 32)
    logits, features = model.train()(images)
    assert [x.shape for x in logits] == [(2, 5)] * len(model.heads)
    assert [x.shape for x in features] == [(2, width) for width in model.feature_dims]
    with torch.no_grad():
        embedding = model.eval()(images)
        assert embedding.shape == (2, model.embedding_dim) and embedding.dtype == torch.float32
        widths = [branch.width for branch in model.branches]
        norms = torch.stack([part.norm(dim=1) for part in embedding.split(widths, 1)])
        if len(widths) > 1:
            assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)
        else:  # of one branch it is as it is
            pooled = model.pool(model.backbone(images))
            assert torch.equal(embedding, model.branches[0].neck(pooled)) and (norms - 1).abs().min() > 0.01


@pytest.mark.parametrize(
    ("name", "heads", "widths", "dim"),
    [
        ("one", 1, [512], 512),
        ("pcb", 6, [256] * 6, 6 * 256),
        ("mgn", 8, [256] * 3, 8 * 256),
        ("bdb", 2, [512, 1024], 1536),
    ],
)
def test_numbers_and_widths_of_the_features_are_the_papers_unless_embedding_dim_is_given(name, heads, widths, dim):
    model = on_meta(config(name))
    assert (len(model.heads), model.feature_dims, model.embedding_dim) == (heads, widths, dim)
    model = on_meta(config(name, embedding_dim=64))
    assert model.branches[0].width == 64 and model.embedding_dim == (192 if name == "bdb" else 64 * heads)
    assert model.eval()(torch.empty(2, 3, 96, 32, device="meta")).shape == (2, model.embedding_dim)


def train_once(cfg: Config) -> tuple[ReIDModel, float, float]:
    """A model whose gradients are there, its loss before and after one small step against them."""
    model = build_model(cfg, 4).train()
    criterion = make_criterion(cfg, 4, model.feature_dims, [head.harden for head in model.heads])
    images = torch.randn(8, 3, 96, 32)

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # the same rows are dropped each time
        total, parts = criterion(*model(images), LABELS)
        assert set(parts) == {"id", "triplet"} | ({"center"} if cfg.loss.center_weight else set())
        return total

    before = loss()
    before.backward()
    weights = [p for p in model.parameters() if p.requires_grad]
    steepness = torch.stack([p.grad.norm() for p in weights]).norm()
    with torch.no_grad():
        for p in weights:
            p -= 1e-3 / steepness * p.grad
        return model, before.item(), loss().item()


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("name", BRANCHES)
def test_gradients_reach_every_parameter_and_a_step_lowers_the_loss(name, backbone):
    model, before, after = train_once(config(name, backbone))
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.any() or parameter.ndim == 1 or ".gate." in key, key  # the ReLU may shut a gate
    assert all(key.endswith("neck.bias") for key, p in model.named_parameters() if not p.requires_grad)
    assert after < before


@pytest.mark.parametrize("settings", [{"head": "arcface", "center_weight": 0.0}, {"head": "circle"}])
@pytest.mark.parametrize("name", BRANCHES)
def test_it_trains_with_heads_that_have_a_margin_and_without_the_center_loss(name, settings):
    _, before, after = train_once(config(name, "osnet_x0_25", **settings))
    assert after < before


@pytest.mark.parametrize("name", BRANCHES)
def test_it_trains_in_bfloat16_autocast_with_channels_last(name):
    model = build_model(config(name, "osnet_x0_25"), 4).to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, 96, 32).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, features = model(images)
        sum(x.float().square().mean() for x in (*logits, *features)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert model.eval()(images).isfinite().all()


def test_a_checkpoint_gives_back_the_model_of_branches_that_it_holds(tmp_path):
    cfg = config("pcb", embedding_dim=32)
    model = filled(build_model(cfg, 3)).float()
    labels = {str(n): n for n in range(3)}
    save_checkpoint(tmp_path / "a.pth", {"model": model.state_dict(), "config": cfg.to_dict(), "labels": labels})
    again, read = load_model(tmp_path / "a.pth", "cpu")
    assert type(again) is BRANCHES["pcb"] and read == cfg
    images = torch.randn(2, 3, 96, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


# ---- the papers' forwards, written slowly


def norm(x: torch.Tensor, bn: nn.Module) -> torch.Tensor:
    return (x - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias


def last_map(images: torch.Tensor, state: dict[str, torch.Tensor], last_stride: int) -> torch.Tensor:
    net = models.resnet18().double().eval()
    assert set(net.load_state_dict(state, strict=False).missing_keys) == {"fc.weight", "fc.bias"}
    if last_stride == 1:
        net.layer4[0].conv1.stride = net.layer4[0].downsample[0].stride = (1, 1)
    x = net.maxpool(net.bn1(net.conv1(images)).relu())
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


def slowly(model: ReIDModel, pooled: list[torch.Tensor]) -> tuple[list[torch.Tensor], ...]:
    """Features, the same behind the neck, and logits that the branches' layers make of pooled features."""
    features = []
    for x, (linear, bn, _) in zip(pooled, (branch.fc for branch in model.branches), strict=True):
        features.append(norm(x @ linear.weight.T + linear.bias, bn).clamp(min=0))
    after = [norm(x, branch.neck) for x, branch in zip(features, model.branches, strict=True)]
    return features, after, [x @ head.weight.T for x, head in zip(after, model.heads, strict=True)]


@torch.no_grad()
def check(model: ReIDModel, images: torch.Tensor, pooled: list, metric: list[int], trained: list | None = None) -> None:
    """The model gives what follows from these pooled features, in training from those in `trained`, where given."""
    _, after, _ = slowly(model, pooled)
    embedding = torch.cat([x / x.square().sum(1, keepdim=True).sqrt() for x in after], 1)
    assert torch.allclose(model(images).double(), embedding, atol=1e-6)
    features, _, logits = slowly(model, trained or pooled)
    model.training = True  # only of the outermost module: batch norms keep their statistics
    torch.manual_seed(7)
    pairs = [*zip(model(images)[0], logits, strict=True)]
    torch.manual_seed(7)
    pairs += [*zip(model(images)[1], [features[n] for n in metric], strict=True)]
    assert all(torch.allclose(ours, theirs) for ours, theirs in pairs)


def test_pcb_is_six_stripes_averaged_reduced_and_classified_each_on_its_own():
    model = filled(build_model(config("pcb", embedding_dim=8, height=192), 3))
    images = torch.randn(2, 3, 192, 32, dtype=torch.float64)
    with torch.no_grad():
        maps = last_map(images, model.backbone.state_dict(), 1)
    assert maps.shape[2:] == (12, 2)
    pooled = [(maps[:, :, 2 * n].sum(2) + maps[:, :, 2 * n + 1].sum(2)) / 4 for n in range(6)]
    check(model, images, pooled, [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("last_stride", [1, 2])
def test_mgn_is_three_networks_with_a_common_start_and_eight_maxima_of_their_maps(last_stride):
    """With last stride 2 the strides are the paper's: it is the global branch's alone."""
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


def block(x: torch.Tensor, layers: nn.Module) -> torch.Tensor:
    def bn(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        return norm(x.movedim(1, 3), layer).movedim(3, 1)

    out = bn(F.conv2d(x, layers.conv1.weight), layers.bn1).clamp(min=0)
    out = bn(F.conv2d(out, layers.conv2.weight, padding=1), layers.bn2).clamp(min=0)
    return (bn(F.conv2d(out, layers.conv3.weight), layers.bn3) + x).clamp(min=0)


def test_bdb_is_an_average_and_the_maximum_behind_one_more_block_in_training_of_four_rows_out_of_six():
    model = filled(build_model(config("bdb", embedding_dim=8), 3))
    images = torch.randn(2, 3, 96, 32, dtype=torch.float64)
    with torch.no_grad():
        maps = last_map(images, model.backbone.state_dict(), 1)
        part = block(maps, model.bottleneck)
    torch.manual_seed(7)
    top = torch.randint(5, (1,)).item()
    left = torch.cat([part[:, :, :top], part[:, :, top + 2 :]], 2)
    average, most = maps.flatten(2).mean(2), part.flatten(2).max(2).values
    trained = [average, left.flatten(2).max(2).values]  # values are above 0, so that what is dropped plays no part
    assert part.shape[2] == 6 and not torch.equal(trained[1], most)
    check(model, images, [average, most], [0, 1], trained)


def test_bdb_drops_in_training_only_and_in_its_second_branch_only():
    model = build_model(config("bdb", "osnet_x0_25"), 3)
    images = torch.randn(4, 3, 96, 32)

    def features(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return model(images)[1]

    with torch.no_grad():
        pairs = [[torch.equal(a, b) for a, b in zip(features(0), features(seed), strict=True)] for seed in range(9)]
        assert all(same for same, _ in pairs) and not all(same for _, same in pairs)
        state = torch.get_rng_state()
        assert torch.equal(model.eval()(images), model(images)) and torch.equal(torch.get_rng_state(), state)


def test_counts_of_parameters_follow_from_torchvisions_resnet50_and_the_widths_of_the_papers():
    """All but the classifiers, and necks of 2 numbers a channel, of which the papers have none."""
    resnet50 = models.ResNet50_Weights.IMAGENET1K_V1.meta["num_params"] - 2048 * 1000 - 1000
    with torch.device("meta"):
        net = models.resnet50()
    copied = sum(p.numel() for layers in (net.layer3[1:], net.layer4) for p in layers.parameters())
    block = 2048 * 512 + 9 * 512 * 512 + 512 * 2048 + 2 * (512 + 512 + 2048)

    def behind(width: int) -> int:  # Linear with a bias, batch norm, neck
        return 2048 * width + width + 2 * width + 2 * width

    for name, wanted in (
        ("pcb", resnet50 + 6 * behind(256)),
        ("mgn", resnet50 + 2 * copied + 8 * behind(256)),
        ("bdb", resnet50 + block + behind(512) + behind(1024)),
    ):
        model = on_meta(config(name, "resnet50"))
        assert sum(p.numel() for key, p in model.named_parameters() if ".classifier." not in key) == wanted, name


# ---- backbones with copied ends


def split(name: str, copies: int = 2, **settings) -> tuple[nn.Module, Split]:
    cfg = config("one", name, **settings)
    whole = make_backbone(cfg).eval()
    return whole, Split(whole, copies, name).eval()


@pytest.mark.parametrize("name", SPLIT)
def test_each_copy_gives_the_map_of_the_whole_backbone_and_has_weights_of_its_own(name):
    whole, parts = split(name, 3)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        wanted, maps = whole(images), parts(images)
    assert len(maps) == 3 and all(torch.equal(x, wanted) for x in maps) and wanted.any()
    assert (parts.out_channels, parts.stage_channels) == (whole.out_channels, whole.stage_channels)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (parts.trunk, *parts.tails)]
    assert sizes[0] > 0 and sizes[1] == sizes[2] == sizes[3]
    assert sizes[0] + sizes[1] == sum(p.numel() for p in whole.parameters())  # and so no layer is in both
    places = [p.data_ptr() for part in (whole, parts.trunk, *parts.tails) for p in part.parameters()]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_with_last_stride_2_the_first_copy_has_it_and_the_others_give_the_map_without(name):
    whole, parts = split(name, 3, last_stride=2)
    finer, _ = split(name)
    finer.load_state_dict(whole.state_dict())
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        coarse, *fine = parts(images)
        assert torch.equal(coarse, whole(images)) and coarse.shape[2:] == (2, 1)
        assert all(torch.equal(x, finer(images)) and x.shape[2:] == (4, 2) for x in fine)


@pytest.mark.parametrize(
    ("name", "last", "first"),
    [
        ("resnet18", "layer3.0.bn2.weight", "layer3.1.conv1.weight"),
        ("osnet_x0_25", "conv3.0.conv3.bn.weight", "conv3.1.conv1.conv.weight"),  # as LightMBN's
        ("mobilenet_v2", "features.7.conv.2.weight", "features.8.conv.0.0.weight"),
        ("regnet_y_400mf", "trunk_output.block3.block3-0.f.c.1.weight", "trunk_output.block3.block3-1.f.a.0.weight"),
        ("convnext_tiny", "features.4.1.weight", "features.5.0.block.0.weight"),
    ],
)
def test_the_cut_is_behind_the_first_block_of_the_last_stage_but_one(name, last, first):
    _, parts = split(name)
    weights = [[key for key, p in part.named_parameters() if p.ndim > 0] for part in (parts.trunk, parts.tails[1])]
    assert last in weights[0] and last not in weights[1]
    assert first in weights[1] and first not in weights[0]


def test_copies_that_start_alike_train_apart():
    _, parts = split("resnet18")
    first, second = parts.train()(torch.randn(2, 3, 64, 32))
    (first.square().mean() - second.square().mean()).backward()
    gradients = [part.layer3[1].conv1.weight.grad for part in parts.tails]
    assert gradients[0].any() and torch.allclose(gradients[0], -gradients[1])
    assert all(p.grad is not None for p in parts.parameters())


@pytest.mark.parametrize("name", ["resnet18", "osnet_x0_25", "regnet_y_400mf"])
def test_weights_of_a_whole_backbone_load_into_the_trunk_and_into_every_copy(name, tmp_path):
    whole, _ = split(name)
    torch.save({f"module.{k}": v for k, v in whole.state_dict().items()}, tmp_path / "whole.pth")
    _, parts = split(name, 3)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert not torch.equal(parts(images)[0], whole(images))
        report = load_backbone(parts, str(tmp_path / "whole.pth"))
        assert all(torch.equal(x, whole(images)) for x in parts(images))
    assert not report.missing and not report.skipped and sorted(parts.state_dict()) == report.loaded


def test_imagenet_weights_and_those_of_ones_own_checkpoints_start_mgn(tmp_path, monkeypatch):
    published = models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_args, **_options: published)
    cfg = replace(config("mgn"), weights="imagenet")
    model = make_model(cfg, 3)
    assert torch.equal(model.backbone.trunk.conv1.weight, published["conv1.weight"])
    assert all(torch.equal(tail.layer4[1].bn2.bias, published["layer4.1.bn2.bias"]) for tail in model.backbone.tails)
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    again = make_model(cfg.replace(weights=str(tmp_path / "own.pth")), 9)
    state = again.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.backbone.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "osnet_x0_25"])
def test_attention_stays_behind_its_stage_once_in_the_trunk_or_in_each_copy(name):
    stages = (1, 2, 3, 4) if name == "resnet18" else (1, 2, 3)
    whole, parts = split(name, attention="se", attention_stages=stages)
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        assert all(torch.equal(x, whole(images)) for x in parts(images))
    assert set(parts.trunk.attention) == set(map(str, stages[:-2]))
    assert all(set(tail.attention) == set(map(str, stages[-2:])) for tail in parts.tails)
    parts(images)[1].sum().backward()
    reached = [any(p.grad is not None for p in tail.attention.parameters()) for tail in parts.tails]
    assert reached == [False, True]


@pytest.mark.parametrize("name", ["swin_t", "vit_b_16", "timm/test_resnet"])
def test_a_backbone_that_cannot_be_split_is_refused_in_a_sentence_and_taken_where_it_need_not_be(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    last_stride = 2 if name == "swin_t" else 1
    with pytest.raises(UserError, match=rf"--backbone {name} has no stages.*take a ResNet.*--branches one, pcb or bdb"):
        on_meta(config("mgn", name, last_stride=last_stride, height=192))
    for branches in ("pcb", "bdb"):
        model = on_meta(config(branches, name, last_stride=last_stride, height=192))
        with torch.no_grad():
            embedding = model(torch.empty(2, 3, 192, 32, device="meta"))
        assert embedding.shape == (2, model.embedding_dim)


def test_a_width_that_no_bottleneck_block_can_have_is_refused():
    with pytest.raises(
        UserError, match="--backbone odd ends in 1282 channels, which --branches bdb cannot divide by 4"
    ):
        bottleneck(1282, "odd")


def test_freezing_the_backbone_freezes_the_trunk_and_every_copy_and_nothing_else():
    cfg = config("mgn", "osnet_x0_25")
    model = build_model(cfg, 4)
    criterion = make_criterion(cfg, 4, model.feature_dims, [head.harden for head in model.heads])
    optimizer = make_optimizer(cfg, model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    set_frozen(model, optimizer, True)
    criterion(*model(torch.randn(8, 3, 96, 32)), LABELS)[0].backward()
    optimizer.step()
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    fixed = {key for key in before if key.startswith("backbone.") or key.endswith("neck.bias")}
    assert moved == before.keys() - fixed


# ---- stripes and dropped rows


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("rows", [6, 8, 16, 17, 24])
def test_stripes_are_the_bins_of_adaptive_pooling(rows, count):
    maps = torch.randn(2, 3, rows, 4)
    parts = stripes(maps, count)
    assert len(parts) == count and all(part.shape[3] == 4 for part in parts)
    for reduce, pool in ((torch.mean, F.adaptive_avg_pool2d), (torch.amax, F.adaptive_max_pool2d)):
        ours = torch.stack([reduce(part, (2, 3)) for part in parts], 2)
        assert torch.allclose(ours, pool(maps, (count, 1)).squeeze(3), atol=1e-6)


def test_fewer_rows_than_parts_are_refused_with_the_setting_that_mends_it():
    model = build_model(config("pcb", "osnet_x0_25", height=80), 2).eval()
    with pytest.raises(UserError, match=r"last map has 5 rows, too few for 6 parts; give a larger --height"):
        model(torch.randn(1, 3, 80, 32))


@pytest.mark.parametrize(
    ("rows", "share", "size"), [(24, 1 / 3, 8), (16, 1 / 3, 5), (8, 1 / 3, 3), (8, 0.5, 4), (5, 0.0, 0), (1, 0.3, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_dropped_are_neighbouring_rows_whole_the_same_in_all_images_and_channels(rows, share, size, dtype):
    maps = torch.rand(3, 4, rows, 5).to(dtype) + 1
    maps[0, 0, :, 0] = torch.inf  # which a product with 0 would turn into NaN
    for seed in range(20):
        torch.manual_seed(seed)
        out = drop_rows(maps, share)
        gone = out.eq(0)
        assert out.dtype == dtype and torch.equal(gone, gone[:1, :1, :, :1].expand_as(gone))
        lost = gone[0, 0, :, 0].nonzero().flatten().tolist()
        assert lost == [*range(lost[0], lost[0] + size)] if size else not lost
        assert torch.equal(out[~gone], maps[~gone])


def test_all_places_of_the_block_are_equally_likely():
    tops = Counter(drop_rows(torch.ones(1, 1, 12, 1)).flatten().argmin().item() for _ in range(1800))
    assert set(tops) == set(range(9))  # 4 rows of 12
    assert all(abs(count - 200) < 70 for count in tops.values())  # five standard deviations


def test_one_number_of_torchs_generator_is_drawn_and_never_read():
    torch.manual_seed(5)
    drop_rows(torch.ones(4, 2, 6, 3))
    state = torch.get_rng_state()
    torch.manual_seed(5)
    torch.randint(5, (1,))
    assert torch.equal(torch.get_rng_state(), state)
    assert drop_rows(torch.empty(4, 2, 6, 3, device="meta")).shape == (4, 2, 6, 3)  # there is nothing to read here


def test_no_gradient_comes_from_dropped_rows():
    maps = torch.rand(2, 3, 9, 4, requires_grad=True)
    out = drop_rows(maps)
    out.sum().backward()
    assert torch.equal(maps.grad, (out != 0).float()) and (maps.grad == 0).sum() == 3 * 2 * 3 * 4
