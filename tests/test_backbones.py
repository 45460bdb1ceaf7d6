"""All backbones under one interface: torchvision's beside torchvision, timm's beside timm."""

from __future__ import annotations

import functools
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from config import Config
from config.config import BOTTLENECKS
from model.backbones import BACKBONES, find_backbone
from model.backbones.convnext import DenseConvolution
from model.backbones.resnet import BOTTLENECK, WIDER
from model.backbones.vit import DenseMerging, ViTWeights, resize_positions
from model.weights import load_backbone
from utils.errors import UserError

FINE = [name for name in BACKBONES if name.startswith(("osnet", "vit"))]  # at 1/16, without a stride to take out
TORCHVISION = [name for name in BACKBONES if name in models.list_models()]
ONE_OF_EACH = [
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf",
    "convnext_tiny", "swin_t", "vit_b_16",
]  # fmt: skip
TWO_MORE = ["resnext50_32x4d", "swin_v2_t"]  # their blocks are others than those of resnet18 and swin_t
# the layer of torchvision's network whose output is the map, as its classifier is left out
MAP = {
    "resnet": "layer4", "resnext": "layer4", "mobilenet": "features", "shufflenet": "conv5", "efficientnet": "features",
    "regnet": "trunk_output", "convnext": "features", "swin": "permute", "vit": "encoder",
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


def config(name: str, **settings) -> Config:
    last_stride = settings.pop("last_stride", 1 if name in FINE else 2)
    return Config(backbone=name, weights="none", last_stride=last_stride, **settings)


def make(name: str, **settings) -> nn.Module:
    torch.manual_seed(0)
    return find_backbone(name)(config(name, **settings)).eval()


@functools.cache
def built(name: str) -> nn.Module:
    """For tests that leave it as it is; batch norms have statistics, so that signals neither vanish nor explode."""
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


def shapes(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}


def multiply_adds(net: nn.Module, *size: int) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, *size, device=next(net.parameters()).device))
    return counter.get_total_flops() / 2


