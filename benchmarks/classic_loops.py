"""Data loading, training and extraction as the well-known repositories write them (reid-strong-baseline, AGW, ...).

float32, channels first, images one by one through Pillow and torchvision, in worker processes, `.item()` at each step;
but without their needless costs: tensors are changed in place, a rectangle is erased at once.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torchvision.transforms as T
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from config import Config

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet, RGB in 0..1


def plain_transform(height: int, width: int) -> Callable[[Image.Image], torch.Tensor]:
    return T.Compose([T.Resize((height, width)), T.ToTensor(), T.Normalize(MEAN, STD, inplace=True)])


def training_transform(height: int, width: int) -> Callable[[Image.Image], torch.Tensor]:
    """The recipe of Bag of Tricks (Luo et al., CVPR Workshops 2019)."""
    crop = [T.RandomHorizontalFlip(0.5), T.Pad(10), T.RandomCrop((height, width))]
    return T.Compose(
        [T.Resize((height, width)), *crop, T.ToTensor(), T.Normalize(MEAN, STD, inplace=True), random_erasing]
    )


def random_erasing(image: torch.Tensor) -> torch.Tensor:
    """With probability 0.5 fill a rectangle of a normalized image (3, H, W) with 0 (Zhong et al., AAAI 2020).

    With Python's random numbers, as in the authors' code; torchvision's class takes several times as long.
    """
    if random.random() >= 0.5:
        return image
    _, height, width = image.shape
    for _ in range(100):
        area, ratio = random.uniform(0.02, 0.4) * height * width, random.uniform(0.3, 1 / 0.3)
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if rows < height and columns < width:
            top, left = random.randint(0, height - rows), random.randint(0, width - columns)
            image[:, top : top + rows, left : left + columns] = 0
            break
    return image


class Pictures(Dataset):
    """Image files with labels, transformed when they are read."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int], transform: Callable):
        self.paths, self.labels, self.transform = list(paths), list(labels), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), self.labels[index]


def batches(
    pictures: Pictures, rows: Iterable[Sequence[int]], workers: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images (B, 3, H, W) float32 and labels (B,) of these rows, read by `workers` processes (0: this one)."""
    return iter(DataLoader(pictures, batch_sampler=[list(map(int, batch)) for batch in rows], num_workers=workers))


def loss_of(cfg: Config, logits: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Smoothed cross entropy and batch hard triplet loss (Hermans et al. 2017), mined by boolean indices."""
    squares = features.pow(2).sum(1, keepdim=True).expand(len(features), len(features))
    squares = (squares + squares.t()).addmm(features, features.t(), beta=1, alpha=-2)
    distances, same = squares.clamp(min=1e-12).sqrt(), labels[:, None] == labels
    farthest = distances[same].view(len(features), -1).max(1)[0]
    nearest = distances[~same].view(len(features), -1).min(1)[0]
    ones = torch.ones_like(nearest)
    triplet = F.margin_ranking_loss(nearest, farthest, ones, margin=cfg.loss.triplet_margin)
    return F.cross_entropy(logits, labels, label_smoothing=cfg.loss.label_smoothing) + triplet


def train_epoch(
    cfg: Config, model: nn.Module, optimizer: torch.optim.Optimizer, loader: Iterable, device: torch.device
) -> float:
    """One step per batch; the mean loss."""
    model.train()
    total = correct = steps = 0
    for images, labels in loader:
        optimizer.zero_grad()
        images, labels = images.to(device), labels.to(device)
        (logits,), (features,) = model(images)
        loss = loss_of(cfg, logits, features, labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
        correct += (logits.argmax(1) == labels).float().mean().item()
        steps += 1
    return total / steps


def extract(model: nn.Module, loader: Iterable, device: torch.device) -> torch.Tensor:
    """Embeddings (N, D) float32 on the CPU."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(images.to(device)).cpu() for images, _ in loader])
