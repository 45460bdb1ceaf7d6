"""ResNet-IBN beside its authors'. What is called theirs below was computed with XingangPan/IBN-Net d167338."""

from __future__ import annotations

import hashlib
import urllib.error
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from helpers import filled, means
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from model.backbones import resnet_ibn
from model.backbones.resnet_ibn import IBN, BasicBlockIBN, BottleneckIBN, ReleasedWeights, ResNetIBN
from model.weights import load_backbone
from utils.errors import UserError

# theirs, of every net but its classifier: a digest of names and shapes, and for `filled` weights and `pictures` in
# float64 the mean of the map and its mean weighed by -1 to 1 in the order of the numbers, with last stride 2, then 1
THEIRS = {
    "resnet50_ibn_a": ("40058c8fec52", 1.12198223, -0.0029632673, 1.41486925, 0.000727962808),
    "resnet101_ibn_a": ("ec9796a8111c", 3.11962061, 0.0740124453, 3.55581387, 0.0913252386),
    "resnet18_ibn_b": ("1873ad0e01a5", 0.339412119, 0.00726030596, 0.451213223, 0.0284585309),
    "resnet50_ibn_b": ("e028a752fd58", 0.676782115, -0.00503869803, 0.765085867, -0.00155648941),
}


def make(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    return getattr(resnet_ibn, name)(Config(backbone=name, weights="none", **settings))


def small(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return ResNetIBN({"a": BottleneckIBN, "b": BasicBlockIBN}[kind], [1, 2, 2, 1], kind, last_stride=1)


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in net.state_dict().items() if not k.startswith("fc.")}


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file without its classifier: torchvision's ResNet with other norms."""
    plain = shapes(getattr(torchvision.models, name.split("_")[0])())
    out: dict[str, tuple[int, ...]] = {}
    for key, shape in plain.items():
        block, _, part = key.rpartition(".bn1.")
        if name.endswith("a") and block.startswith(("layer1", "layer2", "layer3")):
            half = tuple(c // 2 for c in shape)
            out[f"{block}.bn1.BN.{part}"] = half
            if part in ("weight", "bias"):
                out[f"{block}.bn1.IN.{part}"] = half
        elif name.endswith("a") or key not in ("bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"):
            out[key] = shape
    if name.endswith("b"):
        last, expansion = {"resnet18_ibn_b": ((1, 1), 1), "resnet50_ibn_b": ((2, 3), 4)}[name]
        for stage, width in ((1, 64), (2, 128)):
            for part in ("weight", "bias"):
                out[f"layer{stage}.{last[stage - 1]}.IN.{part}"] = (width * expansion,)
    return out


@pytest.mark.parametrize("name", THEIRS)
def test_names_and_shapes_are_theirs(name):
    with torch.device("meta"):
        published, ours = published_shapes(name), shapes(make(name))
    text = "\n".join(f"{k} {v}" for k, v in sorted(published.items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == THEIRS[name][0]  # the list itself is right
    assert ours == published


@pytest.mark.parametrize("name", THEIRS)
def test_maps_are_theirs_with_either_last_stride(name):
    net = filled(make(name, last_stride=2))
    finer = make(name, last_stride=1).double().eval()
    finer.load_state_dict(net.state_dict())
    images = torch.from_numpy(np.random.RandomState(1).randn(1, 3, 64, 32))
    with torch.no_grad():
        maps, fine_maps = net(images), finer(images)
    assert maps.shape == (1, net.out_channels, 2, 1) and fine_maps.shape == (1, net.out_channels, 4, 2)
    assert means(maps) + means(fine_maps) == pytest.approx(THEIRS[name][1:], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet50_ibn_a", 25.557032), ("resnet101_ibn_a", 44.549160), ("resnet18_ibn_b", 11.689896)],
)
def test_ibn_adds_no_parameter_to_the_resnet_but_for_the_norms_of_b(name, millions):
    """With ImageNet's classifier of 1,000 classes. IBN-a has exactly as many as torchvision's ResNet."""
    with torch.device("meta"):
        net = make(name)
        plain = getattr(torchvision.models, name.split("_")[0])()
    count = sum(p.numel() for p in (*net.parameters(), *nn.Linear(net.out_channels, 1000).parameters()))
    assert count == round(millions * 1e6)
    added = {"a": 0, "b": 2 * (64 + 128)}[name[-1]]
    assert count - sum(p.numel() for p in plain.parameters()) == added


def test_resnet50_ibn_costs_as_much_as_resnet50():
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        make("resnet50_ibn_a").eval()(torch.empty(1, 3, 256, 128))
    assert counter.get_total_flops() / 2 == pytest.approx(4.08e9, rel=0.01)  # Matrix Light ReID's ResNet50


@pytest.mark.parametrize(("channels", "first"), [(64, 32), (7, 3), (2, 1)])
def test_ibn_normalises_half_the_channels_by_image_and_the_rest_by_batch(channels, first):
    torch.manual_seed(0)
    layer = IBN(channels).train()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 2)
    x = torch.randn(4, channels, 6, 5) * 3 + 1
    out = layer(x)
    for c in range(channels):
        where = (2, 3) if c < first else (0, 2, 3)
        centred = x[:, c : c + 1] - x[:, c : c + 1].mean(where, keepdim=True)
        unit = centred / (centred.square().mean(where, keepdim=True) + 1e-5).sqrt()
        norm, i = (layer.IN, c) if c < first else (layer.BN, c - first)
        assert torch.allclose(out[:, c : c + 1], unit * norm.weight[i] + norm.bias[i], atol=1e-5)
    assert layer.BN.running_mean.any() and layer.IN.running_mean is None


def test_ibn_in_a_test_still_normalises_each_image_by_itself():
    layer = IBN(8).eval()
    x = torch.randn(3, 8, 6, 5)
    with torch.no_grad():
        brighter = layer(x * 5 + 2)
    assert torch.allclose(brighter[:, :4], layer(x)[:, :4], atol=1e-4)
    assert torch.allclose(brighter[:, 4:], x[:, 4:] * 5 + 2, atol=1e-3)  # running statistics: mean 0, variance 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50_ibn_a", {f"layer{s}.{b}.bn1.IN" for s, n in ((1, 3), (2, 4), (3, 6)) for b in range(n)}),
        ("resnet101_ibn_a", {f"layer{s}.{b}.bn1.IN" for s, n in ((1, 3), (2, 4), (3, 23)) for b in range(n)}),
        ("resnet18_ibn_b", {"bn1", "layer1.1.IN", "layer2.1.IN"}),
        ("resnet50_ibn_b", {"bn1", "layer1.2.IN", "layer2.3.IN"}),
    ],
)
def test_instance_norm_is_where_the_paper_has_it_and_learns_a_scale(name, expected):
    with torch.device("meta"):
        found = {n: m for n, m in make(name).named_modules() if isinstance(m, nn.InstanceNorm2d)}
    assert set(found) == expected
    assert all(m.affine and not m.track_running_stats for m in found.values())


@pytest.mark.parametrize(("kind", "planes"), [(BasicBlockIBN, 64), (BottleneckIBN, 16)])
def test_b_normalises_the_sum_of_branch_and_shortcut_before_the_relu(kind, planes):
    torch.manual_seed(0)
    block = kind(64, planes)
    block.IN = nn.InstanceNorm2d(64, affine=True)
    x = torch.randn(2, 64, 8, 4)
    offset = torch.linspace(0, 5, 64).view(64, 1, 1)
    moved = deepcopy(block.eval())
    moved.downsample = nn.Sequential()
    moved.downsample.register_forward_hook(lambda _m, _i, out: out + offset)
    with torch.no_grad():
        assert torch.allclose(block(x), moved(x), atol=1e-4)  # a constant on the shortcut is undone
        block.IN.bias.fill_(-100)
        assert not block(x).any()


@pytest.mark.parametrize("kind", ["a", "b"])
@pytest.mark.parametrize(("size", "cells"), [((127, 61), (8, 4)), ((33, 97), (3, 7))])
def test_maps_are_at_a_sixteenth_for_any_size_and_each_image_stands_alone(kind, size, cells):
    net = small(kind).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = net(images)
        alone = torch.cat([net(image[None]) for image in images])
    assert maps.shape == (2, net.out_channels, *cells)
    assert torch.allclose(maps, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["a", "b"])
def test_half_precision_gives_nearly_the_same_features(kind, dtype):
    net = small(kind).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        exact = net(images).mean((2, 3))
        with torch.autocast("cpu", dtype=dtype):
            automatic = net(images).mean((2, 3))
        half = net.to(dtype)(images.to(dtype)).mean((2, 3))
    for out in (automatic, half):
        assert out.dtype == dtype
        assert (out.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("kind", ["a", "b"])
def test_channels_last_changes_nothing(kind):
    net = small(kind).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        plain = net(images)
        last = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["a", "b"])
def test_every_parameter_is_trained(kind):
    net = small(kind).train()
    out = net(torch.randn(4, 3, 64, 32))
    (out * torch.randn_like(out)).sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any() or key.endswith("bias"), key  # instance norm takes out a bias that is added before


@pytest.mark.parametrize("kind", ["a", "b"])
def test_attention_runs_after_its_stage_on_what_the_stage_gives(kind):
    class Negative(nn.Module):
        def forward(self, x):
            seen.append(x)
            return -x

    net = small(kind).eval()
    keys = list(net.state_dict())
    images = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        plain = net(images)
        for stage, cells in (("1", (16, 8)), ("2", (8, 4)), ("3", (4, 2)), ("4", (4, 2))):
            seen: list[torch.Tensor] = []
            net.attention = nn.ModuleDict({stage: Negative()})
            out = net(images)
            assert [x.shape for x in seen] == [(1, net.stage_channels[int(stage) - 1], *cells)]
            assert torch.equal(out, -plain) if stage == "4" else not torch.allclose(out, plain)
    assert list(net.state_dict()) == keys and net.stage_channels[-1] == net.out_channels


def test_images_that_leave_instance_norm_one_cell_are_refused():
    with pytest.raises(UserError, match=r"resnet50_ibn_a .*--height 16 --width 31; give --height 32"):
        make("resnet50_ibn_a", height=16, width=31)
    make("resnet50_ibn_a", height=32, width=16).train()(torch.randn(2, 3, 32, 16))
    make("resnet18_ibn_b", height=16, width=16).train()(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("name", THEIRS)
def test_imagenet_weights_are_asked_of_the_authors_release_with_a_hash_that_torch_hub_finds(name, monkeypatch):
    def offline(url: str, progress: bool, check_hash: bool, **_options):
        assert check_hash and torch.hub.HASH_REGEX.search(url.rsplit("/", 1)[-1])
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr(resnet_ibn, "load_state_dict_from_url", offline)
    address = rf"https://github\.com/XingangPan/IBN-Net/releases/download/v1\.0/{name}-[0-9a-f]{{8}}\.pth"
    with torch.device("meta"), pytest.raises(UserError, match=rf"weights {name}.*{address} elsewhere.*--weights FILE"):
        load_backbone(make(name), "imagenet")


def test_downloaded_weights_are_checked_against_their_hash(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    for digits, right in ((hashlib.sha256(content).hexdigest()[:8], True), ("00000000", False)):
        file = tmp_path / f"w-{digits}.pth"
        file.write_bytes(content)
        weights = ReleasedWeights(file.as_uri())
        assert str(weights) == file.name
        if right:
            assert torch.equal(weights.get_state_dict(progress=False, check_hash=True)["a"], torch.ones(2))
        else:
            with pytest.raises(RuntimeError, match="invalid hash"):
                weights.get_state_dict(progress=False, check_hash=True)


def test_a_whole_published_file_loads_but_for_its_classifier(tmp_path: Path):
    source = make("resnet18_ibn_b")
    source.fc = nn.Linear(512, 1000)
    torch.save(nn.DataParallel(source).state_dict(), tmp_path / "resnet18_ibn_b.pth")
    net = make("resnet18_ibn_b")
    report = load_backbone(net, str(tmp_path / "resnet18_ibn_b.pth"))
    assert not report.missing and report.skipped == ["fc.bias", "fc.weight"]
