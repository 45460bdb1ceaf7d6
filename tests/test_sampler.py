"""Batches of P identities × K images: their rules, number, repeatability, and shares across ranks."""

import numpy as np
import pytest
import reference

from config import Config
from datasets.base import Sample
from datasets.sampler import PKSampler, make_sampler
from datasets.shuffle import ShuffleSampler, WeightedSampler
from utils.errors import UserError


def pids_of(sizes, seed: int = 0) -> np.ndarray:
    """Shuffled identities of images: sizes[i] images of an identity that is not a label (gaps, negative numbers)."""
    pids = np.repeat([7 * i - 10 for i in range(len(sizes))], sizes)
    return np.random.default_rng(seed).permutation(pids)


def random_cases(count: int = 60):
    """(sizes, P, K, seed): identities with 1 to 20 images, of which P fit into a batch."""
    rng = np.random.default_rng(0)
    for seed in range(count):
        sizes = rng.integers(1, 21, rng.integers(1, 13)).tolist()
        yield sizes, int(rng.integers(1, len(sizes) + 1)), int(rng.integers(1, 6)), seed


def epochs(sampler, number: int = 1, first: int = 0) -> list[np.ndarray]:
    return [batch for epoch in range(first, first + number) for batch in sampler.epoch(epoch)]


def same(left, right) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


# ---- PK


def test_pk_batches_keep_their_rules_and_number():
    for sizes, p, k, seed in random_cases():
        pids = pids_of(sizes)
        sampler = PKSampler(pids, p * k, k, seed)
        batches = epochs(sampler)
        assert len(batches) == len(epochs(sampler, first=5)) == len(sampler)
        most = reference.most_pk_batches(sizes, p, k)
        returning = 2 * most * p * k < len(pids)
        assert len(sampler) == most >= 1 or returning
        assert all(reference.is_pk_batch(batch, pids, p, k) for batch in batches)
        assert all(np.issubdtype(batch.dtype, np.integer) for batch in batches)
        for image, times in enumerate(np.bincount(np.concatenate(batches), minlength=len(pids))):
            assert times <= 1 or np.sum(pids == pids[image]) < k or returning  # none twice where the identity has K
        assert same(epochs(PKSampler(pids.tolist(), p * k, k, seed)), batches)
    for others, k, p in [(5, 4, 3), (40, 4, 4), (3, 2, 4), (200, 4, 16)]:  # one identity with very many images
        sizes = [20_000] + [k] * others
        batches = epochs(PKSampler(pids_of(sizes), p * k, k))
        assert 2 * len(batches) * p * k >= sum(sizes)  # the others return
        assert all(len(set(batch)) == p * k for batch in batches)


def test_pk_uses_all_images_in_proportion_and_spreads_them():
    assert sorted(np.concatenate(epochs(PKSampler(pids_of([8] * 8), 16, 4, seed=1)))) == list(range(64))
    sizes = [3, 4, 5, 7, 9, 11, 30]
    assert set(np.concatenate(epochs(PKSampler(pids_of(sizes), 12, 4), 150))) == set(range(sum(sizes)))
    pids = pids_of([4] * 20 + [16] * 5)
    _, seen = np.unique(pids[np.concatenate(epochs(PKSampler(pids, 16, 4), 50))], return_counts=True)
    assert seen.tolist() == [4 * 50] * 20 + [16 * 50] * 5  # 20 + 5·4 groups: 10 batches use all
    pids = pids_of([8] * 50)
    first = [tuple(sorted(set(pids[batch]))) for batch in epochs(PKSampler(pids, 16, 4))]
    assert len(set(first)) > 0.9 * len(first)  # identities are mixed


def test_wrong_batch_sizes_are_refused_with_one_that_works():
    with pytest.raises(UserError, match=r"needs 16 identities.* has 5; try --batch-size 20"):
        PKSampler(pids_of([8] * 5), 64, 4)
    assert len(PKSampler(pids_of([8] * 5), 20, 4)) == 2
    with pytest.raises(UserError, match=r"batch-size 51 .* 50 training images"):
        ShuffleSampler(range(50), 51)


def test_each_camera_of_an_identity_is_spread_over_its_groups_as_evenly_as_possible():
    for sizes, p, k, seed in random_cases():
        pids = pids_of(sizes)
        camids = 10**7 + 100 * np.random.default_rng(seed).integers(0, 1 + seed % 6, len(pids))
        sampler = PKSampler(pids, p * k, k, seed, camids=camids)
        assert len(sampler) == len(PKSampler(pids, p * k, k, seed))
        assert all(reference.is_pk_batch(batch, pids, p, k) for batch in epochs(sampler))
        for images in sampler.images_of:
            groups = sampler._groups_once(images, np.random.default_rng(seed))
            if len(images) >= k:
                assert len(set(groups.flat)) == groups.size
                for camera in set(camids[images]):
                    times = (camids[groups] == camera).sum(1)
                    assert times.max() - times.min() <= 1


# ---- weighted and shuffle


def test_weighted_batches_show_every_identity_equally_often():
    for sizes, _, _, seed in random_cases():
        pids = pids_of(sizes)
        batch_size = 1 + seed % len(pids)
        sampler = WeightedSampler(pids, batch_size, seed)
        batches = epochs(sampler)
        assert len(batches) == len(sampler) == len(pids) // batch_size
        assert {len(batch) for batch in batches} == {batch_size}
        who, times = np.unique(pids[np.concatenate(batches)], return_counts=True)
        assert times.max() - (times.min() if len(who) == len(sizes) else 0) <= 2  # whole rounds; one is cut at the end
    pids = pids_of([2, 40])
    times = np.bincount(np.concatenate(epochs(WeightedSampler(pids, 6), 400)), minlength=42)
    small, large = times[pids == -10], times[pids == -3]
    assert abs(small.sum() - large.sum()) <= 400
    assert small.max() < 1.1 * small.min() and large.max() < 1.5 * large.min()


def test_shuffle_gives_each_image_at_most_once_in_full_batches():
    for images, batch_size in [(1, 1), (7, 2), (23, 5), (60, 60), (59, 30)]:
        batches = epochs(ShuffleSampler(range(images), batch_size))
        assert len(batches) == images // batch_size and {len(batch) for batch in batches} == {batch_size}
        seen = np.concatenate(batches)
        assert len(set(seen)) == len(seen) and set(seen) <= set(range(images))
    assert set(np.concatenate(epochs(ShuffleSampler([0] * 23, 5), 30))) == set(range(23))


# ---- all of them


@pytest.mark.parametrize("name", ["pk", "pk_cameras", "weighted", "shuffle"])
def test_batches_follow_from_seed_and_epoch(name):
    samples = [Sample("", int(pid), i % 5) for i, pid in enumerate(pids_of([9] * 20 + [30, 3]))]

    def sampler(seed: int = 3):
        return make_sampler(Config(sampler=name, batch_size=32, images_per_id=4, seed=seed), samples)

    assert type(sampler()) is {"weighted": WeightedSampler, "shuffle": ShuffleSampler}.get(name, PKSampler)
    runs = [list(sampler(seed).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    again = [list(sampler(seed).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(same(a, b) for a, b in zip(runs, again, strict=True))
    assert not any(same(runs[i], runs[j]) for i in range(4) for j in range(i))
    left_early = sampler(0)
    next(left_early.epoch(0))  # an epoch that is left early does not change the next
    assert same(list(left_early.epoch(1)), runs[1])
