"""Print model costs: `python tools/model_summary.py [BACKBONE] [--height 256] [--width 128] [--latency]`, or `--all`.

Every model setting is an option. The counts are for turning one image into its embedding, without the classifier.
Multiply-adds are those of convolutions and matrix products. (Some tools add two per element of a batch norm and one per
element of a ReLU or pooling, which gives 4.08 G for ResNet50 instead of 4.05 G.) Activations are the output elements of
all convolutions (Radosavovic et al., Designing Network Design Spaces, CVPR 2020).
Latency is the median of 20 runs on `--device` with random weights in float32.
"""

import math
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import parse_settings, split_first
from model import BACKBONES, build_model
from processor.environment import describe_environment, pick_device
from processor.precision import layout
from tools.tables import text_table
from utils.errors import UserError, run
from utils.latency import time_calls
from utils.logging import log, setup_logging

BATCHES, RUNS = (1, 32), 20  # batch sizes whose latency is measured, and runs of each after three warm-up runs


@dataclass
class Options:
    all: bool = False  # print a table of all backbones
    latency: bool = False  # also measure the time of a batch of 1 and of one of 32 images


def count(cfg: Config) -> dict[str, int]:
    """Return parameters, multiply-adds and activations for one image, and the width of the embedding.

    It uses the meta device, which computes no numbers, unless the model cannot be built or run there.
    """
    try:
        with torch.device("meta"):
            return _count(cfg)
    except (NotImplementedError, RuntimeError, UserError):
        return _count(cfg)


def _count(cfg: Config) -> dict[str, int]:
    model = build_model(cfg, num_classes=1).eval()
    elements = {torch.ops.aten.convolution: lambda *_, out_shape, **__: math.prod(out_shape)}
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as flops,
        FlopCounterMode(display=False, custom_mapping=elements) as outputs,
    ):
        model(torch.zeros(1, 3, cfg.data.height, cfg.data.width))
    return {
        "parameters": sum(p.numel() for name, p in model.named_parameters() if ".classifier." not in name),
        "multiply-adds": flops.get_total_flops() // 2,
        "activations": outputs.get_flop_counts()["Global"][torch.ops.aten.convolution],
        "embedding": model.embedding_dim,
    }


def latency(cfg: Config, device: torch.device, batch: int) -> float:
    """Median seconds from a batch of images to its embeddings."""
    model = build_model(cfg, num_classes=1).to(device, memory_format=layout(cfg)).eval()
    images = torch.randn(batch, 3, cfg.data.height, cfg.data.width, device=device).to(memory_format=layout(cfg))
    with torch.no_grad():
        (seconds,) = time_calls([lambda: model(images)], device, RUNS, warmup=3)
    return statistics.median(seconds)


def main() -> None:
    name, args = split_first(None)
    cfg, options = parse_settings(
        args, Config(backbone=name or "resnet50", weights="none"), os.environ, __doc__, Options,
        sections=("data", "model"),
    )  # fmt: skip
    if name and options.all:
        raise UserError(f"give either {name} or --all")
    setup_logging()
    device = pick_device(cfg.run.device)
    batches = BATCHES if options.latency else ()
    rows = [["backbone", "parameters M", "multiply-adds M", "activations M", "embedding"]]
    rows[0] += [f"ms for {batch}" for batch in batches]
    left_out = []
    for backbone in BACKBONES if options.all else [cfg.model.backbone]:
        try:
            one = cfg.replace(backbone=backbone).check()
            *numbers, width = count(one).values()
            times = [f"{1e3 * latency(one, device, batch):.1f}" for batch in batches]
            rows.append([backbone, *(f"{number / 1e6:.2f}" for number in numbers), str(width), *times])
        except UserError as error:
            if not options.all:
                raise
            left_out.append(f"left out: {error}")
    size = f"one image of {cfg.data.height} x {cfg.data.width}, last stride {cfg.model.last_stride}"
    log.info("\n".join([size, text_table(rows), *left_out]))
    if options.latency:
        environment = ", ".join(f"{key} {value}" for key, value in describe_environment(device).items())
        log.info("latency: median of %d runs, float32; %s", RUNS, environment)


if __name__ == "__main__":
    run(main)
