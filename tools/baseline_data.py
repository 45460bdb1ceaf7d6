"""The input path that `tools/benchmark.py data` compares with: image by image through Pillow and torchvision.

Written as the well-known repositories write it (reid-strong-baseline, AGW and their like), but without their needless
copies: tensors are normalised and erased in place, and a rectangle is erased at once, not channel by channel.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, RGB in 0..1
PAD = 10  # pixels of black on each side before the random crop


def training_transform(height: int, width: int) -> Callable[[Image.Image], torch.Tensor]:
    """The recipe of Bag of Tricks (Luo et al., CVPR Workshops 2019), of Python's and torch's global random numbers."""
    return T.Compose(
        [
            T.Resize((height, width)),
            T.RandomHorizontalFlip(0.5),
            T.Pad(PAD),
            T.RandomCrop((height, width)),
            T.ToTensor(),
            T.Normalize(MEAN, STD, inplace=True),
            RandomErasing(0.5),
        ]
    )


def plain_transform(height: int, width: int) -> Callable[[Image.Image], torch.Tensor]:
    """The same without anything random, as for a test."""
    return T.Compose([T.Resize((height, width)), T.ToTensor(), T.Normalize(MEAN, STD, inplace=True)])


class RandomErasing:
    """Fill a random rectangle with 0, in place (Zhong et al., Random Erasing Data Augmentation, AAAI 2020).

    Python's random numbers, as in the authors' code: torchvision's class takes several times as long.
    """

    def __init__(self, probability: float, area: tuple[float, float] = (0.02, 0.4), aspect: float = 0.3):
        self.probability, self.area, self.aspect = probability, area, aspect

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """image: (3, H, W), already normalised, so that 0 is the mean colour."""
        if random.random() >= self.probability:
            return image
        _, height, width = image.shape
        for _ in range(100):
            size = random.uniform(*self.area) * height * width
            ratio = random.uniform(self.aspect, 1 / self.aspect)
            tall, wide = round(math.sqrt(size * ratio)), round(math.sqrt(size / ratio))
            if tall < height and wide < width:
                top, left = random.randint(0, height - tall), random.randint(0, width - wide)
                image[:, top : top + tall, left : left + wide] = 0
                break
        return image


def load(paths: Sequence[str], transform: Callable[[Image.Image], torch.Tensor]) -> torch.Tensor:
    """A batch (B, 3, H, W) float32."""
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


def batches(
    paths: Sequence[str], index_batches: Iterable[np.ndarray], transform: Callable[[Image.Image], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """One batch after another, each loaded when it is asked for."""
    for indices in index_batches:
        yield load([paths[i] for i in indices], transform)
