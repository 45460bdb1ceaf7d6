"""Load samples as batches on the device: a training loader that augments, and a test loader that does not."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from config import Config
from datasets.augment import Draws, augment, normalise, to_device
from datasets.base import ReIDDataset, Sample, join_notes, label_map
from datasets.cache import Images, summary
from datasets.make import all_published, make_dataset
from datasets.sampler import make_sampler
from utils.errors import UserError
from utils.logging import log
from utils.lookup import load

Batch = tuple[torch.Tensor, ...]


class TrainLoader:
    """Augmented batches. They depend on (seed, epoch, step) only, so a run can resume at any step.

    Process `rank` of `world_size` gets its share of every batch, augmented as a single process would augment it.
    """

    def __init__(self, cfg: Config, samples: list[Sample], rank: int = 0, world_size: int = 1):
        size, unit = cfg.data.batch_size, world_size * (cfg.data.images_per_id if "pk" in cfg.data.sampler else 1)
        if size % unit:
            raise UserError(f"--batch-size {size} does not split over {world_size} processes; use a multiple of {unit}")
        self.cfg, self.share = cfg, slice(size * rank // world_size, size * (rank + 1) // world_size)
        self.samples, self.images = readable(cfg, samples, "train")
        self.label_map = label_map(self.samples)
        if len(self.label_map) < 2:
            raise UserError("the readable training images show fewer than two identities; restore the others")
        self.labels = torch.tensor([self.label_map[s.pid] for s in self.samples])
        self.sampler = make_sampler(cfg, self.samples)
        self.teacher: torch.Tensor | None = None  # features (N, D) float32 of a teacher

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, device: torch.device, first_step: int = 0) -> Iterator[Batch]:
        """Yield, from step `first_step` on, images (B, 3, H, W) float32, labels (B,) int64 and, with a teacher, its
        features (B, D) float32, all on `device`."""
        batches = self._batches(epoch)[first_step:]
        for step, (indices, images) in enumerate(self.images.batches(batches, device), first_step):
            share = {"first": self.share.start, "total": self.cfg.data.batch_size}
            draws = Draws(self.cfg.run.seed, epoch, step, batch=len(images), **share)
            targets = (to_device(x[indices], device) for x in (self.labels, self.teacher) if x is not None)
            yield augment(images, self.cfg, draws), *targets

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """The indices of this process's share of each batch."""
        return [batch[self.share] for batch in self.sampler.epoch(epoch)]

    @property
    def teacher_dim(self) -> int:
        """Width of the teacher's features; 0 without one."""
        return 0 if self.teacher is None else self.teacher.shape[1]

    def files(self, epoch: int, step: int) -> str:
        """The images of one batch, for a message."""
        return summary({int(i): self.samples[i].path for i in self._batches(epoch)[step]})


class TestLoader:
    """Every image of a split once, in order, normalized but not augmented."""

    __test__ = False  # its name makes pytest take it for a test case

    def __init__(self, cfg: Config, samples: list[Sample], name: str, dataset: ReIDDataset | None = None):
        self.batch_size, self.dataset = cfg.data.test_batch_size, dataset or ReIDDataset(name)
        self.samples, self.images = readable(cfg, samples, name)
        self.rows = np.arange(len(self.samples))
        self.pids = np.array([s.pid for s in self.samples])
        self.camids = np.array([s.camid for s in self.samples])

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def part(self, index: int, count: int) -> "TestLoader":
        """The index-th (from 0) of `count` consecutive parts of about equal length."""
        first, end = (len(self.samples) * i // count for i in (index, index + 1))
        part = copy.copy(self)
        for name in ("samples", "rows", "pids", "camids"):
            setattr(part, name, getattr(self, name)[first:end])
        return part

    def caption(self, index: int, *more: str) -> str:
        """Return the caption of an image: its identity, and on the next line its camera and `more`."""
        sample = self.samples[index]
        who = self.dataset.name_of(sample.pid)
        below = " · ".join(filter(None, [self.dataset.camera_of(sample.camid), *more]))
        return f"{who if len(who) <= 18 else who[:17] + '…'}\n{below}".strip()

    def batches(self, device: torch.device) -> Iterator[torch.Tensor]:
        """Images (B, 3, H, W) float32 on `device`."""
        rows = (self.rows[i : i + self.batch_size] for i in range(0, len(self.rows), self.batch_size))
        for _, images in self.images.batches(rows, device):
            yield normalise(images)


@dataclass
class Loaders:
    """A dataset, without images that cannot be read, and its loaders."""

    dataset: ReIDDataset
    train: TrainLoader
    query: TestLoader
    gallery: TestLoader

    @property
    def labels(self) -> dict[int, int]:
        """Identity to class label."""
        return self.train.label_map


def make_loaders(cfg: Config, rank: int = 0, world_size: int = 1) -> Loaders:
    """Make all three loaders, and the dataset without the images that cannot be read.

    The training loader has the share of process `rank`. Raises UserError when data or batch sizes do not fit.
    """
    dataset = make_dataset(cfg)
    cfg = with_pixel_range(cfg, dataset)
    train, (dataset, query, gallery) = _call_all(
        lambda: TrainLoader(cfg, dataset.train, rank, world_size), lambda: make_test_loaders(cfg, dataset)
    )
    note = join_notes(dataset.train_note, train.images.note)
    if cfg.loss.teacher and cfg.loss.teacher_weight > 0:
        rows, name = load("datasets.teacher:read_teacher")(cfg.loss.teacher, dataset.train, train.images.kept)
        train.teacher, note = torch.from_numpy(rows), join_notes(note, f"distilled from {name}")
    dataset = replace(dataset, train=train.samples, train_note=note)
    return Loaders(dataset, train, query, gallery)


def with_pixel_range(cfg: Config, dataset: ReIDDataset) -> Config:
    """Return the settings with the value range of images of more than 8 bits, as stored or as found in the images."""
    known = any(cfg.data.pixel_range) or all_published(cfg)
    return cfg if known else load("datasets.depth:with_pixel_range")(cfg, dataset)


def make_test_loaders(cfg: Config, dataset: ReIDDataset) -> tuple[ReIDDataset, TestLoader, TestLoader]:
    """Return the dataset without the test images that cannot be read, and the loaders of its query and gallery."""
    query, gallery = _call_all(
        lambda: TestLoader(cfg, dataset.query, "query", dataset=dataset),
        lambda: TestLoader(cfg, dataset.gallery, "gallery", dataset=dataset),
    )
    note = join_notes(dataset.test_note, query.images.note, gallery.images.note)
    return replace(dataset, query=query.samples, gallery=gallery.samples, test_note=note), query, gallery


def readable(cfg: Config, samples: list[Sample], name: str) -> tuple[list[Sample], Images]:
    """Return the samples whose images can be read, and their images. Raises UserError if there are none."""
    images = Images(cfg, [s.path for s in samples], name)
    if images.bad:
        left, total = len(images.bad), len(samples)
        log.warning("warning: %d of %d %s images left out: %s", left, total, name, summary(images.bad))
    if not len(images):
        raise UserError(f"the {name} split has no image that can be read")
    return [samples[i] for i in images.kept], images


def _call_all(*makes: Callable[[], Any]) -> list[Any]:
    """Return the result of each call. Raises one UserError with all messages, so that all bad files show at once."""
    made, messages = [], []
    for make in makes:
        try:
            made.append(make())
        except UserError as error:
            messages.append(str(error))
    if messages:
        raise UserError("\n".join(messages))
    return made
