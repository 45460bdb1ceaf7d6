"""What a model costs: `python tools/model_summary.py [BACKBONE] [--height 256] [--width 128] [--latency]`, or `--all`.

Every setting of a model is one of this program's. Counted is what turns one image into its embedding: everything but
the classifier. Multiply-adds are those of convolutions and matrix products (some tools add two for each element that is
batch normalised and one for each of a ReLU or a pooling, which makes ResNet50's 4.05 G 4.08 G). Activations are the
elements of all outputs of convolutions (Radosavovic et al., Designing Network Design Spaces, CVPR 2020).
Latency is the median of `--runs` runs on `--device`, random weights, float32.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import parse_settings, split_first
from model import BACKBONES, build_model
from processor.environment import describe_environment, pick_device
from utils.errors import UserError, run
from utils.logging import log, setup_logging

BATCHES = (1, 32)  # whose latency is measured


@dataclass
class SummaryConfig(Config):
    weights: str = "none"  # plays no part here
    all: bool = False  # a table of all backbones
    latency: bool = False  # also measure the time of a batch of 1 and of one of 32 images
    runs: int = 20  # timed runs, after three that are not

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.runs < 1:
            yield f"--runs must be at least 1, not {self.runs}"


class ConvolutionOutputs(TorchDispatchMode):
    """Counts the elements of all outputs of convolutions while it is entered."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default:
            self.elements += out.numel()
        return out


def count(cfg: Config) -> dict[str, int]:
    """Parameters, multiply-adds and activations of one image, width of the embedding.

    Without numbers, on the meta device, unless the model cannot be made or run there.
    """
    try:
        with torch.device("meta"):
            return _count(cfg)
    except (NotImplementedError, RuntimeError, UserError):
        return _count(cfg)


def _count(cfg: Config) -> dict[str, int]:
    model = build_model(cfg, num_classes=1).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops, ConvolutionOutputs() as outputs:
        model(torch.zeros(1, 3, cfg.data.height, cfg.data.width))
    return {
        "parameters": sum(p.numel() for name, p in model.named_parameters() if ".classifier." not in name),
        "multiply-adds": flops.get_total_flops() // 2,
        "activations": outputs.elements,
        "embedding": model.embedding_dim,
    }


def latency(cfg: SummaryConfig, device: torch.device, batch: int) -> float:
    """Median seconds from a batch of images to its embeddings."""
    model = build_model(cfg, num_classes=1).to(device).eval()
    layout = torch.channels_last if cfg.loop.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    images = torch.randn(batch, 3, cfg.data.height, cfg.data.width, device=device).contiguous(memory_format=layout)
    seconds = []
    for _ in range(3 + cfg.runs):
        start = time.perf_counter()
        with torch.no_grad():
            model(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:])


def row(cfg: SummaryConfig, device: torch.device) -> list[str]:
    """The cells of one model."""
    counted = count(cfg)
    cells = [
        cfg.model.backbone,
        *(f"{counted[key] / 1e6:.2f}" for key in ("parameters", "multiply-adds", "activations")),
    ]
    cells.append(str(counted["embedding"]))
    return cells + [f"{latency(cfg, device, batch) * 1e3:.1f}" for batch in BATCHES if cfg.latency]


def aligned(rows: list[list[str]]) -> str:
    """Names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) for r in rows)


def main() -> None:
    name, args = split_first(None)
    default = SummaryConfig(backbone=name or "resnet50")
    cfg = parse_settings(default, args, os.environ, "tools/model_summary.py [BACKBONE]")
    if name and cfg.all:
        raise UserError(f"give either {name} or --all")
    setup_logging()
    device = pick_device(cfg.run.device)
    head = ["backbone", "parameters M", "multiply-adds M", "activations M", "embedding"]
    rows = [head + [f"ms for {batch}" for batch in BATCHES if cfg.latency]]
    refused = []
    for backbone in BACKBONES if cfg.all else [cfg.model.backbone]:
        try:
            rows.append(row(cfg.replace(backbone=backbone).check(), device))
        except UserError as error:
            if not cfg.all:
                raise
            refused.append(f"left out: {error}")
    log.info(
        "one image of %d x %d, last stride %d\n%s",
        cfg.data.height,
        cfg.data.width,
        cfg.model.last_stride,
        aligned(rows),
    )
    for sentence in refused:
        log.info("%s", sentence)
    if cfg.latency:
        environment = ", ".join(f"{key} {value}" for key, value in describe_environment(device).items())
        log.info("latency: median of %d runs, float32; %s", cfg.runs, environment)


if __name__ == "__main__":
    run(main)
