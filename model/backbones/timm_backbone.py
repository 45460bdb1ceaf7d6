"""Every network of the optional package timm (Wightman, PyTorch Image Models) that gives a map, as `timm/NAME`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from config import Config
from utils.errors import UserError


@dataclass(frozen=True)
class TimmWeights:
    """timm's weights of a network, which timm itself downloads and fits to the image size."""

    name: str
    options: dict[str, Any]
    url: str

    def get_state_dict(self, progress: bool, check_hash: bool) -> dict[str, torch.Tensor]:
        """Raises UserError when there are none, or none can be had."""
        try:
            return load_timm().create_model(self.name, pretrained=True, **self.options).state_dict()
        except Exception as error:  # what a failed download raises depends on the version of three other packages
            raise UserError(
                f"timm could not load weights of {self.name} ({_first_line(error)}); fetch pytorch_model.bin elsewhere "
                f"({self.url}) and give it with --weights FILE, or train from scratch with --weights none"
            ) from error


def timm_backbone(name: str, cfg: Config) -> nn.Module:
    """timm's network called `name` without its classifier: (B, 3, H, W) to a map (B, C, h, w).

    It runs as a whole, so it counts as one stage. Parameter names are timm's. A network of tokens takes only images of
    the settings' size.

    Last stride 1 asks timm for output stride 16, which also widens the kernels of the last stage (dilation), unlike
    elsewhere in this program. Raises UserError when timm is missing, does not know the name, or gives no such map.
    """
    timm = load_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(f'timm/{n}' for n in near)}?" if near else "see timm.list_models()"
        raise UserError(f"timm {timm.__version__} has no network called {name}; {hint}")
    net, options = create(name, cfg)
    net.attention = nn.ModuleDict()
    net.register_forward_hook(as_map)
    net.out_channels = probe(net, name, cfg)
    net.stage_channels = (net.out_channels,)
    source = net.pretrained_cfg.get("hf_hub_id")
    net.imagenet = TimmWeights(name, options, f"https://huggingface.co/{source}" if source else "timm names no address")
    return net


def load_timm() -> Any:
    """The package. Raises UserError when it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise UserError("the backbones timm/NAME need the package timm: pip install timm") from error
    return timm


def create(name: str, cfg: Config) -> tuple[nn.Module, dict[str, Any]]:
    """The network, random, and the options that it was made with: its stride, else its image size, if it takes them."""
    tries: list[dict[str, Any]] = [{"output_stride": 16}] if cfg.model.last_stride == 1 else []
    tries += [{"img_size": (cfg.data.height, cfg.data.width)}, {}]
    for options in tries:
        options |= {"num_classes": 0, "global_pool": ""}
        try:
            return load_timm().create_model(name, **options), options
        except Exception as error:  # an unknown option: mostly TypeError, of some networks AssertionError and others
            reason = error
    raise UserError(f"timm does not make {name} without its pooling ({_first_line(reason)}); take another --backbone")


def as_map(net: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """What a network gives for `inputs`, as a map (B, C, h, w) after its attention. Tokens (B, N, C) are laid out as
    their patches are, without those that come first and stand for no patch."""
    if out.ndim == 3:
        patches = out[:, getattr(net, "num_prefix_tokens", 0) :].transpose(1, 2)
        rows, columns = getattr(getattr(net, "patch_embed", None), "grid_size", None) or (0, 0)
        if rows * columns != patches.shape[2]:  # a network that merges patches on its way, by halves
            height, width = inputs[0].shape[2:]
            rows = round((patches.shape[2] * height / width) ** 0.5)
        out = patches.unflatten(2, (rows, -1))
    elif getattr(net, "output_fmt", "NCHW") == "NHWC":
        out = out.permute(0, 3, 1, 2)
    return net.attention["1"](out) if "1" in net.attention else out


def probe(net: nn.Module, name: str, cfg: Config) -> int:
    """Channels of the map that the network gives. Raises UserError where there is none, or not at the last stride."""
    try:
        with torch.no_grad():
            out = net.eval()(torch.zeros(1, 3, cfg.data.height, cfg.data.width))
        net.train()
        channels, rows, columns = out.shape[1:]
    except Exception as error:  # whatever timm's networks raise for a size that they are not made for
        raise UserError(
            f"timm's {name} gives no map for --height {cfg.data.height} --width {cfg.data.width} ({_first_line(error)}); take "
            "another size or --backbone"
        ) from error
    fine = cfg.data.height * cfg.data.width < 512 * rows * columns  # nearer to 1/16 of the image than to 1/32
    if fine != (cfg.model.last_stride == 1):
        raise UserError(
            f"--last-stride {cfg.model.last_stride} cannot be had of timm's {name}, which gives a map of {rows} x {columns} "
            f"for {cfg.data.height} x {cfg.data.width}; give --last-stride {1 if fine else 2}"
        )
    return channels


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
