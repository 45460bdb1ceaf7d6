"""`data`: from image files to training batches, by one thread.

`classic` and `streamed` do all of it, image by image and our way. `augmented` starts from the cache of decoded images,
as training does; `cache` and `jpeg` are the batches before augmentation, from the cache and from the files.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from benchmarks import classic_loops
from benchmarks.measure import measure
from benchmarks.task import Task, usual_config
from config import Config
from datasets.augment import Draws, augment
from datasets.augment_rare import OFF
from datasets.cache import Images
from datasets.loaders import TrainLoader
from datasets.make import find_dataset
from utils.errors import UserError

CPU = torch.device("cpu")
COMPARED = 256  # images whose pixels are compared
# Decoders and resizing differ by a level or two of 255, about 0.02; swapped channels or sides by far more.
TOLERANCE = 0.1  # of a standard deviation, mean over the pixels


@dataclass
class Data(Task):
    """Image files to training batches, by one thread"""

    dataset: str = "market1501"  # its training images are read: a name or a folder, as for train.py
    data_root: str = "data"  # directory of the datasets
    images: int = 4096  # number of images, the first by name
    height: int = 256  # in pixels
    width: int = 128  # in pixels
    batch_size: int = 64  # images per batch, 4 of each identity
    repeats: int = 3  # epochs of each contender, of which the fastest counts, after one that does not

    task = "data"
    contenders = ("classic", "cache", "jpeg", "augmented", "streamed")

    def config(self, contender: str) -> Config:
        disk = {"disk_gb": 0.0} if contender in ("jpeg", "streamed") else {}
        return usual_config(self, cache_dir=self.scratch, workers=1, cache_gb=0.0, **disk)

    def measure(self, contender: str) -> dict:
        torch.set_num_threads(1)
        cfg = self.config(contender)
        samples = find_dataset(self.dataset, cfg).train[: self.images]
        loader = TrainLoader(cfg, samples)
        if cfg.data.disk_gb > 0 and contender != "classic" and loader.images.pictures is None:
            raise UserError(
                f"no cache could be written to {cfg.data.cache_dir}; make room there, or use fewer --images"
            )
        rows, paths = list(loader.sampler.epoch(0)), [s.path for s in samples]
        random.seed(0), torch.manual_seed(0)
        pictures = classic_loops.Pictures(
            paths, [0] * len(paths), classic_loops.training_transform(self.height, self.width)
        )

        def epoch() -> int:
            if contender == "classic":
                batches = (images for images, _ in classic_loops.batches(pictures, rows, 0))
            elif contender in ("cache", "jpeg"):
                batches = (images for _, images in loader.images.batches(rows))
            else:
                batches = (images for images, _ in loader.epoch(0, CPU))
            return sum(map(len, batches))

        epoch()  # starts libraries, and has the system keep the files in memory
        row, images = measure(epoch, CPU, self.repeats)
        return row | {"images": images} | ({"differences": self.compare(paths)} if contender == "streamed" else {})

    def compare(self, paths: list[str]) -> list[float]:
        """|ours - classic| of a normalized pixel without augmentation: mean over all images, and of the worst."""
        cfg, paths = self.config("streamed").replace(**OFF), paths[:COMPARED]
        images = Images(cfg, paths, "train").read(range(len(paths)))
        ours = augment(images, cfg, Draws(0, 0, 0, batch=len(paths)))
        plain = classic_loops.plain_transform(self.height, self.width)
        classic = torch.stack([image for image, _ in classic_loops.Pictures(paths, [0] * len(paths), plain)])
        apart = (ours - classic).abs().mean((1, 2, 3))
        return [apart.mean().item(), apart.max().item()]

    def check(self, rows: dict[str, dict]) -> dict[str, float]:
        if "streamed" not in rows:
            return {}
        mean, worst = rows["streamed"].pop("differences")
        if not mean <= TOLERANCE:
            raise UserError(f"the images of ours and classic are {mean:.3f} standard deviations apart: one is wrong")
        return {"mean": mean, "worst image": worst}
