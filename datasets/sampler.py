"""Choose the images of each batch. The batches of an epoch depend on (seed, epoch) only."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from config import Config
from datasets.base import Sample
from utils.errors import UserError
from utils.lookup import load


class PKSampler:
    """P identities × K images per batch (Hermans et al., In Defense of the Triplet Loss, 2017).

    An epoch cuts the shuffled images of each identity into n // K groups of K, so that identities are seen in
    proportion to their images; an identity with fewer than K images gives one group with repeats. If an epoch would
    show less than half of the images, small identities give more groups. A batch is P groups of different identities.

    pids: identity or label of each image, (N,). batch_size: P × K. camids: camera of each image, (N,); if given, a
    group's images come from as many cameras as its identity allows. Raises UserError for too few identities.
    """

    def __init__(
        self, pids: Sequence[int], batch_size: int, images_per_id: int, seed: int = 0,
        camids: Sequence[int] | None = None,
    ):  # fmt: skip
        self.camids = None if camids is None else np.asarray(camids)
        self.p, self.k, self.seed = batch_size // images_per_id, images_per_id, seed
        by_pid = np.argsort(pids, kind="stable")
        first = np.unique(np.asarray(pids)[by_pid], return_index=True)[1]
        self.images_of = np.split(by_pid, first[1:])
        self.groups = np.array([max(len(images) // self.k, 1) for images in self.images_of])
        identities = len(self.images_of)
        if identities < self.p:
            fitting = (p for p in range(identities, 1, -1) if 2 * self._count_batches(p) * p * self.k >= len(pids))
            raise UserError(
                f"a batch of {batch_size} with {images_per_id} images per identity needs {self.p} identities, the "
                f"training set has {identities}; try --batch-size {next(fitting, identities) * images_per_id}"
            )
        self.batches = self._count_batches(self.p)
        if 2 * (shown := self.batches * batch_size) < len(pids):
            self.batches = max(int(self.groups.sum()) // self.p, 1)
            needed, most = self.p * self.batches, range(1, self.batches + 1)
            least = next(n for n in most if np.minimum(np.maximum(self.groups, n), self.batches).sum() >= needed)
            self.groups = np.maximum(self.groups, least)
            _warn_shown(
                f"identities with few images have {least} groups of {self.k} per epoch, which would otherwise show",
                shown, len(pids), "a smaller --batch-size needs fewer such repeats",
            )  # fmt: skip
        if 2 * (shown := self.batches * batch_size) < len(pids):
            _warn_shown("an epoch shows", shown, len(pids), "a smaller --batch-size or --images-per-id shows more")

    def _count_batches(self, p: int) -> int:
        """Count the batches of P identities that use every group at most once. A batch has an identity at most once, so
        B batches can use at most min(groups, B) groups of it."""
        batches = int(self.groups.sum()) // p
        while np.minimum(self.groups, batches).sum() < p * batches:
            batches -= 1
        return batches

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """The batches of one epoch (counted from 0): arrays of P·K image indices, identity by identity."""
        rng = np.random.default_rng([self.seed, epoch])
        groups = [self._groups(images, number, rng) for images, number in zip(self.images_of, self.groups, strict=True)]
        left = self.groups.copy()
        for batches_left in range(self.batches, 0, -1):
            chosen = self._choose(left, batches_left, rng)
            left[chosen] -= 1
            yield np.concatenate([groups[i][left[i]] for i in chosen])

    def _groups(self, images: np.ndarray, needed: int, rng: np.random.Generator) -> np.ndarray:
        """Shuffle the images of one identity into groups (needed, K); shuffle again when they are used up."""
        groups = self._groups_once(images, rng)
        while len(groups) < needed:
            groups = np.concatenate([groups, self._groups_once(images, rng)])
        return groups[:needed]

    def _groups_once(self, images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Shuffle them once into groups (n, K), without repeated images if there are at least K."""
        if len(images) < self.k:
            again = rng.choice(images, self.k - len(images))
            return np.concatenate([rng.permutation(images), again])[None]
        number = len(images) // self.k
        chosen = rng.permutation(images)[: number * self.k]
        if self.camids is None:
            return chosen.reshape(number, self.k)
        # Dealt camera by camera like cards: a camera's images go to as many groups as possible.
        cameras, camera = np.unique(self.camids[chosen], return_inverse=True)
        chosen = chosen[np.argsort(rng.permutation(len(cameras))[camera], kind="stable")]
        return rng.permutation(chosen.reshape(self.k, number).T)

    def _choose(self, left: np.ndarray, batches_left: int, rng: np.random.Generator) -> np.ndarray:
        """Draw P identities that still have groups, weighted by their number. An identity with as many groups as there
        are batches left must be drawn now: that alone keeps the rest of the epoch solvable."""
        # The P largest of u^(1/w) are a weighted draw without replacement (Efraimidis & Spirakis 2006).
        with np.errstate(divide="ignore"):
            keys = np.log(rng.random(len(left))) / left  # negative; -inf for an identity without groups
        must = left >= batches_left
        keys[must] = 1.0 + rng.random(must.sum())
        return np.argsort(-keys, kind="stable")[: self.p]


def _warn_shown(what: str, shown: int, images: int, fix: str) -> None:
    warnings.warn(f"{what} {shown} of {images} training images ({shown / images:.0%}); {fix}", stacklevel=3)


def make_sampler(cfg: Config, samples: Sequence[Sample]) -> Any:
    """Make the sampler of the settings: `len()` is the batches per epoch, and `epoch(number)` yields their indices."""
    pids, size, seed = [s.pid for s in samples], cfg.data.batch_size, cfg.run.seed
    if cfg.data.sampler in ("shuffle", "weighted"):
        return load(f"datasets.shuffle:{cfg.data.sampler.title()}Sampler")(pids, size, seed)
    camids = [s.camid for s in samples] if cfg.data.sampler == "pk_cameras" else None
    return PKSampler(pids, size, cfg.data.images_per_id, seed, camids)
