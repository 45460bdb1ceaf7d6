"""The usual code of well-known repositories (reid-strong-baseline, AGW, ...), which ours is compared with.

It avoids needless costs: tensors are changed in place, a rectangle is erased at once, matrices are not copied. Code
that is faster than this is also faster than theirs.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from config import Config

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet, RGB in 0..1


# ---- loading, training and extraction: float32, channels first, image by image through Pillow and torchvision, in
# worker processes, `.item()` at each step


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
    kind = "fork" if workers else None  # as usual, even if this process was spawned
    rows = [list(map(int, batch)) for batch in rows]
    return iter(DataLoader(pictures, batch_sampler=rows, num_workers=workers, multiprocessing_context=kind))


def loss_of(cfg: Config, logits: torch.Tensor, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Label-smoothed cross entropy plus batch-hard triplet loss (Hermans et al. 2017), mined by boolean indices."""
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
    """Train with one step per batch; return the mean loss."""
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


# ---- evaluation and re-ranking: full matrices in NumPy, and a full sort of each row


def distances(query: np.ndarray, gallery: np.ndarray, metric: str) -> np.ndarray:
    """(Q, D) and (G, D) to (Q, G): 1 - cosine, or the euclidean distance."""
    distance = query @ gallery.T
    if metric == "cosine":
        distance /= np.linalg.norm(query, axis=1)[:, None]
        distance /= np.linalg.norm(gallery, axis=1)
        return np.subtract(1, distance, out=distance)
    return np.sqrt(_squared(distance, query, gallery), out=distance)


def _squared(products: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Turn inner products of the rows of a and b into squared euclidean distances, in place."""
    products *= -2
    products += np.einsum("ij,ij->i", a, a)[:, None]
    products += np.einsum("ij,ij->i", b, b)
    return np.maximum(products, 0, out=products)


def evaluate(
    distance: np.ndarray, query_pids, gallery_pids, query_camids, gallery_camids, max_rank: int = 50
) -> tuple[float, float, np.ndarray]:
    """mAP, mINP and CMC (max_rank,) in 0..1 of a distance matrix (Q, G), as in Bag of Tricks and AGW."""
    order = np.argsort(distance, axis=1, kind="stable")
    hits = gallery_pids[order] == query_pids[:, None]
    ap, inp, curves = [], [], []
    for q in range(len(distance)):
        hit = hits[q][~(hits[q] & (gallery_camids[order[q]] == query_camids[q]))]
        if not hit.any():
            continue
        ranks = np.flatnonzero(hit) + 1
        ap.append((hit.cumsum() / np.arange(1, len(hit) + 1))[hit].mean())
        inp.append(len(ranks) / ranks[-1])
        curves.append(np.arange(1, max_rank + 1) >= ranks[0])
    return float(np.mean(ap)), float(np.mean(inp)), np.mean(curves, axis=0)


def k_reciprocal(
    query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> np.ndarray:
    """Re-ranked distances (Q, G) (Zhong et al., Re-ranking with k-reciprocal Encoding, CVPR 2017), dense (N, N)."""
    features = np.concatenate([query, gallery])
    original = _squared(features @ features.T, features, features)
    original /= original.max(1, keepdims=True)
    near, queries = np.argsort(original, axis=1).astype(np.int32), len(query)
    encoding = np.zeros_like(original)
    for i in range(len(original)):
        members = _expanded(near, i, k1)
        weight = np.exp(-original[i, members])
        encoding[i, members] = weight / weight.sum()
    original = original[:queries].copy()
    if k2 > 1:
        mean = np.empty_like(encoding)
        for i in range(len(near)):
            encoding[near[i, :k2]].mean(axis=0, out=mean[i])
        encoding = mean
    holders = [np.flatnonzero(encoding[:, column]) for column in range(len(encoding))]
    jaccard = np.empty((queries, len(encoding)), np.float32)
    for q in range(queries):
        shared = np.zeros(len(encoding), np.float32)
        for column in np.flatnonzero(encoding[q]):
            rows = holders[column]
            shared[rows] += np.minimum(encoding[q, column], encoding[rows, column])
        jaccard[q] = 1 - shared / (2 - shared)
    return jaccard[:, queries:] * np.float32(1 - lambda_value) + original[:, queries:] * np.float32(lambda_value)


def _reciprocal(near: np.ndarray, i: int, k: int) -> np.ndarray:
    """R(i, k): the rows among the k + 1 nearest of i that have i among their own."""
    forward = near[i, : k + 1]
    return forward[(near[forward, : k + 1] == i).any(axis=1)]


def _expanded(near: np.ndarray, i: int, k1: int) -> np.ndarray:
    """R*(i, k1): R(i, k1), and for each member j the set R(j, k1/2) if more than two thirds of it are in R(i, k1)."""
    members = _reciprocal(near, i, k1)
    sets = [members]
    for j in members:
        half = _reciprocal(near, j, round(k1 / 2))
        if 3 * len(np.intersect1d(half, members)) > 2 * len(half):
            sets.append(half)
    return np.unique(np.concatenate(sets))
