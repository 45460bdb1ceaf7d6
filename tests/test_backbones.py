"""All backbones under one interface: torchvision's against torchvision, timm's against timm."""

import functools
import hashlib
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ROOT, fails, filled, means
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from config import Config
from config.config import BOTTLENECKS
from model import weights
from model.backbones import BACKBONES, find_backbone
from model.backbones.vit import resize_positions
from model.reid import embedding
from model.weights import load_backbone
from utils.errors import UserError

FINE = [name for name in BACKBONES if name.startswith(("osnet", "vit"))]  # at 1/16, without a last stride
TORCHVISION = [name for name in BACKBONES if name in models.list_models()]
FAMILIES = [
    "resnet18", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0",
    "regnet_y_400mf", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_16",
]  # fmt: skip
OTHERS = ["resnet18_ibn_b", "resnet50_ibn_a", "osnet_x0_25", "osnet_ibn_x1_0", "osnet_ain_x0_25"]
LARGE = [name for name in BACKBONES if name not in FAMILIES + OTHERS]
# the layer of torchvision's network whose output is the map, as its classifier is left out
MAP = {
    "resnet": "layer4", "resnext": "layer4", "mobilenet": "features", "shufflenet": "conv5", "efficientnet": "features",
    "regnet": "trunk_output", "convnext": "features", "swin": "permute", "vit": "encoder",
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


def make(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    settings = {"last_stride": 1 if name in FINE else 2} | settings
    return find_backbone(name)(Config(backbone=name, weights="none", **settings)).eval()


@functools.cache
def built(name: str) -> nn.Module:
    """For tests that do not change it; batch norms have statistics, so that signals neither vanish nor explode."""
    net = make(name)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        net.train()(torch.randn(8, 3, 64, 64))
    return net.eval()


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def on_meta(build) -> nn.Module:
    """Shapes without numbers, in evaluation mode; RegNet computes its widths with tensors, so it cannot start there."""
    try:
        with torch.device("meta"):
            return build().eval()
    except NotImplementedError:
        return build().to("meta").eval()


class Scale(nn.Module):
    """Stands for an attention module."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, channels)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = tuple(x.shape[1:])
        return x * self.weight


# ---- the interface, and torchvision's published figures


@pytest.mark.parametrize(
    "names", [FAMILIES + OTHERS, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["some", "rest"]
)
def test_every_backbone_has_the_interface_and_a_map_at_a_sixteenth_with_attention_after_each_stage(names):
    for name in names:
        net = on_meta(lambda name=name: make(name, last_stride=1))
        assert isinstance(net.attention, nn.ModuleDict) and not net.attention, name
        net.attention.update({str(n): Scale(channels).to("meta") for n, channels in enumerate(net.stage_channels, 1)})
        with torch.no_grad():
            assert net(torch.empty(2, 3, 64, 32, device="meta")).shape == (2, net.out_channels, 4, 2), name
        rows = [16, 8, 4, 4]  # after each stage
        if name in FINE:
            rows = [4, 4, 4, 4] if name == "vit_b_16" else [8, 4, 4]
        seen = [(channels, r, r // 2) for channels, r in zip(net.stage_channels, rows, strict=True)]
        assert [net.attention[str(n)].seen for n in range(1, len(rows) + 1)] == seen, name
        assert net.stage_channels[-1] == net.out_channels, name
        assert net.imagenet.startswith("https://"), name
        if name in TORCHVISION:  # the first version, with a hash in its name to check the download by
            expected = models.get_model_weights(name).IMAGENET1K_V1.url
            assert net.imagenet == expected and torch.hub.HASH_REGEX.search(expected), name


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAMILIES else pytest.mark.slow) for n in TORCHVISION]
)
def test_names_shapes_and_multiply_adds_are_those_that_torchvision_publishes(name):
    """`_ops` (in 10^9) of its weights, less the classifier."""
    weights = models.get_model_weights(name).IMAGENET1K_V1
    ours, theirs = on_meta(lambda: make(name)), on_meta(lambda: models.get_model(name))
    mine, whole = ({k: tuple(v.shape) for k, v in net.state_dict().items()} for net in (ours, theirs))
    classifier = {k: v for k, v in whole.items() if k not in mine}
    assert {k.split(".")[0] for k in classifier} <= {"fc", "classifier", "head", "heads"}
    assert mine | classifier == whole
    products = sum(p.numel() for k, p in theirs.named_parameters() if k in classifier and p.ndim > 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ours(torch.empty(1, 3, *weights.transforms().crop_size * 2, device="meta"))
    assert counter.get_total_flops() / 2 + products == pytest.approx(weights.meta["_ops"] * 1e9, abs=0.6e6)


# ---- in numbers


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS, *(pytest.param(n, marks=pytest.mark.slow) for n in LARGE)])
def test_every_backbone_gives_maps_and_trains(name):
    """Each image has its own map, all parameters are trained, in bfloat16 and channels last nearly the same comes out,
    and attention after the last stage scales the map."""
    least = 0.5 if name in LARGE else 0.85  # random weights of many layers make rounding grow
    net, images = deepcopy(built(name)), torch.randn(2, 3, 75, 50)
    if name == "vit_b_16":
        images = torch.randn(2, 3, 64, 48)
    maps = net(images)
    assert maps.shape[1] == net.out_channels and maps.shape[2] in (2, 3, 4) and maps.isfinite().all()
    (maps * torch.randn_like(maps)).sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        # a squeeze of few channels may be closed by its ReLU; instance norm cancels a bias before it
        assert parameter.grad.any() or key.endswith("bias") or any(w in key for w in (".fc", ".se.", ".gate.")), key
    with torch.no_grad():
        net, images = net.double(), images.double()  # rounding of float32 grows in deep networks of random weights
        maps = net(images)
        assert close(torch.cat([net(image[None]) for image in images]), maps, 1e-6)
        net.to(memory_format=torch.channels_last)
        assert close(net(images.contiguous(memory_format=torch.channels_last)), maps, 1e-6)
        net.float()
        images = torch.randn(1, 3, 96, 64)  # torch 2.14 on CPUs convolves maps of width 1 wrongly in bfloat16
        maps = net(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.cosine_similarity(net(images).float().flatten(), maps.flatten(), 0) > least
        last = str(len(net.stage_channels))
        net.attention[last] = Scale(net.out_channels)
        assert close(net(images), maps * net.attention[last].weight, 1e-3)
    if name in LARGE:
        built.cache_clear()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_map_is_torchvisions_and_twice_as_fine_without_the_last_stride(name):
    size = (224, 224) if name == "vit_b_16" else (96, 64)
    net, theirs, seen = built(name), models.get_model(name).eval(), []
    theirs.load_state_dict(net.state_dict(), strict=False)
    layer = MAP[name.split("_")[0].rstrip("0123456789")]
    theirs.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.append(out))
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        maps = net(images)
        theirs(images)
    (expected,) = seen
    if name.startswith("vit"):  # tokens, the class token first
        expected = expected[:, 1:].transpose(1, 2).reshape(1, 768, 14, 14)
    elif name.startswith("convnext"):  # its norm comes after the pooling there
        expected = theirs.classifier[0](expected)
    assert close(maps, expected)
    if name not in FINE:
        fine, before = make(name, last_stride=1), []
        fine.load_state_dict(net.state_dict())
        for one in (deepcopy(net), fine):
            one.get_submodule(one.stages[-1][0]).register_forward_pre_hook(lambda _m, args: before.append(args[0]))
            with torch.no_grad():
                out = one(images)
            assert out.shape[2:] == ((6, 4) if one is fine else (3, 2)) and out.isfinite().all()
        assert torch.equal(*before)  # what comes before the last stage is the same


def test_vit_resizes_positions_bilinearly_and_uses_them_and_its_class_token():
    for grid in ((16, 8), (14, 14), (4, 2), (30, 7)):
        positions = torch.randn(1, 196, 5, requires_grad=True)
        expected = F.interpolate(positions.transpose(1, 2).reshape(1, 5, 14, 14), grid, mode="bilinear")
        resized = resize_positions(positions, *grid)
        assert resized.shape == (1, 5, *grid) and torch.allclose(resized, expected, atol=1e-5)
        assert torch.autograd.grad(resized.sum(), positions)[0].any()
    net = deepcopy(built("vit_b_16"))
    images = torch.randn(1, 3, 16, 16).repeat(1, 1, 16, 8)  # all patches are alike
    with torch.no_grad():
        maps = net(images)
        assert maps.std((2, 3)).min() > 0.003
        net.class_token += torch.randn(768)
        assert not close(net(images), maps, 1e-3)
        net.encoder.pos_embedding[:, 1:] = 0
        assert net(images).std((2, 3)).max() < 1e-3


def test_torchvisions_vit_file_has_older_names_and_fits():
    net = deepcopy(built("vit_b_16"))
    state = {k: torch.full_like(v, 0.5) for k, v in net.state_dict().items()}
    old = {k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for k, v in state.items()}
    net.imagenet = lambda: old
    report = load_backbone(net, "imagenet")
    assert not report.missing and not report.skipped and all(v.eq(0.5).all() for v in net.state_dict().values())


def test_what_is_not_possible_is_refused_and_names_the_setting():
    for name, settings, words in (
        ("vit_b_16", {"last_stride": 2}, "--last-stride 2"),
        ("osnet_x0_25", {"last_stride": 2}, "--last-stride 2"),
        ("convnext_tiny", {"height": 64, "width": 31}, "--height 64 --width 31"),
        ("osnet_ain_x0_25", {"height": 31, "width": 16}, "--height 31 --width 16"),
        ("resnet49", {}, "resnet50"),
    ):
        with pytest.raises(UserError, match=words):
            make(name, **settings)
    for name in BOTTLENECKS:
        net = on_meta(lambda name=name: make(name, stride_in_1x1=True))
        assert net.layer3[0].conv1.stride == (2, 2) and net.layer3[0].conv2.stride == (1, 1)
        Config(backbone=name, stride_in_1x1=True).check()
    for name, setting, value in (("resnet18", "stride_in_1x1", True), ("resnet50", "width_multiplier", 0.5)):
        with pytest.raises(UserError, match=f"--{setting.replace('_', '-')} .*{name}"):
            Config(backbone=name, **{setting: value}).check()


@pytest.mark.slow
def test_a_resnet50_imports_no_other_backbone_branch_attention_or_loss():
    program = """
import sys
from config import Config
from loss import make_criterion
from model import make_model
model = make_model(Config(weights="none", height=64, width=32), 3)
make_criterion(Config(), 3, model.feature_dims, [head.add_margin for head in model.heads])
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("model", "loss")))
"""
    modules = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True).split()
    backbones = ["model.backbones", "model.backbones.resnet", "model.backbones.stages"]
    rest = ["model", *backbones, "model.heads", "model.pooling", "model.reid"]
    assert modules == ["loss", "loss.center", "loss.criterion", "loss.pairs", "loss.triplet", *rest]


# ---- timm


@pytest.mark.parametrize(
    ("name", "last_stride", "width", "cells"),
    [
        ("test_resnet", 1, 96, (8, 4)),
        ("test_resnet", 2, 96, (4, 2)),
        ("test_convnext", 2, 64, (4, 2)),
        ("test_vit", 1, 64, (8, 4)),  # tokens, one of them a class token
        ("swin_tiny_patch4_window7_224", 2, 768, (4, 2)),  # channels last
        ("resmlp_12_224", 1, 384, (8, 4)),  # tokens, no class token
    ],
)
def test_timm_networks_give_maps_with_patches_in_place_and_keep_timms_names(name, last_stride, width, cells):
    timm = pytest.importorskip("timm")
    net = make(f"timm/{name}", last_stride=last_stride, height=128, width=64)
    assert net.out_channels == width and net.stage_channels == (width,)
    images = torch.randn(2, 3, 128, 64)
    size = 128 // cells[0]
    changed = images.clone()
    changed[:, :, 2 * size : 3 * size, size : 2 * size] += 10
    with torch.no_grad():
        maps = net(images)
        if name in ("test_vit", "swin_tiny_patch4_window7_224"):
            assert (net(changed) - maps).norm(dim=1)[0].argmax() == 2 * cells[1] + 1
    assert maps.shape == (2, width, *cells)
    assert set(net.state_dict()) <= set(timm.create_model(name).state_dict())
    net.attention["1"] = Scale(width)
    again = deepcopy(net)  # as for the average of the weights
    again.train()(images).square().sum().backward()
    assert again.attention["1"].weight.grad.any() and net.attention["1"].weight.grad is None
    with torch.no_grad():
        assert torch.allclose(net(images), maps * net.attention["1"].weight)


def test_what_timm_cannot_give_is_refused_and_its_files_load(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    for name, last_stride, words in (
        ("test_vit", 2, "--last-stride 2 .*test_vit.*give --last-stride 1"),
        ("densenet121", 1, "map of 4 x 2 for 128 x 64; give --last-stride 2"),
        ("resnet18x", 1, "called resnet18x; did you mean .*timm/resnet18"),
    ):
        with pytest.raises(UserError, match=words):
            make(f"timm/{name}", height=128, width=64, last_stride=last_stride)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "pytorch_model.bin")
    net = find_backbone("timm/test_resnet")(Config(backbone="timm/test_resnet", height=64, width=32))
    assert all(m.training for m in net.modules()) and net.bn1.num_batches_tracked == 0  # the probe left no trace
    report = load_backbone(net, str(tmp_path / "pytorch_model.bin"))
    assert not report.missing and sorted(report.skipped) == ["fc.bias", "fc.weight"]
    monkeypatch.setattr(timm, "create_model", fails(ValueError("no such host\nand more")))
    with pytest.raises(UserError, match=r"\(no such host\).*https://huggingface\.co/timm/test_resnet\.r160_in1k"):
        load_backbone(net, "imagenet")


# ---- OSNet against torchreid f8cd150, ResNet-IBN against XingangPan/IBN-Net d167338


# theirs, of every net but its classifier: a digest of names and shapes, and for `filled` weights and random images in
# float64 the mean of the map, its mean weighted by -1 to 1 in the order of the numbers, and the same of OSNet's
# embedding, or of the map of a ResNet with last stride 1
THEIRS = {
    "osnet_x1_0": ("5f0d0f053f51", 0.341015421, 0.0248803378, 0.292685779, 0.00627642166),
    "osnet_x0_75": ("f76bb5964c9b", 0.260615543, -0.00149539075, 0.207701251, -0.00879961535),
    "osnet_x0_5": ("21c0959d7070", 0.426306727, 0.000132630824, 0.322030994, -0.0158666857),
    "osnet_x0_25": ("b516b249abfe", 0.438759933, -0.0110486213, 0.271803263, -0.00265843539),
    "osnet_ibn_x1_0": ("71427fbff8b7", 0.220051822, 0.00410398386, 0.160896604, -0.00364502865),
    "osnet_ain_x1_0": ("b05919ece0aa", 0.416884872, -0.0240496438, 0.281981047, 0.0144024519),
    "osnet_ain_x0_75": ("a621f7817f19", 0.40079315, 0.0162380452, 0.30534904, 0.0135623741),
    "osnet_ain_x0_5": ("ce464eeda4e8", 0.533351505, 0.03057028, 0.344839633, -0.0055097677),
    "osnet_ain_x0_25": ("c592164ad131", 0.359789061, 0.030877519, 0.269273995, -0.0114588686),
    "resnet50_ibn_a": ("40058c8fec52", 1.12198223, -0.0029632673, 1.41486925, 0.000727962808),
    "resnet101_ibn_a": ("ec9796a8111c", 3.11962061, 0.0740124453, 3.55581387, 0.0913252386),
    "resnet18_ibn_b": ("1873ad0e01a5", 0.339412119, 0.00726030596, 0.451213223, 0.0284585309),
    "resnet50_ibn_b": ("e028a752fd58", 0.676782115, -0.00503869803, 0.765085867, -0.00155648941),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "resnet101_ibn_a" else []) for n in THEIRS]
)
def test_names_shapes_and_maps_are_those_of_the_authors(name):
    osnet, net = name.startswith("osnet"), make(name)
    if osnet:
        net.fc = embedding(net.out_channels, 512)  # under the name that it has in published files
    net = filled(net)
    text = "\n".join(f"{k} {tuple(v.shape)}" for k, v in sorted(net.state_dict().items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == THEIRS[name][0]
    images = torch.from_numpy(np.random.RandomState(1).randn(1, 3, 64, 32))
    with torch.no_grad():
        maps = net(images)
        if osnet:
            other = net.fc(maps.mean((2, 3)))
        else:
            finer = make(name, last_stride=1).double()
            finer.load_state_dict(net.state_dict())
            other = finer(images)
    assert maps.shape[2:] == ((4, 2) if osnet else (2, 1)) and other.shape[2:] == (() if osnet else (4, 2))
    assert means(maps) + means(other) == pytest.approx(THEIRS[name][1:], rel=1e-6)
    if not osnet:
        release = r"https://github\.com/XingangPan/IBN-Net/releases/download/v1\.0/"
        assert re.fullmatch(rf"{release}{name}-[0-9a-f]{{8}}\.pth", net.imagenet)


def test_a_download_with_another_hash_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    file = tmp_path / "w-00000000.pth"
    torch.save({"a": torch.ones(2)}, file)
    with pytest.raises(UserError, match=r"invalid hash.*--weights FILE"):
        weights.download(SimpleNamespace(imagenet=file.as_uri()))