class Scale(nn.Module):
    """Stands for an attention module."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, channels)[:, None, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = tuple(x.shape[1:])
        return x * self.weight


# ---- all of them: the interface, and torchvision's published figures


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_the_interface_and_a_map_at_a_sixteenth(name):
    net = on_meta(lambda: find_backbone(name)(config(name, last_stride=1)))
    assert isinstance(net.attention, nn.ModuleDict) and not net.attention
    net.attention.update({str(n): Scale(channels).to("meta") for n, channels in enumerate(net.stage_channels, 1)})
    with torch.no_grad():
        assert net(torch.empty(2, 3, 64, 32, device="meta")).shape == (2, net.out_channels, 4, 2)
    rows = [16, 8, 4, 4]  # after each stage
    if name in FINE:
        rows = [4, 4, 4, 4] if name == "vit_b_16" else [8, 4, 4]
    seen = [(channels, r, r // 2) for channels, r in zip(net.stage_channels, rows, strict=True)]
    assert [net.attention[str(n)].seen for n in range(1, len(rows) + 1)] == seen
    assert net.stage_channels[-1] == net.out_channels
    assert net.imagenet.url.startswith("https://") and callable(net.imagenet.get_state_dict)
    if name in TORCHVISION:  # the first version, whose download is checked against the hash in its name
        file = net.imagenet.url.rsplit("/", 1)[1]
        assert str(net.imagenet).endswith(".IMAGENET1K_V1") and torch.hub.HASH_REGEX.search(file)


@pytest.mark.parametrize("name", TORCHVISION)
def test_names_parameters_and_multiply_adds_are_those_that_torchvision_publishes(name):
    """The `num_params` and `_ops` (in 10^9) of its weights, less the classifier, at the size of the pictures there."""
    weights = models.get_model_weights(name).IMAGENET1K_V1
    ours = on_meta(lambda: find_backbone(name)(config(name)))
    theirs = on_meta(lambda: models.get_model(name))
    mine, whole = shapes(ours), shapes(theirs)
    classifier = {k: v for k, v in whole.items() if k not in mine}
    assert {k.split(".")[0] for k in classifier} <= {"fc", "classifier", "head", "heads"}
    assert mine | classifier == whole
    left_out = sum(p.numel() for k, p in theirs.named_parameters() if k in classifier)
    assert sum(p.numel() for p in ours.parameters()) == weights.meta["num_params"] - left_out
    halved = []  # whether the first layer of each further stage halves the map
    axis = 1 if name.startswith("swin") else 2
    for stage in ours.stages[1:]:
        first = ours.get_submodule(stage[0])
        first.register_forward_hook(lambda _m, x, out: halved.append(out.shape[axis] == (x[0].shape[axis] + 1) // 2))
    products = sum(p.numel() for k, p in theirs.named_parameters() if k in classifier and p.ndim > 1)
    counted = multiply_adds(ours, *weights.transforms().crop_size * 2) + products
    assert counted == pytest.approx(weights.meta["_ops"] * 1e9, abs=0.6e6)
    assert halved == [name not in FINE] * 3


def test_the_figures_that_matrix_light_reid_publishes_are_mmcvs_count_with_norms_relus_and_pools():
    """Its get_flops.py and search use mmcv's get_model_complexity_info on backbone and average pooling: one for each
    multiply-add, two for each element that is batch normalised, one for each of a ReLU, and of a pooling's input."""

    def mmcv_count(name: str, last_stride: int) -> tuple[float, float]:
        net, more = make(name, last_stride=last_stride).to("meta"), []
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.register_forward_hook(lambda _m, _inputs, out: more.append(2 * out.numel()))
            elif isinstance(m, nn.ReLU | nn.ReLU6):
                m.register_forward_hook(lambda _m, _inputs, out: more.append(out.numel()))
            elif isinstance(m, nn.MaxPool2d):
                m.register_forward_hook(lambda _m, inputs, _out: more.append(inputs[0].numel()))
        net.register_forward_hook(lambda _m, _inputs, out: more.append(out.numel()))  # the average pooling's input
        products = multiply_adds(net, 256, 128)
        return products, products + sum(more)

    products, counted = mmcv_count("resnet50", 1)
    assert (round(products / 1e6), round(counted / 1e9, 2)) == (4053, 4.08)
    products, counted = mmcv_count("mobilenet_v2", 2)
    assert (round(products / 1e6, 1), round(counted / 1e6, 1)) == (195.6, 208.3)  # published: 210 M
    assert round(counted * 224 * 224 / (256 * 128) / 1e9, 3) == 0.319  # mmcls's own table, at 224 × 224


def test_embedding_widths_of_the_papers():
    """deep-efficient-reid: 2048 with ResNet, 1280 with EfficientNetV2; the others from their papers."""
    published = {"resnet50": 2048, "efficientnet_v2_s": 1280, "mobilenet_v3_large": 960, "shufflenet_v2_x2_0": 2048}
    published |= {"efficientnet_b4": 1792, "convnext_base": 1024, "swin_t": 768, "vit_b_16": 768, "regnet_y_400mf": 440}
    for name, width in published.items():
        assert on_meta(lambda name=name: find_backbone(name)(config(name))).out_channels == width, name


@pytest.mark.parametrize(
    ("width", "parameters", "mega"),
    [(1.4, 6.06, 582), (1.3, 5.34, 509), (1.0, 3.47, 300), (0.75, 2.61, 209), (0.5, 1.95, 97), (0.35, 1.66, 59)],
)
def test_mobilenet_v2_of_every_width_has_the_authors_figures(width, parameters, mega):
    """tensorflow/models, research/slim/nets/mobilenet: in millions, at 224 × 224, with a classifier of 1,000 classes;
    parameters of batch norms are not counted, multiply-adds rounded down."""
    net = on_meta(lambda: find_backbone("mobilenet_v2")(config("mobilenet_v2", width_multiplier=width)))
    assert net.out_channels == max(1280, round(1280 * width))
    count = sum(p.numel() for p in net.parameters() if p.ndim > 1) + (net.out_channels + 1) * 1000
    assert round(count / 1e6, 2) == parameters
    assert int(multiply_adds(net, 224, 224) + 1000 * net.out_channels) // 10**6 == mega


# ---- one of each family, in numbers


