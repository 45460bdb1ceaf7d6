"""The task `data` of tools/benchmark.py: from image files to training batches, by one thread.

`classic` and `streamed` do all of it, image by image and ours. `augmented` begins with the cache of decoded images, as
training does; `cache` and `jpeg` are the batches before augmentation, from the cache and from the files.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import PIL
import torch

from config import Config
from datasets.augment import OFF, Draws, augment
from datasets.base import Sample
from datasets.cache import Images
from datasets.loaders import TrainLoader
from datasets.make import find_dataset
from datasets.sampler import PKSampler
from tools import baseline_data
from tools.benchmark_tables import DATA_COLUMNS, data_rows
from tools.benchmark_task import Task, timed
from utils.errors import UserError

CPU = torch.device("cpu")
COMPARED = 256  # images whose pixels are compared
# Decoders and resizing differ by a level or two of 255, about 0.02 deviations; swapped channels or sides by far more.
TOLERANCE = 0.1  # of a standard deviation, a pixel on average


def classic(cfg: Config, samples: list[Sample]) -> Callable[[], Iterator[torch.Tensor]]:
    """One epoch in the usual way."""
    random.seed(cfg.run.seed)
    torch.manual_seed(cfg.run.seed)
    transform = baseline_data.training_transform(cfg.data.height, cfg.data.width)
    return lambda: baseline_data.batches([s.path for s in samples], index_batches(cfg, samples), transform)


def unchanged(cfg: Config, samples: list[Sample]) -> Callable[[], Iterator[torch.Tensor]]:
    """One epoch of uint8 images."""
    images = stored(cfg, TrainLoader(cfg, samples)).images
    return lambda: (batch for _, batch in images.batches(index_batches(cfg, samples)))


def augmented(cfg: Config, samples: list[Sample]) -> Callable[[], Iterator[torch.Tensor]]:
    """One epoch as training takes it."""
    loader = stored(cfg, TrainLoader(cfg, samples))
    return lambda: (batch for batch, _ in loader.epoch(0, CPU))


def stored(cfg: Config, loader: TrainLoader) -> TrainLoader:
    """The same. Raises UserError where the settings want a cache and there is none."""
    if cfg.data.disk_gb > 0 and loader.images.pictures is None:
        raise UserError(f"no cache could be written to {cfg.data.cache_dir}; make room there, or take fewer --images")
    return loader


def index_batches(cfg: Config, samples: list[Sample]) -> list[np.ndarray]:
    """Of the first epoch: the same as TrainLoader's."""
    return list(PKSampler([s.pid for s in samples], cfg.data.batch_size, cfg.data.images_per_id, cfg.run.seed).epoch(0))


@dataclass
class InputPath(Task):
    """Image files to training batches, by one thread."""

    dataset: str = "market1501"  # whose training images are read; a name or a folder as for train.py
    data_root: str = field(default_factory=lambda: os.environ.get("REID_DATA") or "data")  # default: REID_DATA, or data
    images: int = 4096  # how many of them, the first by name
    height: int = 256  # of a batch, in pixels
    width: int = 128  # of a batch, in pixels
    batch_size: int = 64  # images a batch, 4 of each identity
    repeats: int = 3  # epochs of each contender, of which the fastest counts, after one that does not
    task: ClassVar[str] = "data"
    contenders: ClassVar[dict[str, Callable]] = {
        "classic": classic, "cache": unchanged, "jpeg": unchanged, "augmented": augmented, "streamed": augmented,
    }  # fmt: skip
    from_files: ClassVar[tuple[str, ...]] = ("jpeg", "streamed")  # those of ours that decode every image anew
    columns: ClassVar[tuple[str, ...]] = DATA_COLUMNS
    table = staticmethod(data_rows)
    device: ClassVar[str] = "cpu"
    threads: ClassVar[int] = 1
    unsaved: ClassVar[tuple[str, ...]] = (*Task.unsaved, "data_root")

    def config(self, scratch: Path, contender: str = "") -> Config:
        """The usual settings, with a cache in `scratch` where the contender has one."""
        size = {"height": self.height, "width": self.width, "batch_size": self.batch_size}
        where = {"dataset": self.dataset, "data_root": self.data_root, "cache_dir": str(scratch)}
        cfg = Config(**where, **size, workers=1, cache_gb=0)  # in a mapped file or not at all
        return cfg.replace(disk_gb=0) if contender in self.from_files else cfg

    def samples(self) -> list[Sample]:
        """The training images. Raises UserError where there are none."""
        try:
            samples = find_dataset(self.dataset, self.config(Path())).train[: self.images]
        except UserError as error:
            if self.dataset == "demo":
                raise
            what = str(error).splitlines()[0].partition(";")[0]
            mend = "name its place with --data-root or REID_DATA, or take --dataset demo, which needs no download"
            raise UserError(f"{what}; {mend}") from error
        if not samples:
            raise UserError(f"--dataset {self.dataset} holds nothing to train on; choose another")
        return samples

    def check(self) -> None:
        super().check()
        self.check_at_least_1("images", "repeats")
        cfg = self.config(Path()).check()
        index_batches(cfg, self.samples())

    def describe(self) -> str:
        size = f"{self.height} × {self.width}, batches of {self.batch_size}"
        return f"data, {self.dataset}: {len(self.samples()):,} training images at {size}"

    def versions(self) -> dict[str, str]:
        return {"pillow": PIL.__version__, "opencv": cv2.__version__}

    def measure(self, contender: str, scratch: Path) -> dict:
        """Time of one epoch, memory, and the images of an epoch."""
        cfg, samples = self.config(scratch, contender), self.samples()
        epoch = self.contenders[contender](cfg, samples)

        def run_through() -> int:
            return sum(len(batch) for batch in epoch())

        run_through()  # starts libraries, and has the system keep the files in memory
        times, memory, images = timed(run_through, self.repeats, CPU)
        seconds, cpu_seconds = min(times, key=lambda pair: pair[1])
        return {"contender": contender, "images": images, "seconds": seconds, "cpu_seconds": cpu_seconds, **memory}

    def compare(self, rows: list[dict]) -> dict[str, float]:
        """|ours - classic| of a normalised pixel without anything random, on average of all images and of the worst."""
        paths = [s.path for s in self.samples()[:COMPARED]]
        cfg = replace(self.config(Path(), "streamed"), **OFF)
        ours = augment(Images(cfg, paths, "train").read(range(len(paths))), cfg, Draws(0, 0, 0, batch=len(paths)))
        other = baseline_data.load(paths, baseline_data.plain_transform(self.height, self.width))
        apart = (ours - other).abs().mean((1, 2, 3))
        mean, worst = apart.mean().item(), apart.max().item()
        print(f"|ours - classic|: {mean:.3f} deviations a pixel, {worst:.3f} in the worst of {len(paths)} images")
        if not mean <= TOLERANCE:
            raise UserError(f"the images of ours and classic are {mean:.3f} standard deviations apart: one is wrong")
        return {"mean": mean, "worst image": worst}

    def file_name(self) -> str:
        """Task, dataset and device; size, batch and images where they are not the default."""
        values = {f"{self.height}x{self.width}": "256x128", f"b{self.batch_size}": "b64", f"n{self.images}": "n4096"}
        odd = [value for value, default in values.items() if value != default]
        return "_".join(["benchmark", self.task, Path(self.dataset).name, self.device, *odd]) + ".json"
