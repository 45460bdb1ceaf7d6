"""OSNet against torchreid (KaiyangZhou/deep-person-reid f8cd150), ResNet-IBN against XingangPan/IBN-Net d167338."""

import hashlib
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import filled, means
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from model import weights
from model.backbones import resnet_ibn
from model.backbones.osnet import osnet
from model.reid import embedding
from model.weights import load_backbone
from utils.errors import UserError

IBN = {"conv1.bn", "conv2.0.IN", "conv2.1.IN"}
INSTANCE_NORMS = {"osnet": set(), "osnet_ibn": IBN, "osnet_ain": IBN | {"conv3.1.IN", "conv4.0.IN"}}

# torchreid's, of every net but its classifier: a digest of names and shapes, and for `filled` weights and random images
# in float64 the mean of the map, its mean weighted by -1 to 1 in the order of the numbers, the same of the embedding
TORCHREID = {
    "osnet_x1_0": ("5f0d0f053f51", 0.341015421, 0.0248803378, 0.292685779, 0.00627642166),
    "osnet_x0_75": ("f76bb5964c9b", 0.260615543, -0.00149539075, 0.207701251, -0.00879961535),
    "osnet_x0_5": ("21c0959d7070", 0.426306727, 0.000132630824, 0.322030994, -0.0158666857),
    "osnet_x0_25": ("b516b249abfe", 0.438759933, -0.0110486213, 0.271803263, -0.00265843539),
    "osnet_ibn_x1_0": ("71427fbff8b7", 0.220051822, 0.00410398386, 0.160896604, -0.00364502865),
    "osnet_ain_x1_0": ("b05919ece0aa", 0.416884872, -0.0240496438, 0.281981047, 0.0144024519),
    "osnet_ain_x0_75": ("a621f7817f19", 0.40079315, 0.0162380452, 0.30534904, 0.0135623741),
    "osnet_ain_x0_5": ("ce464eeda4e8", 0.533351505, 0.03057028, 0.344839633, -0.0055097677),
    "osnet_ain_x0_25": ("c592164ad131", 0.359789061, 0.030877519, 0.269273995, -0.0114588686),
}


def make_osnet(name: str) -> nn.Module:
    """The backbone with its embedding under the name that it has in published files."""
    torch.manual_seed(0)
    net = osnet(Config(backbone=name, weights="none"))
    net.fc = embedding(net.out_channels, 512)
    return net


@pytest.mark.parametrize("name", TORCHREID)
def test_names_shapes_maps_and_embeddings_are_torchreids(name):
    net = filled(make_osnet(name))
    text = "\n".join(f"{k} {tuple(v.shape)}" for k, v in sorted(net.state_dict().items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == TORCHREID[name][0]
    with torch.no_grad():
        maps = net(torch.from_numpy(np.random.RandomState(1).randn(1, 3, 64, 32)))
        embeddings = net.fc(maps.mean((2, 3)))
    assert maps.shape == (1, net.out_channels, 4, 2) and embeddings.shape == (1, 512)
    assert means(maps) + means(embeddings) == pytest.approx(TORCHREID[name][1:], rel=1e-6)
    found = {n: m for n, m in net.named_modules() if isinstance(m, nn.InstanceNorm2d)}
    assert set(found) == INSTANCE_NORMS[name.rpartition("_x")[0]]
    assert all(m.affine and not m.track_running_stats for m in found.values())


def test_parameters_and_multiply_adds_are_the_papers():
    """The paper's table of width multipliers, in millions, at 256 × 128. It counts convolutions and linear layers, with
    the embedding and without the classifier; OSNet-AIN costs the same (torchreid's model zoo)."""
    published = {"x1_0": (2.2, 978.9), "x0_75": (1.3, 571.8), "x0_5": (0.6, 272.9), "x0_25": (0.2, 82.3)}
    for name in ("osnet_x1_0", "osnet_x0_5", "osnet_x0_25", "osnet_ain_x1_0"):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            net = make_osnet(name).eval()
            net.fc(net(torch.empty(1, 3, 256, 128)).mean((2, 3)))
        counted = sum(p.numel() for p in net.parameters()), counter.get_total_flops() / 2
        assert tuple(round(number / 1e6, 1) for number in counted) == published["x" + name.split("_x")[1]]


# ---- ResNet-IBN

# theirs, of every net but its classifier: a digest of names and shapes, and for `filled` weights and random images in
# float64 the mean of the map and its mean weighted by -1 to 1 in the order of the numbers, with last stride 2, then 1
THEIRS = {
    "resnet50_ibn_a": ("40058c8fec52", 1.12198223, -0.0029632673, 1.41486925, 0.000727962808),
    "resnet101_ibn_a": ("ec9796a8111c", 3.11962061, 0.0740124453, 3.55581387, 0.0913252386),
    "resnet18_ibn_b": ("1873ad0e01a5", 0.339412119, 0.00726030596, 0.451213223, 0.0284585309),
    "resnet50_ibn_b": ("e028a752fd58", 0.676782115, -0.00503869803, 0.765085867, -0.00155648941),
}


def make_ibn(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    return resnet_ibn.resnet_ibn(Config(backbone=name, weights="none", **settings))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "resnet101_ibn_a" else []) for n in THEIRS]
)
def test_names_shapes_and_maps_are_theirs_with_either_last_stride(name):
    net = filled(make_ibn(name, last_stride=2))
    text = "\n".join(f"{k} {tuple(v.shape)}" for k, v in sorted(net.state_dict().items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == THEIRS[name][0]
    finer = make_ibn(name, last_stride=1).double().eval()
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
        net = SimpleNamespace(imagenet=file.as_uri())
        if right:
            assert torch.equal(weights.download(net)["a"], torch.ones(2))
        else:
            with pytest.raises(UserError, match=r"invalid hash.*--weights FILE"):
                weights.download(net)

    def offline(url: str, check_hash: bool, **_options):
        assert check_hash and torch.hub.HASH_REGEX.search(url.rsplit("/", 1)[-1])
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr(weights, "load_state_dict_from_url", offline)
    for name in THEIRS:
        address = rf"https://github\.com/XingangPan/IBN-Net/releases/download/v1\.0/{name}-[0-9a-f]{{8}}\.pth"
        with torch.device("meta"), pytest.raises(UserError, match=rf"{address}.*--weights FILE"):
            load_backbone(make_ibn(name), "imagenet")