@pytest.mark.parametrize("name", ONE_OF_EACH + TWO_MORE)
def test_the_map_is_torchvisions(name):
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


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_maps_are_there_for_odd_sizes_and_each_image_stands_alone(name):
    cells = {"vit_b_16": (4, 3), "convnext_tiny": (2, 1)}.get(name, (3, 2))
    images = torch.randn(2, 3, 75, 50)
    with torch.no_grad():
        maps = built(name)(images)
        alone = torch.cat([built(name)(image[None]) for image in images])
    assert maps.shape == (2, built(name).out_channels, *cells)
    assert close(maps, alone)


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH + TWO_MORE if name not in FINE])
def test_without_the_last_stride_the_same_weights_give_a_map_twice_as_fine(name):
    coarse, fine = built(name), make(name, last_stride=1)
    fine.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 64, 96)
    before, after = [], []
    for net, inputs in ((deepcopy(coarse), before), (fine, after)):
        first = net.get_submodule(net.stages[-1][0])
        first.register_forward_pre_hook(lambda _m, args, inputs=inputs: inputs.append(args[0]))
        with torch.no_grad():
            out = net(images)
        assert out.shape == (1, net.out_channels, *((2, 3) if net is not fine else (4, 6)))
        assert out.isfinite().all()
    assert torch.equal(before[0], after[0])  # what comes before the last stage is the same


@pytest.mark.parametrize("size", [(8, 4), (5, 3), (1, 1)])
def test_merging_and_convolving_everywhere_give_at_even_positions_what_the_stride_gave(size):
    swin, swin_v2, convnext = (built(n).features[6] for n in ("swin_t", "swin_v2_t", "convnext_tiny"))
    x = torch.randn(2, *size, 384)
    with torch.no_grad():
        for merging in (swin, swin_v2):
            dense = DenseMerging(merging)(x)
            assert dense.shape == (2, *size, 768) and torch.allclose(dense[:, ::2, ::2], merging(x), atol=1e-5)
        x = x.permute(0, 3, 1, 2)
        dense = DenseConvolution(convnext[1])(x)
        assert dense.shape == (2, 768, *size)
        if min(size) > 1:
            strided = convnext[1](x)
            even = dense[:, :, ::2, ::2][:, :, : strided.shape[2], : strided.shape[3]]
            assert torch.allclose(even, strided, atol=1e-5)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_attention_runs_after_each_stage_changes_the_map_and_is_trained(name):
    net = deepcopy(built(name))
    keys, images = list(net.state_dict()), torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        plain = net(images)
    cells = [(4, 2)] * 4 if name == "vit_b_16" else [(16, 8), (8, 4), (4, 2), (2, 1)]
    for n, channels in enumerate(net.stage_channels, 1):
        net.attention = nn.ModuleDict({str(n): Scale(channels)})
        out = net(images)
        out.square().sum().backward()
        module = net.attention[str(n)]
        assert module.seen == (channels, *cells[n - 1])
        assert not close(out, plain, 0.01) and module.weight.grad.any()
        if n == 4:
            assert close(out, plain * module.weight)
    assert [k for k in net.state_dict() if not k.startswith("attention.")] == keys


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_parameter_is_trained(name):
    net = deepcopy(built(name))  # in evaluation mode, where no block is dropped at random
    out = net(torch.randn(2, 3, 64, 64))
    (out * torch.randn_like(out)).sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        # a squeeze of few channels may be shut by its ReLU
        assert parameter.grad.any() or ".fc" in key or ".se." in key, key


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_it_trains_in_bfloat16_autocast_with_channels_last(name):
    net = deepcopy(built(name))
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        exact = net(images)
    last = net.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert close(last(images.contiguous(memory_format=torch.channels_last)), exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = last(images)
        assert F.cosine_similarity(rounded.float().flatten(), exact.flatten(), 0) > 0.9
        last.train()(images).float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in last.parameters())


# ---- ViT


@pytest.mark.parametrize("grid", [(16, 8), (14, 14), (4, 2), (30, 7)])
def test_position_embeddings_are_resized_bilinearly(grid):
    positions = torch.randn(1, 196, 5, requires_grad=True)
    expected = F.interpolate(positions.transpose(1, 2).reshape(1, 5, 14, 14), grid, mode="bilinear")
    resized = resize_positions(positions, *grid)
    assert resized.shape == (1, 5, *grid) and torch.allclose(resized, expected, atol=1e-5)
    assert torch.autograd.grad(resized.sum(), positions)[0].any()


