"""The loops that `tools/benchmark.py train` and `extract` compare with: float32, contiguous, images one by one through
Pillow in worker processes, `.item()` at every step.

Written as the well-known repositories write them (reid-strong-baseline, AGW and their like), with torch's own defaults,
but without their needless costs: parameters are one group, and one-hot labels do not go through the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from config import Config
from tools.baseline_data import load


class Pictures(Dataset):
    """Image files and their labels, transformed when they are asked for."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int], transform: Callable):
        self.paths, self.labels, self.transform = list(paths), list(labels), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return load([self.paths[index]], self.transform)[0], self.labels[index]


def batches(
    pictures: Pictures, index_batches: Iterable[Sequence[int]], workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images (B, 3, H, W) float32 and labels (B,), loaded by so many processes."""
    return iter(DataLoader(pictures, batch_sampler=Batches(index_batches), num_workers=workers))


class Batches:
    """What DataLoader takes for a sampler of batches: index arrays from anywhere, be they endless."""

    def __init__(self, index_batches: Iterable[Sequence[int]]):
        self.index_batches = index_batches

    def __iter__(self) -> Iterator[list[int]]:
        return ([int(i) for i in indices] for indices in self.index_batches)


class Losses(nn.Module):
    """Smoothed cross entropy, batch hard triplet and center loss (Luo et al., Bag of Tricks, CVPR Workshops 2019)."""

    def __init__(self, cfg: Config, num_classes: int, width: int):
        super().__init__()
        self.cfg = cfg
        self.centers = nn.Parameter(torch.randn(num_classes, width))

    def forward(self, logits: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(logits, labels, label_smoothing=self.cfg.loss.label_smoothing)
        loss = loss + self.cfg.loss.triplet_weight * hard_triplet(features, labels, self.cfg.loss.triplet_margin)
        return loss + self.cfg.loss.center_weight * self.center(features, labels)

    def center(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean squared distance to the label's center, by way of all centers."""
        squares = features.pow(2).sum(1, keepdim=True) + self.centers.pow(2).sum(1)
        squares = squares.addmm(features, self.centers.t(), beta=1, alpha=-2)
        mask = labels[:, None] == torch.arange(len(self.centers), device=labels.device)
        return (squares * mask).clamp(min=1e-12).sum() / len(labels)


def hard_triplet(features: torch.Tensor, labels: torch.Tensor, margin: float) -> torch.Tensor:
    """Hermans et al. 2017, mined by boolean indices; needs equally many images of each identity."""
    images = len(features)
    squares = features.pow(2).sum(1, keepdim=True).expand(images, images)
    squares = (squares + squares.t()).addmm(features, features.t(), beta=1, alpha=-2)
    distances = squares.clamp(min=1e-12).sqrt()
    same = labels[:, None] == labels
    farthest = distances[same].view(images, -1).max(1)[0]
    nearest = distances[~same].view(images, -1).min(1)[0]
    return F.margin_ranking_loss(nearest, farthest, torch.ones_like(nearest), margin=margin)


def loss_of(model: nn.Module, losses: Losses, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Of one batch, as training would see it; no weight moves."""
    model.train()
    with torch.no_grad():
        (logits,), (features,) = model(images)
        return losses(logits, features, labels).item()


def train(cfg: Config, model: nn.Module, losses: Losses, loader: Iterable, device: torch.device) -> float:
    """A step of Adam for every batch, and one of SGD for the centers. Gives the mean loss."""
    optimizer = torch.optim.Adam(
        model.parameters(), lr=cfg.solver.lr * cfg.solver.warmup_factor, weight_decay=cfg.solver.weight_decay
    )
    center_optimizer = torch.optim.SGD(losses.parameters(), lr=cfg.loss.center_lr)
    model.train()
    total = correct = steps = 0
    for images, labels in loader:
        optimizer.zero_grad()
        center_optimizer.zero_grad()
        images, labels = images.to(device), labels.to(device)
        (logits,), (features,) = model(images)
        loss = losses(logits, features, labels)
        loss.backward()
        optimizer.step()
        losses.centers.grad /= cfg.loss.center_weight
        center_optimizer.step()
        total += loss.item()
        correct += (logits.argmax(1) == labels).float().mean().item()
        steps += 1
    return total / steps


def extract(model: nn.Module, loader: Iterable, device: torch.device) -> torch.Tensor:
    """Embeddings (N, D) float32 on the CPU."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(images.to(device)).cpu() for images, _ in loader])
