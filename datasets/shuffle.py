"""Samplers without P × K batches: all images in random order, or equally many images of every identity."""

from collections.abc import Iterator, Sequence

import numpy as np

from utils.errors import UserError


class ShuffleSampler:
    """Images in random order without repeats; the last incomplete batch is dropped, as tiny ones harm batch norm.

    Raises UserError when there are fewer images than a batch holds.
    """

    def __init__(self, pids: Sequence[int], batch_size: int, seed: int = 0):
        if len(pids) < batch_size:
            raise UserError(f"--batch-size {batch_size} is more than the {len(pids)} training images; lower it")
        self.images, self.batch_size, self.seed = len(pids), batch_size, seed

    def __len__(self) -> int:
        return self.images // self.batch_size

    def epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """The batches of one epoch (counted from 0): arrays of batch_size image indices."""
        order = self._order(np.random.default_rng([self.seed, epoch]))
        yield from np.split(order[: len(self) * self.batch_size], len(self))

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(self.images)


class WeightedSampler(ShuffleSampler):
    """Random images, equally many of every identity: in each round, each identity gives one image.

    An epoch is as long as that of ShuffleSampler; images of small identities are repeated in it.
    """

    def __init__(self, pids: Sequence[int], batch_size: int, seed: int = 0):
        super().__init__(pids, batch_size, seed)
        self.by_pid = np.argsort(pids, kind="stable")
        _, self.first, self.counts = np.unique(np.asarray(pids)[self.by_pid], return_index=True, return_counts=True)

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        identities, rounds = len(self.counts), -(-self.images // len(self.counts))
        who = np.concatenate([rng.permutation(identities) for _ in range(rounds)])[: self.images]
        return self.by_pid[self.first[who] + rng.integers(self.counts[who])]
