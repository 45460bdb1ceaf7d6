"""Samples to batches on the device: a training loader that augments, and a test loader that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from config import Config
from datasets.augment import augment, batch_generator, normalise
from datasets.base import ReIDDataset, Sample, label_map
from datasets.images import Images
from datasets.make import make_dataset
from datasets.sampler import PKSampler, ShuffleSampler
from utils.errors import UserError


class TrainLoader:
    """Augmented batches. An epoch's batches follow from (seed, epoch, step) alone, so a run can go on at any step."""

    def __init__(self, cfg: Config, samples: list[Sample], labels: dict[int, int]):
        self.cfg = cfg
        self.samples = samples
        self.labels = torch.tensor([labels[s.pid] for s in samples])
        self.images = images_of(cfg, samples, "train")
        pids = [s.pid for s in samples]
        if cfg.sampler == "pk":
            self.sampler = PKSampler(pids, cfg.batch_size, cfg.images_per_id, cfg.seed)
        else:
            self.sampler = ShuffleSampler(pids, cfg.batch_size, cfg.seed)

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(
        self, epoch: int, device: torch.device, first_step: int = 0
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """From step `first_step` on: images (B, 3, H, W) float32 and labels (B,) int64, both on `device`."""
        cfg, chosen = self.cfg, list(self.sampler.epoch(epoch))[first_step:]
        for step, (indices, images) in enumerate(self.images.batches(iter(chosen)), first_step):
            generator = batch_generator(cfg.seed, epoch, step)
            images = images.to(device, non_blocking=True)
            batch = augment(images, cfg.flip_prob, cfg.pad, cfg.erase_prob, generator)
            yield batch, self.labels[indices].to(device, non_blocking=True)


class TestLoader:
    """Every image of a split once, in order, normalised and nothing else."""

    __test__ = False  # not a test case, whatever pytest thinks of its name

    def __init__(self, cfg: Config, samples: list[Sample], name: str):
        self.cfg, self.samples, self.batch_size = cfg, samples, cfg.test_batch_size
        self.images = images_of(cfg, samples, name)
        self.pids = np.array([s.pid for s in samples])
        self.camids = np.array([s.camid for s in samples])

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def part(self, index: int, count: int) -> TestLoader:
        """The index-th (from 0) of `count` runs that make up the split, their lengths about equal."""
        ends = [len(self.samples) * i // count for i in (index, index + 1)]
        return TestLoader(self.cfg, self.samples[slice(*ends)], self.images.name)

    def batches(self, device: torch.device) -> Iterator[torch.Tensor]:
        """Images (B, 3, H, W) float32 on `device`."""
        starts = range(0, len(self.samples), self.batch_size)
        indices = (np.arange(s, min(s + self.batch_size, len(self.samples))) for s in starts)
        for _, images in self.images.batches(indices):
            yield normalise(images.to(device, non_blocking=True))


@dataclass
class Loaders:
    dataset: ReIDDataset
    train: TrainLoader
    query: TestLoader
    gallery: TestLoader
    labels: dict[int, int]  # identity to class label

    @property
    def num_classes(self) -> int:
        return len(self.labels)


def make_loaders(cfg: Config) -> Loaders:
    """All three loaders of the dataset in the settings. Raises UserError when data or batch sizes do not fit."""
    dataset = make_dataset(cfg)
    labels = label_map(dataset.train)
    query, gallery = make_test_loaders(cfg, dataset)
    return Loaders(dataset, TrainLoader(cfg, dataset.train, labels), query, gallery, labels)


def make_test_loaders(cfg: Config, dataset: ReIDDataset) -> tuple[TestLoader, TestLoader]:
    """Query and gallery."""
    return TestLoader(cfg, dataset.query, "query"), TestLoader(cfg, dataset.gallery, "gallery")


def images_of(cfg: Config, samples: list[Sample], name: str) -> Images:
    """The pictures of some samples at the input size of the settings."""
    if not samples:
        raise UserError(f"the {name} split is empty")
    return Images([s.path for s in samples], cfg.height, cfg.width, cfg.cache_gb, cfg.workers, name)