def test_vit_sees_positions_and_its_class_token_takes_part():
    net = deepcopy(built("vit_b_16"))
    images = torch.randn(1, 3, 16, 16).repeat(1, 1, 16, 8)  # all patches are alike
    with torch.no_grad():
        maps = net(images)
        assert maps.shape == (1, 768, 16, 8) and maps.std((2, 3)).min() > 0.003
        net.class_token += torch.randn(768)
        assert not close(net(images), maps, 1e-3)
        net.encoder.pos_embedding[:, 1:] = 0
        assert net(images).std((2, 3)).max() < 1e-3


def test_torchvisions_vit_file_fits_although_its_names_are_older_than_torchvisions():
    class Published:
        url = "https://download.pytorch.org/models/vit_b_16-c867db91.pth"

        def get_state_dict(self, progress: bool, check_hash: bool) -> dict[str, torch.Tensor]:
            assert check_hash
            return {k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for k, v in state.items()}

    net = deepcopy(built("vit_b_16"))
    state = {k: torch.full_like(v, 0.5) for k, v in net.state_dict().items()}
    net.imagenet = ViTWeights(Published())
    report = load_backbone(net, "imagenet")
    assert not report.missing and not report.skipped and all(v.eq(0.5).all() for v in net.state_dict().values())


# ---- what cannot be had


@pytest.mark.parametrize("name", FINE)
def test_last_stride_2_is_refused_where_there_is_none(name):
    with pytest.raises(UserError, match=rf"--last-stride 2 cannot be had of {name}, which ends at 1/16"):
        find_backbone(name)(Config(backbone=name, last_stride=2))


def test_sizes_that_leave_no_map_are_refused():
    with pytest.raises(UserError, match=r"whole 16 x 16 patches, not --height 250 --width 128; give multiples of 16"):
        make("vit_b_16", height=250)
    with pytest.raises(UserError, match=r"convnext_tiny leaves nothing of --height 64 --width 31.*give 32 or more"):
        make("convnext_tiny", height=64, width=31)
    with torch.no_grad():
        assert make("convnext_tiny", height=16, width=16, last_stride=1)(torch.randn(1, 3, 16, 16)).shape[2:] == (1, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet49", "called resnet49; did you mean .*resnet50"),
        ("osnet", "did you mean .*osnet_x1_0"),
        ("convnext", "did you mean convnext_tiny or convnext_base or convnext_small"),
        ("", "did you mean resnet18 or "),
        ("zzzzz", "the names are resnet18, .*, vit_b_16, timm/NAME and searched:FILE.json"),
    ],
)
def test_an_unknown_name_is_refused_with_near_ones(name, words):
    with pytest.raises(UserError, match=words):
        find_backbone(name)


def test_settings_of_one_family_are_refused_with_others():
    assert BOTTLENECKS == BOTTLENECK + WIDER
    for name in BACKBONES:
        cfg = Config(backbone=name, stride_in_1x1=True)
        if name in BOTTLENECKS:
            net = on_meta(lambda name=name, cfg=cfg: find_backbone(name)(cfg))
            assert net.layer3[0].conv1.stride == (2, 2) and net.layer3[0].conv2.stride == (1, 1)
            cfg.check()
        else:
            with pytest.raises(UserError, match=rf"--stride-in-1x1 is for .*; leave it out with {name}"):
                cfg.check()
        if name != "mobilenet_v2":
            with pytest.raises(UserError, match=f"--width-multiplier is for mobilenet_v2; leave it out with {name}"):
                Config(backbone=name, weights="none", width_multiplier=0.5).check()
    with pytest.raises(UserError, match=r"--width-multiplier 1 only; give --weights none"):
        Config(backbone="mobilenet_v2", width_multiplier=0.5).check()
    with pytest.raises(UserError, match="--width-multiplier must be above 0"):
        Config(backbone="mobilenet_v2", weights="none", width_multiplier=-1.0).check()
    assert Config(backbone="mobilenet_v2", weights="none", width_multiplier=0.5).check()


# ---- timm


