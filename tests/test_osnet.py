"""OSNet beside torchreid's. What is called torchreid's below was computed with KaiyangZhou/deep-person-reid f8cd150."""

from __future__ import annotations

import hashlib
from copy import deepcopy

import numpy as np
import pytest
import torch
from helpers import filled, means
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from config import Config
from model.backbones.osnet import OSNETS, PUBLISHED, AINBlock, OSBlock, OSNet
from model.reid import embedding
from model.weights import load_backbone
from utils.errors import UserError

WIDTHS = {"x1_0": (64, 256, 384, 512), "x0_75": (48, 192, 288, 384), "x0_5": (32, 128, 192, 256)}
WIDTHS["x0_25"] = (16, 64, 96, 128)
IBN = ("conv1.bn", "conv2.0.IN", "conv2.1.IN")
INSTANCE_NORMS = {"osnet": (), "osnet_ibn": IBN, "osnet_ain": (*IBN, "conv3.1.IN", "conv4.0.IN")}
KINDS = ["bn", "ibn", "ain"]

# torchreid's, of every net but its classifier: a digest of names and shapes, and for `filled` weights and `pictures`
# in float64 the mean of the map, its mean weighed by -1 to 1 in the order of the numbers, the same two of the embedding
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


def make(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    return OSNETS[name](Config(backbone=name, weights="none", **settings))


def small(kind: str) -> nn.Module:
    """A net of the kind at width x0.25, and an embedding, which its forward does not use."""
    torch.manual_seed(0)
    net = OSNet(WIDTHS["x0_25"], kind)
    net.fc = embedding(net.out_channels, 512)
    return net


def published_net(name: str) -> nn.Module:
    """The backbone with its embedding under the name that the published files have it under."""
    net = make(name)
    net.fc = embedding(net.out_channels, 512)
    return net


def pictures() -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(1).randn(1, 3, 64, 32))


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file without its classifier, written down from the papers' figures."""
    kind, _, width = name.rpartition("_x")
    ain, c = kind == "osnet_ain", WIDTHS[f"x{width}"]
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(at: str, width: int) -> None:
        running = () if at in INSTANCE_NORMS[kind] else ("running_mean", "running_var")
        shapes.update({f"{at}.{part}": (width,) for part in ("weight", "bias", *running)})
        if running:
            shapes[f"{at}.num_batches_tracked"] = ()

    def convolution(at: str, c_in: int, c_out: int, kernel: int = 1, bn: bool = True) -> None:
        shapes[f"{at}.conv.weight"] = (c_out, c_in, kernel, kernel)
        if bn:
            norm(f"{at}.bn", c_out)

    def block(at: str, c_in: int, c_out: int) -> None:
        middle, inner = c_out // 4, f"{at}.IN" in INSTANCE_NORMS[kind]
        convolution(f"{at}.conv1", c_in, middle)
        convolution(f"{at}.conv3", middle, c_out, bn=not (ain and inner))
        if c_in != c_out:
            convolution(f"{at}.downsample", c_in, c_out)
        if inner:
            norm(f"{at}.IN", c_out)
        for depth, letter in zip((1, 2, 3, 4), "abcd", strict=True):
            for i in range(depth):
                light = f"{at}.conv2.{depth - 1}.layers.{i}" if ain else f"{at}.conv2{letter}.{i}"
                light = light.removesuffix(".0") if depth == 1 and not ain else light
                shapes[f"{light}.conv1.weight"] = (middle, middle, 1, 1)
                shapes[f"{light}.conv2.weight"] = (middle, 1, 3, 3)
                norm(f"{light}.bn", middle)
        for layer, out, into in (("fc1", middle // 16, middle), ("fc2", middle, middle // 16)):
            shapes[f"{at}.gate.{layer}.weight"], shapes[f"{at}.gate.{layer}.bias"] = (out, into, 1, 1), (out,)

    convolution("conv1", 3, c[0], 7)
    for stage in (1, 2, 3):
        block(f"conv{stage + 1}.0", c[stage - 1], c[stage])
        block(f"conv{stage + 1}.1", c[stage], c[stage])
        if stage < 3:
            convolution(f"pool{stage + 1}.0" if ain else f"conv{stage + 1}.2.0", c[stage], c[stage])
    convolution("conv5", c[3], c[3])
    shapes["fc.0.weight"], shapes["fc.0.bias"] = (512, c[3]), (512,)
    norm("fc.1", 512)
    return shapes


@pytest.mark.parametrize("name", OSNETS)
def test_names_and_shapes_are_torchreids(name):
    published = published_shapes(name)
    text = "\n".join(f"{k} {v}" for k, v in sorted(published.items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == TORCHREID[name][0]  # the list itself is right
    with torch.device("meta"):
        assert {k: tuple(v.shape) for k, v in published_net(name).state_dict().items()} == published


@pytest.mark.parametrize("name", OSNETS)
def test_maps_and_embeddings_are_torchreids(name):
    net = filled(published_net(name))
    with torch.no_grad():
        maps = net(pictures())
        embeddings = net.fc(maps.mean((2, 3)))
    assert maps.shape == (1, net.out_channels, 4, 2) and embeddings.shape == (1, 512)
    assert means(maps) + means(embeddings) == pytest.approx(TORCHREID[name][1:], rel=1e-6)


@pytest.mark.parametrize("name", ["osnet_x1_0", "osnet_x0_75", "osnet_x0_5", "osnet_x0_25", "osnet_ain_x1_0"])
def test_parameters_and_multiply_adds_are_the_papers(name):
    """The paper's table of width multipliers, in millions, at 256 × 128. It counts convolutions and linear layers, with
    the embedding and without the classifier; OSNet-AIN costs the same (torchreid's model zoo)."""
    published = {"x1_0": (2.2, 978.9), "x0_75": (1.3, 571.8), "x0_5": (0.6, 272.9), "x0_25": (0.2, 82.3)}
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = published_net(name).eval()
        net.fc(net(torch.empty(1, 3, 256, 128)).mean((2, 3)))
    counted = sum(p.numel() for p in net.parameters()), counter.get_total_flops() / 2
    assert tuple(round(number / 1e6, 1) for number in counted) == published["x" + name.split("_x")[1]]


def test_a_whole_torchreid_file_loads_with_nothing_missing(tmp_path):
    source = published_net("osnet_x0_25")
    source.classifier = nn.Linear(512, 751)
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 150, "rank1": 0.912}, tmp_path / "model.pth.tar-150")
    net = make("osnet_x0_25")
    report = load_backbone(net, str(tmp_path / "model.pth.tar-150"))
    assert not report.missing and len(report.loaded) == len(net.state_dict()) == 558
    assert {k.split(".")[0] for k in report.skipped} == {"fc", "classifier"}
    embedding(128, 512).load_state_dict(
        {k[len("fc.") :]: v for k, v in source.state_dict().items() if k.startswith("fc.")}
    )


@pytest.mark.parametrize("name", OSNETS)
def test_instance_norm_is_where_the_papers_have_it_and_learns_a_scale(name):
    found = {n: m for n, m in make(name).named_modules() if isinstance(m, nn.InstanceNorm2d)}
    assert set(found) == set(INSTANCE_NORMS[name.rpartition("_x")[0]])
    assert all(m.affine and not m.track_running_stats for m in found.values())


@pytest.mark.parametrize(("block", "before"), [(AINBlock, True), (OSBlock, False)])
def test_ain_normalises_before_the_sum_and_ibn_after_it(block, before):
    torch.manual_seed(0)
    plain = block(64, 64, with_in=True).eval()
    plain.IN.eps = 1e-12
    louder, shifted = deepcopy(plain), deepcopy(plain)
    louder.conv3.conv.weight.data.mul_(100)  # what only a norm before the sum undoes
    shifted.downsample = nn.Conv2d(64, 64, 1)  # a constant on the shortcut, which only a norm after the sum undoes
    shifted.downsample.weight.data = torch.eye(64)[:, :, None, None]
    x = torch.randn(2, 64, 8, 4)
    with torch.no_grad():
        assert torch.allclose(plain(x), louder(x), atol=1e-4) == before
        assert torch.allclose(plain(x), shifted(x), atol=1e-4) == (not before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "cells"), [((75, 50), (4, 3)), ((33, 97), (2, 6))])
def test_maps_are_at_a_sixteenth_for_any_size_and_each_image_stands_alone(kind, size, cells):
    net = small(kind).eval()
    images = torch.randn(3, 3, *size)
    with torch.no_grad():
        maps = net(images)
        alone = torch.cat([net(image[None]) for image in images])
    assert maps.shape == (3, net.out_channels, *cells)
    assert torch.allclose(maps, alone, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gives_nearly_the_same_embedding(kind, dtype):
    net = small(kind).eval()
    images = torch.randn(2, 3, 64, 32)

    def embed() -> torch.Tensor:
        with torch.no_grad():
            return net.fc(net(images.to(net.conv5.conv.weight.dtype)).mean((2, 3)))

    exact = embed()
    with torch.autocast("cpu", dtype=dtype):
        automatic = embed()
    net.to(dtype)
    for half in (automatic, embed()):
        assert half.dtype == dtype
        assert (half.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_changes_nothing(kind):
    net = small(kind).eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        plain = net(images)
        last = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained(kind):
    net = small(kind).train()
    for gate in (m for m in net.modules() if hasattr(m, "fc1")):
        nn.init.constant_(gate.fc1.bias, 10)  # else the ReLU of its few hidden units may be shut
    out = net.fc(net(torch.randn(4, 3, 64, 32)).mean((2, 3)))
    (out * torch.randn_like(out)).sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any() or key.endswith("bias"), key  # instance norm takes out a bias that is added before


@pytest.mark.parametrize("kind", KINDS)
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
        for stage, cells in (("1", (8, 4)), ("2", (4, 2)), ("3", (4, 2))):
            seen: list[torch.Tensor] = []
            net.attention = nn.ModuleDict({stage: Negative()})
            out = net(images)
            assert [x.shape for x in seen] == [(1, net.stage_channels[int(stage) - 1], *cells)]
            assert torch.equal(out, -plain) if stage == "3" else not torch.allclose(out, plain)
    assert list(net.state_dict()) == keys and net.stage_channels[-1] == net.out_channels


def test_what_cannot_be_had_is_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"--last-stride 2 cannot be had of osnet_x0_25"):
        make("osnet_x0_25", last_stride=2)
    with pytest.raises(UserError, match=r"--height 31 --width 16; give --height 32"):
        make("osnet_ain_x0_25", height=31, width=16)
    make("osnet_ain_x0_25", height=32, width=16).train()(torch.randn(2, 3, 32, 16))
    make("osnet_x0_25", height=16, width=16).train()(torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("name", ["osnet_x1_0", "osnet_ibn_x1_0", "osnet_ain_x0_25"])
def test_imagenet_weights_are_fetched_by_hand_and_the_error_says_where(name):
    drive = r"https://drive\.google\.com/file/d/[\w-]{33}/view"
    with pytest.raises(UserError, match=rf"{name} .*{drive}.*--weights FILE.*--weights none"):
        load_backbone(make(name), "imagenet")
    assert len({drive for _, _, drive in PUBLISHED.values()}) == len(PUBLISHED)
