"""ResNet-IBN against its authors': numbers called theirs were computed with XingangPan/IBN-Net d167338."""

from __future__ import annotations

import hashlib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import filled, means
from torch import nn
from torchvision.models.resnet import BasicBlock

from config import Config
from model.backbones import resnet_ibn
from model.backbones.resnet_ibn import IBN, NormAfterSum, ReleasedWeights
from model.weights import load_backbone
from utils.errors import UserError

# theirs, of every net but its classifier: a digest of names and shapes, and for `filled` weights and random images in
# float64 the mean of the map and its mean weighted by -1 to 1 in the order of the numbers, with last stride 2, then 1
THEIRS = {
    "resnet50_ibn_a": ("40058c8fec52", 1.12198223, -0.0029632673, 1.41486925, 0.000727962808),
    "resnet101_ibn_a": ("ec9796a8111c", 3.11962061, 0.0740124453, 3.55581387, 0.0913252386),
    "resnet18_ibn_b": ("1873ad0e01a5", 0.339412119, 0.00726030596, 0.451213223, 0.0284585309),
    "resnet50_ibn_b": ("e028a752fd58", 0.676782115, -0.00503869803, 0.765085867, -0.00155648941),
}


def make(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    return resnet_ibn.resnet_ibn(Config(backbone=name, weights="none", **settings))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "resnet101_ibn_a" else []) for n in THEIRS]
)
def test_names_shapes_and_maps_are_theirs_with_either_last_stride(name):
    net = filled(make(name, last_stride=2))
    text = "\n".join(f"{k} {tuple(v.shape)}" for k, v in sorted(net.state_dict().items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == THEIRS[name][0]
    finer = make(name, last_stride=1).double().eval()
    finer.load_state_dict(net.state_dict())
    images = torch.from_numpy(np.random.RandomState(1).randn(1, 3, 64, 32))
    with torch.no_grad():
        maps, fine_maps = net(images), finer(images)
    assert maps.shape == (1, net.out_channels, 2, 1) and fine_maps.shape == (1, net.out_channels, 4, 2)
    assert means(maps) + means(fine_maps) == pytest.approx(THEIRS[name][1:], rel=1e-6)


def test_instance_norm_is_where_the_paper_has_it_and_learns_a_scale():
    blocks = ((1, 3), (2, 4), (3, 6))
    for name, expected in (
        ("resnet50_ibn_a", {f"layer{stage}.{n}.bn1.IN" for stage, count in blocks for n in range(count)}),
        ("resnet18_ibn_b", {"bn1", "layer1.1.IN", "layer2.1.IN"}),
        ("resnet50_ibn_b", {"bn1", "layer1.2.IN", "layer2.3.IN"}),
    ):
        with torch.device("meta"):
            found = {n: m for n, m in make(name).named_modules() if isinstance(m, nn.InstanceNorm2d)}
        assert set(found) == expected
        assert all(m.affine and not m.track_running_stats for m in found.values())


def test_ibn_normalises_half_the_channels_by_image_and_the_rest_by_batch():
    torch.manual_seed(0)
    for channels, first in ((64, 32), (7, 3), (2, 1)):
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


def test_b_normalises_the_sum_with_the_shortcut_before_the_relu():
    torch.manual_seed(0)
    block = NormAfterSum(BasicBlock(8, 8), 8).eval()
    x, offset = torch.randn(2, 8, 6, 4), torch.linspace(0, 5, 8).view(8, 1, 1)
    with torch.no_grad():
        plain = block(x)
        block.bn2.bias += offset.flatten()  # a constant before the norm cancels
        assert torch.allclose(block(x), plain, atol=1e-4) and plain.min() == 0
        block.IN.bias.fill_(-100)
        assert not block(x).any()


def test_imagenet_weights_are_the_authors_release_checked_by_their_hash(tmp_path: Path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for digits, right in ((hashlib.sha256(content).hexdigest()[:8], True), ("00000000", False)):
        file = tmp_path / f"w-{digits}.pth"
        file.write_bytes(content)
        if right:
            assert torch.equal(ReleasedWeights(file.as_uri()).get_state_dict(False, True)["a"], torch.ones(2))
        else:
            with pytest.raises(RuntimeError, match="invalid hash"):
                ReleasedWeights(file.as_uri()).get_state_dict(False, True)

    def offline(url: str, progress: bool, check_hash: bool, **_options):
        assert check_hash and torch.hub.HASH_REGEX.search(url.rsplit("/", 1)[-1])
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr(resnet_ibn, "load_state_dict_from_url", offline)
    for name in THEIRS:
        address = rf"https://github\.com/XingangPan/IBN-Net/releases/download/v1\.0/{name}-[0-9a-f]{{8}}\.pth"
        with torch.device("meta"), pytest.raises(UserError, match=rf"{address}.*--weights FILE"):
            load_backbone(make(name), "imagenet")
