"""Every network of the optional package timm (Wightman, PyTorch Image Models) that outputs a map, as `timm/NAME`."""

from functools import partial
from typing import Any

import torch
from torch import nn

from config import Config
from utils.errors import UserError, did_you_mean, reason
from utils.lookup import package


def timm_backbone(cfg: Config) -> nn.Module:
    """Build timm's network NAME of `timm/NAME` without its classifier: (B, 3, H, W) to a map (B, C, h, w).

    It counts as one stage. Parameter names are timm's. A network that outputs tokens needs images of the settings'
    size. Last stride 1 asks timm for output stride 16, which also dilates the kernels of the last stage, unlike in the
    other backbones. Raises UserError if timm is missing or does not know the name, or if there is no such map.
    """
    timm, name = package("timm", "--backbone timm/NAME"), cfg.model.backbone.removeprefix("timm/")
    if not timm.is_model(name):
        hint = did_you_mean(cfg.model.backbone, [f"timm/{n}" for n in timm.list_models()], cutoff=0.5)
        raise UserError(f"timm {timm.__version__} has no network called {name}; {hint or 'see timm.list_models()'}")
    net, options = create(timm, name, cfg)
    net.attention = nn.ModuleDict()
    net.register_forward_hook(as_map)
    net.out_channels = probe(net, name, cfg)
    net.stage_channels = (net.out_channels,)
    net.imagenet = partial(load_weights, name, options, net.pretrained_cfg.get("hf_hub_id"))
    return net


def load_weights(name: str, options: dict[str, Any], source: str | None) -> dict[str, torch.Tensor]:
    """Return timm's weights, downloaded and fitted to the image size by timm. Raises UserError if there are none."""
    try:
        return package("timm", name).create_model(name, pretrained=True, **options).state_dict()
    except Exception as error:  # what a failed download raises depends on the version of three other packages
        address = f"https://huggingface.co/{source}" if source else "timm names no address"
        raise UserError(
            f"timm could not load weights of {name} ({reason(error)}); download pytorch_model.bin elsewhere "
            f"({address}) and give it with --weights FILE, or train from scratch with --weights none"
        ) from error


def create(timm: Any, name: str, cfg: Config) -> tuple[nn.Module, dict[str, Any]]:
    """Create the network with random weights; also return the options it accepted: stride, image size, or neither."""
    tries: list[dict[str, Any]] = [{"output_stride": 16}] if cfg.model.last_stride == 1 else []
    tries += [{"img_size": (cfg.data.height, cfg.data.width)}, {}]
    for options in tries:
        options |= {"num_classes": 0, "global_pool": ""}
        try:
            return timm.create_model(name, **options), options
        except Exception as error:  # an unknown option: mostly TypeError, of some networks AssertionError and others
            failed = error
    raise UserError(f"timm cannot create {name} without its pooling ({reason(failed)}); use another --backbone")


def as_map(net: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """Return the network's output as a map (B, C, h, w), after its attention. Tokens (B, N, C) are arranged like
    their patches; leading tokens that belong to no patch are dropped."""
    if out.ndim == 3:
        patches = out[:, getattr(net, "num_prefix_tokens", 0) :].transpose(1, 2)
        rows, columns = getattr(getattr(net, "patch_embed", None), "grid_size", None) or (0, 0)
        if rows * columns != patches.shape[2]:  # a network that merges patches, halving the grid
            height, width = inputs[0].shape[2:]
            rows = round((patches.shape[2] * height / width) ** 0.5)
        out = patches.unflatten(2, (rows, -1))
    elif getattr(net, "output_fmt", "NCHW") == "NHWC":
        out = out.permute(0, 3, 1, 2)
    return net.attention["1"](out) if "1" in net.attention else out


def probe(net: nn.Module, name: str, cfg: Config) -> int:
    """Return the channels of the network's map. Raises UserError if it outputs none, or one at another stride."""
    height, width = cfg.data.height, cfg.data.width
    try:
        with torch.no_grad():
            out = net.eval()(torch.zeros(1, 3, height, width))
        net.train()
        channels, rows, columns = out.shape[1:]
    except Exception as error:  # whatever timm's networks raise for a size that they do not support
        raise UserError(
            f"timm's {name} gives no map for --height {height} --width {width} ({reason(error)}); use another "
            "size or --backbone"
        ) from error
    fine = height * width < 512 * rows * columns  # nearer to 1/16 of the image than to 1/32
    if fine != (cfg.model.last_stride == 1):
        raise UserError(
            f"--last-stride {cfg.model.last_stride} is not possible with timm's {name}, which gives a map of {rows} x "
            f"{columns} for {height} x {width}; give --last-stride {1 if fine else 2}"
        )
    return channels