def test_timm_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="timm/NAME need the package timm: pip install timm"):
        make("timm/resnet18")


@pytest.mark.parametrize(
    ("name", "last_stride", "width", "cells"),
    [
        ("test_resnet", 1, 96, (8, 4)),
        ("test_resnet", 2, 96, (4, 2)),
        ("test_efficientnet", 1, 256, (8, 4)),
        ("test_convnext", 2, 64, (4, 2)),
        ("test_vit", 1, 64, (8, 4)),  # tokens, one of them a class token
        ("vit_tiny_patch16_224", 1, 192, (8, 4)),
        ("swin_tiny_patch4_window7_224", 2, 768, (4, 2)),  # channels last
        ("resmlp_12_224", 1, 384, (8, 4)),  # tokens and nothing before them
    ],
)
def test_timm_networks_give_maps_and_keep_timms_names(name, last_stride, width, cells):
    timm = pytest.importorskip("timm")
    net = make(f"timm/{name}", last_stride=last_stride, height=128, width=64)
    assert net.out_channels == width and net.stage_channels == (width,)
    images = torch.randn(2, 3, 128, 64)
    with torch.no_grad():
        maps = net(images)
    assert maps.shape == (2, width, *cells)
    assert set(net.state_dict()) <= set(timm.create_model(name).state_dict())
    net.attention["1"] = Scale(width)
    again = deepcopy(net)  # as the average of the weights is made
    out = again.train()(images)
    out.square().sum().backward()
    assert out.shape == maps.shape and again.attention["1"].weight.grad.any() and net.attention["1"].weight.grad is None
    with torch.no_grad():
        assert torch.allclose(net(images), maps * net.attention["1"].weight)


def test_a_timm_map_has_the_features_of_a_patch_where_the_patch_is():
    pytest.importorskip("timm")
    for name, last_stride, size in (("test_vit", 1, 16), ("swin_tiny_patch4_window7_224", 2, 32)):
        net = make(f"timm/{name}", last_stride=last_stride, height=128, width=64)
        images = torch.randn(1, 3, 128, 64)
        changed = images.clone()
        changed[:, :, 2 * size : 3 * size, size : 2 * size] += 10
        with torch.no_grad():
            difference = (net(changed) - net(images)).norm(dim=1)[0]
        assert difference.argmax() == 2 * difference.shape[1] + 1, name


def test_what_timm_cannot_give_is_refused_in_a_sentence():
    timm = pytest.importorskip("timm")
    stride = "--last-stride 2 cannot be had of timm's test_vit.*give --last-stride 1"
    for name, last_stride, words in (
        ("test_vit", 2, stride),
        ("densenet121", 1, "map of 4 x 2 for 128 x 64; give --last-stride 2"),
        ("resnet18x", 1, f"timm {timm.__version__} has no network called resnet18x; did you mean .*timm/resnet18"),
        ("crossvit_tiny_240", 1, "timm does not make crossvit_tiny_240 without its pooling"),
        ("nest_tiny", 2, "gives no map for --height 128 --width 64 .*another size"),
    ):
        with pytest.raises(UserError, match=words):
            make(f"timm/{name}", height=128, width=64, last_stride=last_stride)


def test_weights_that_timm_cannot_download_get_a_sentence_with_the_way_round(monkeypatch):
    timm = pytest.importorskip("timm")
    net = make("timm/test_resnet", height=64, width=32)

    def offline(*_args, **_options):
        raise ValueError("no such host\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    address = r"\(no such host\).*pytorch_model\.bin.*https://huggingface\.co/timm/test_resnet\.r160_in1k"
    with pytest.raises(UserError, match=address + ".*--weights FILE.*--weights none"):
        load_backbone(net, "imagenet")


def test_timms_own_file_loads_but_for_its_classifier(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    source = timm.create_model("test_resnet")
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    net = find_backbone("timm/test_resnet")(config("timm/test_resnet", height=64, width=32))
    assert all(m.training for m in net.modules()) and net.bn1.num_batches_tracked == 0  # as any that is new
    report = load_backbone(net, str(tmp_path / "pytorch_model.bin"))
    assert not report.missing and report.skipped == ["fc.bias", "fc.weight"]
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    assert not load_backbone(net, "imagenet").missing
