"""Samples to batches on the device: a training loader that augments, and a test loader that does not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from config import Config
from datasets.augment import Draws, augment, normalise
from datasets.base import ReIDDataset, Sample, label_map, more_note
from datasets.cache import Images, listed
from datasets.make import make_dataset
from datasets.sampler import PKSampler, ShuffleSampler, WeightedSampler
from utils.errors import UserError
from utils.logging import log


class TrainLoader:
    """Augmented batches. An epoch's batches follow from (seed, epoch, step) alone, so a run can go on at any step.

    Process `rank` of `world_size` gets its share of every batch, augmented as a single process would augment it.
    """

    def __init__(self, cfg: Config, samples: list[Sample], rank: int = 0, world_size: int = 1):
        self.cfg, self.rank = cfg, rank
        shared = {"rank": rank, "world_size": world_size}
        self.samples, self.images = readable(cfg, samples, "train")
        self.label_map = label_map(self.samples)
        if len(self.label_map) < 2:
            raise UserError(
                "the images that can be read show fewer than two identities to train on; restore the others"
            )
        self.labels = torch.tensor([self.label_map[s.pid] for s in self.samples])
        pids, camids = [s.pid for s in self.samples], [s.camid for s in self.samples]
        if cfg.data.sampler == "weighted":
            self.sampler = WeightedSampler(pids, cfg.data.batch_size, cfg.run.seed, **shared)
        elif cfg.data.sampler == "shuffle":
            self.sampler = ShuffleSampler(pids, cfg.data.batch_size, cfg.run.seed, **shared)
        else:
            camids = camids if cfg.data.sampler == "pk_cameras" else None
            self.sampler = PKSampler(
                pids, cfg.data.batch_size, cfg.data.images_per_id, cfg.run.seed, **shared, camids=camids
            )

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(
        self, epoch: int, device: torch.device, first_step: int = 0
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """From step `first_step` on: images (B, 3, H, W) float32 and labels (B,) int64, both on `device`."""
        chosen = list(self.sampler.epoch(epoch))[first_step:]
        batches = on_device(self.images.batches(chosen, pin=device.type == "cuda"), device)
        for step, (indices, images) in enumerate(batches, first_step):
            share = {"first": self.rank * len(images), "total": self.cfg.data.batch_size}
            draws = Draws(self.cfg.run.seed, epoch, step, batch=len(images), **share)
            yield augment(images, self.cfg, draws), self.labels[indices].to(device, non_blocking=True)

    def files(self, epoch: int, step: int) -> str:
        """The images of one batch, for a message."""
        return listed({int(i): self.samples[i].path for i in list(self.sampler.epoch(epoch))[step]})


class TestLoader:
    """Every image of a split once, in order, normalised and nothing else."""

    __test__ = False  # not a test case, whatever pytest thinks of its name

    def __init__(self, cfg: Config, samples: list[Sample], name: str):
        self.batch_size = cfg.data.test_batch_size
        self.samples, self.images = readable(cfg, samples, name)
        self.rows = np.arange(len(self.samples))
        self.pids = np.array([s.pid for s in self.samples])
        self.camids = np.array([s.camid for s in self.samples])

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def part(self, index: int, count: int) -> TestLoader:
        """The index-th (from 0) of `count` runs that make up the split, their lengths about equal."""
        first, end = (len(self.samples) * i // count for i in (index, index + 1))
        part = copy.copy(self)
        for name in ("samples", "rows", "pids", "camids"):
            setattr(part, name, getattr(self, name)[first:end])
        return part

    def batches(self, device: torch.device) -> Iterator[torch.Tensor]:
        """Images (B, 3, H, W) float32 on `device`."""
        rows = (self.rows[i : i + self.batch_size] for i in range(0, len(self.rows), self.batch_size))
        for _, images in on_device(self.images.batches(rows, pin=device.type == "cuda"), device):
            yield normalise(images)


@dataclass
class Loaders:
    dataset: ReIDDataset
    train: TrainLoader
    query: TestLoader
    gallery: TestLoader

    @property
    def labels(self) -> dict[int, int]:
        """Identity to class label."""
        return self.train.label_map


def make_loaders(cfg: Config, rank: int = 0, world_size: int = 1) -> Loaders:
    """All three loaders of the settings, with what they read: unreadable images are gone from the dataset.

    The training loader has the share of one process of several. Raises UserError when data or batch sizes do not fit.
    """
    dataset = make_dataset(cfg)
    train, (dataset, query, gallery) = each(
        lambda: TrainLoader(cfg, dataset.train, rank, world_size), lambda: make_test_loaders(cfg, dataset)
    )
    dataset = replace(dataset, train=train.samples, train_note=left_out(dataset.train_note, train.images))
    return Loaders(dataset, train, query, gallery)


def make_test_loaders(cfg: Config, dataset: ReIDDataset) -> tuple[ReIDDataset, TestLoader, TestLoader]:
    """The dataset with the images that can be read, and the loaders of its query and gallery."""
    query, gallery = each(
        lambda: TestLoader(cfg, dataset.query, "query"), lambda: TestLoader(cfg, dataset.gallery, "gallery")
    )
    note = left_out(left_out(dataset.test_note, query.images), gallery.images)
    return replace(dataset, query=query.samples, gallery=gallery.samples, test_note=note), query, gallery


def each(*makes: Callable[[], Any]) -> list[Any]:
    """What each of them makes. Raises one UserError with all their sentences, so that all bad files show at once."""
    made, sentences = [], []
    for make in makes:
        try:
            made.append(make())
        except UserError as error:
            sentences.append(str(error))
    if sentences:
        raise UserError("\n".join(sentences))
    return made


def left_out(note: str, images: Images) -> str:
    """A note, and how many of these cannot be read."""
    if not images.bad:
        return note
    return more_note(note, f"{len(images.bad)} {images.name} images that cannot be read left out")


def readable(cfg: Config, samples: list[Sample], name: str) -> tuple[list[Sample], Images]:
    """The samples whose images can be read, and these. Raises UserError where there are none."""
    images = Images(cfg, [s.path for s in samples], name)
    if images.bad:
        reasons = listed(images.bad)
        log.warning("warning: %d of %d %s images left out: %s", len(images.bad), len(samples), name, reasons)
    if not len(images):
        raise UserError(f"the {name} split holds no image that can be read")
    return [samples[i] for i in images.kept], images


def on_device(
    batches: Iterator[tuple[np.ndarray, torch.Tensor]], device: torch.device
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """The batches with their images on `device`; a GPU copies the next one while it computes on the current one."""
    if device.type != "cuda":
        yield from ((indices, images.to(device)) for indices, images in batches)
        return

    def arrived(indices: np.ndarray, images: torch.Tensor, copied: torch.cuda.Event) -> tuple[np.ndarray, torch.Tensor]:
        stream = torch.cuda.current_stream(device)
        stream.wait_event(copied)
        images.record_stream(stream)  # its memory is in use until that stream is done with it
        return indices, images

    copying, coming = torch.cuda.Stream(device), None
    for indices, images in batches:
        with torch.cuda.stream(copying):
            following = (indices, images.to(device, non_blocking=True), copying.record_event())
        if coming:
            yield arrived(*coming)
        coming = following
    if coming:
        yield arrived(*coming)
