"""Draw a training batch as the network sees it: `python tools/visualize_augmentation.py [PRESET] [--num 8]`.

A row an image: the original, each transform alone and always applied, and last what the settings make of it, which
are those of the preset and of the command line, as for train.py.
"""

from __future__ import annotations

import os
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import parse_train
from datasets.augment import OFF, TRANSFORMS, Draws, augment, to_pixels
from datasets.loaders import TrainLoader
from datasets.make import make_dataset, short_name
from utils.errors import run
from utils.logging import log, setup_logging
from utils.pictures import QUERY, RIGHT, Tile, draw_rows


@dataclass
class AugmentationConfig(Config):
    num: int = 8  # images of the batch to draw
    epoch: int = 0  # epoch whose first batch it is
    output: str = ""  # file of the picture; empty: LOG_DIR/augmentation_DATASET.png

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.num < 1 or self.epoch < 0:
            yield f"--num must be at least 1 and --epoch at least 0, not {self.num} and {self.epoch}"


def pictures(images: torch.Tensor, cfg: Config, draws: Draws) -> np.ndarray:
    """(B, H, W, 3) uint8 of what the network gets for `images` (B, H, W, 3) uint8."""
    return to_pixels(augment(images, cfg, draws))


def main() -> None:
    cfg = parse_train(None, os.environ, AugmentationConfig, "tools/visualize_augmentation.py")
    setup_logging()
    loader = TrainLoader(cfg, make_dataset(cfg).train)
    indices = next(iter(loader.sampler.epoch(cfg.epoch)))
    images = loader.images.read(indices)

    def column(**settings) -> np.ndarray:
        draws = Draws(cfg.run.seed, cfg.epoch, 0, batch=len(images))  # those of the training's own batch
        return pictures(images, cfg.replace(**settings), draws)

    alone = TRANSFORMS | ({"pad and crop": {"pad": cfg.augment.pad}} if cfg.augment.pad else {})
    columns = {"original": column(**OFF)} | {name: column(**OFF | on) for name, on in alone.items()}
    columns["as trained"] = column()
    rows = []
    for i in range(min(cfg.num, len(images))):
        sample = loader.samples[indices[i]]
        tiles = [Tile(c[i], "", RIGHT if name == "as trained" else QUERY) for name, c in columns.items()]
        rows.append((f"pid {sample.pid}, cam {sample.camid}", tiles))
    path = Path(cfg.output or Path(cfg.run.log_dir) / f"augmentation_{short_name(cfg.data.dataset)}.png")
    draw_rows(path, rows, ["\n".join(textwrap.wrap(name, 12)) for name in columns])
    log.info("%d of the %d images of the first batch of epoch %d: %s", len(rows), len(images), cfg.epoch, path)


if __name__ == "__main__":
    run(main)
