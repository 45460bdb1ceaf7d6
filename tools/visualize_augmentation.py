"""Draw a training batch as the network sees it: `python tools/visualize_augmentation.py [PRESET] [--num 8]`.

Each row shows the original image, each transform alone (always applied), and last the result of the settings. They come
from the preset and the command line, as for train.py.
"""

import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import default_settings, parse_settings, split_first
from datasets.augment import Draws, augment, to_pixels
from datasets.augment_rare import OFF, TRANSFORMS
from datasets.loaders import TrainLoader
from datasets.make import make_dataset, short_name
from utils.errors import run
from utils.logging import log, setup_logging
from utils.pictures import QUERY, RIGHT, Tile, draw_rows


@dataclass
class Options:
    num: int = 8  # images of the batch to draw
    epoch: int = 0  # epoch whose first batch is drawn
    output: str = ""  # file of the picture (empty: LOG_DIR/augmentation_DATASET.png)


def columns(images: torch.Tensor, cfg: Config, epoch: int) -> dict[str, np.ndarray]:
    """Return by title (B, H, W, 3) uint8 images of one shape: the originals, after each transform, after `cfg`."""
    settings = {"original": OFF} | {name: OFF | on for name, on in TRANSFORMS.items()} | {"as trained": {}}
    if cfg.augment.pad:
        settings["pad and crop"] = OFF | {"pad": cfg.augment.pad}
    found = {}
    for name, changes in settings.items():
        draws = Draws(cfg.run.seed, epoch, 0, batch=len(images))  # as for this batch in training
        found[name] = to_pixels(augment(images, cfg.replace(**changes), draws))
    return found


def main() -> None:
    preset, args = split_first(None)
    ranges = {"num": "[1, inf)", "epoch": "[0, inf)"}
    default = default_settings(preset, args, Options)
    cfg, options = parse_settings(args, default, os.environ, __doc__, Options, ranges)
    setup_logging()
    loader = TrainLoader(cfg, make_dataset(cfg).train)
    indices = next(iter(loader.sampler.epoch(options.epoch)))
    images = columns(loader.images.read(indices), cfg, options.epoch)
    rows = []
    for i, index in enumerate(indices[: options.num]):
        sample = loader.samples[index]
        tiles = [Tile(c[i], "", RIGHT if name == "as trained" else QUERY) for name, c in images.items()]
        rows.append((f"pid {sample.pid}, cam {sample.camid}", tiles))
    path = Path(options.output or Path(cfg.run.log_dir) / f"augmentation_{short_name(cfg.data.dataset)}.png")
    draw_rows(path, rows, ["\n".join(textwrap.wrap(name, 12)) for name in images])
    log.info("%d of the %d images of the first batch of epoch %d: %s", len(rows), len(indices), options.epoch, path)


if __name__ == "__main__":
    run(main)
