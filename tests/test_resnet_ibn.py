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

from config import Config
from model.backbones import resnet_ibn
from model.backbones.resnet_ibn import ReleasedWeights
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
