"""Batches of P identities × K images: their rules, their number, their repeatability, their shares across ranks."""

from itertools import pairwise

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.sampler import PKSampler, ShuffleSampler, WeightedSampler
from utils.errors import UserError

SOME = settings(max_examples=50, deadline=None, derandomize=True)


def pids_of(sizes, seed: int = 0) -> np.ndarray:
    """Shuffled identities of images: sizes[i] images of an identity that is no label (gaps, negative numbers)."""
    pids = np.repeat([7 * i - 10 for i in range(len(sizes))], sizes)
    return np.random.default_rng(seed).permutation(pids)


@st.composite
def pk_cases(draw):
    """(sizes, P, K): identities with 1 to 20 images, of which P fit into a batch."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    return sizes, draw(st.integers(1, len(sizes))), draw(st.integers(1, 5))


def epochs(sampler, number: int = 1, first: int = 0) -> list[np.ndarray]:
    return [batch for epoch in range(first, first + number) for batch in sampler.epoch(epoch)]


def same(left, right) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


# ---- PK


@SOME
@given(pk_cases(), st.integers(0, 1000))
def test_every_batch_holds_p_identities_and_k_images_of_each(case, seed):
    sizes, p, k = case
    pids = pids_of(sizes)
    for batch in epochs(PKSampler(pids, p * k, k, seed), 2):
        assert reference.pk_batch_problems(batch, pids, p, k) == []


@SOME
@given(pk_cases(), st.integers(0, 1000))
def test_len_is_what_an_epoch_emits_and_as_much_as_the_groups_allow(case, seed):
    sizes, p, k = case
    sampler = PKSampler(pids_of(sizes), p * k, k, seed)
    assert len(epochs(sampler)) == len(epochs(sampler, first=5)) == len(sampler)
    assert len(sampler) == reference.most_pk_batches(sizes, p, k) >= 1


@SOME
@given(pk_cases(), st.integers(0, 1000))
def test_no_image_comes_twice_in_an_epoch_where_the_identity_has_k(case, seed):
    sizes, p, k = case
    pids = pids_of(sizes)
    times = np.bincount(np.concatenate(epochs(PKSampler(pids, p * k, k, seed))), minlength=len(pids))
    for image, number in enumerate(times):
        if np.sum(pids == pids[image]) >= k:
            assert number <= 1


def test_images_that_divide_evenly_all_come_exactly_once():
    pids = pids_of([8] * 8)
    for epoch in range(3):
        images = np.concatenate(list(PKSampler(pids, 16, 4, seed=1).epoch(epoch)))
        assert sorted(images) == list(range(64))


def test_over_many_epochs_no_image_is_left_out():
    sizes = [3, 4, 5, 7, 9, 11, 30]
    images = np.concatenate(epochs(PKSampler(pids_of(sizes), 12, 4), 150))
    assert set(images) == set(range(sum(sizes)))


def test_identities_are_seen_in_proportion_to_their_images():
    pids = pids_of([4] * 20 + [16] * 5)
    images = np.concatenate(epochs(PKSampler(pids, 16, 4), 50))  # 20 + 5·4 groups: 10 batches use all
    _, seen = np.unique(pids[images], return_counts=True)
    assert seen.tolist() == [4 * 50] * 20 + [16 * 50] * 5


def test_large_identities_are_spread_over_the_epoch_and_not_left_for_its_end():
    sizes = [4] * 30 + [40] * 3  # 60 groups: 15 batches, of which each large identity is in 10
    pids = pids_of(sizes)
    large = [7 * i - 10 for i in (30, 31, 32)]
    sampler = PKSampler(pids, 16, 4)
    per_batch = np.array([[np.isin(pids[b], large).sum() / 4 for b in sampler.epoch(e)] for e in range(100)])
    assert per_batch.shape == (100, 15)
    assert per_batch[:, :5].mean() == pytest.approx(2, abs=0.5)
    assert per_batch[:, -5:].mean() == pytest.approx(2, abs=0.5)


def test_identities_with_fewer_images_than_k_give_each_once_and_repeat_some():
    pids = np.array([0, 0, 1, 1, 1, 1, 2])
    seen = set()
    for batch in epochs(PKSampler(pids, 12, 4), 60):
        assert reference.pk_batch_problems(batch, pids, 3, 4) == []
        seen.add(tuple(sorted(batch[pids[batch] == 0])))
    assert seen == {(0, 0, 0, 1), (0, 0, 1, 1), (0, 1, 1, 1)}


@pytest.mark.parametrize(("others", "k", "p"), [(5, 4, 3), (40, 4, 4), (3, 2, 4), (200, 4, 16)])
def test_one_identity_with_very_many_images_does_not_break_the_batches(others, k, p):
    sizes = [20_000] + [k] * others
    pids = pids_of(sizes)
    sampler = PKSampler(pids, p * k, k)
    batches = epochs(sampler)
    assert len(batches) == len(sampler) == reference.most_pk_batches(sizes, p, k)
    for batch in batches:
        assert len(set(pids[batch])) == p
        assert len(set(batch)) == p * k


@SOME
@given(pk_cases(), st.integers(0, 1000), st.integers(0, 50))
def test_the_same_seed_and_epoch_give_the_same_batches(case, seed, epoch):
    sizes, p, k = case
    pids = pids_of(sizes)
    one, other = PKSampler(pids, p * k, k, seed), PKSampler(pids.tolist(), p * k, k, seed)
    epochs(other, 2)  # what ran before does not matter
    assert same(list(one.epoch(epoch)), list(other.epoch(epoch)))


def test_an_epoch_that_is_left_early_does_not_change_the_next():
    sampler = PKSampler(pids_of([8] * 10), 16, 4)
    expected = list(sampler.epoch(1))
    next(sampler.epoch(0))
    interleaved, other = sampler.epoch(1), sampler.epoch(2)
    found = []
    for batch in interleaved:
        next(other)
        found.append(batch)
    assert same(found, expected)


def test_epochs_and_seeds_give_different_batches():
    pids = pids_of([9] * 30)
    runs = [list(PKSampler(pids, 16, 4, seed).epoch(epoch)) for seed in range(3) for epoch in range(3)]
    for i, left in enumerate(runs):
        for right in runs[i + 1 :]:
            assert not same(left, right)


def test_the_batches_of_an_epoch_mix_identities():
    pids = pids_of([8] * 50)
    first = [tuple(sorted(set(pids[batch]))) for batch in epochs(PKSampler(pids, 16, 4))]
    assert len(set(first)) > 0.9 * len(first)


@SOME
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 100), st.data())
def test_the_ranks_share_out_the_batch_of_a_single_process(share, world_size, k, seed, data):
    p = share * world_size
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=p, max_size=p + 6))
    pids = pids_of(sizes)
    whole = PKSampler(pids, p * k, k, seed)
    parts = [PKSampler(pids, p * k, k, seed, rank, world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {len(whole)}
    shards = zip(*(part.epoch(3) for part in parts), strict=True)
    for batch, shard in zip(whole.epoch(3), shards, strict=True):
        assert {len(images) for images in shard} == {share * k}
        assert np.array_equal(np.concatenate(shard), batch)
        for images in shard:
            assert reference.pk_batch_problems(images, pids, share, k) == []


@pytest.mark.parametrize("convert", [list, tuple, lambda x: x.astype(np.int16)], ids=["list", "tuple", "int16"])
def test_identities_may_come_as_any_sequence(convert):
    pids = pids_of([6] * 6)
    assert same(epochs(PKSampler(convert(pids), 12, 4)), epochs(PKSampler(pids, 12, 4)))


def test_batches_are_arrays_of_integers():
    for sampler in (PKSampler(pids_of([2, 9, 9]), 12, 4), ShuffleSampler(range(30), 8)):
        for batch in sampler.epoch(0):
            assert isinstance(batch, np.ndarray)
            assert np.issubdtype(batch.dtype, np.integer)


def test_a_batch_that_k_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"batch-size 10 .* 4 images"):
        PKSampler(pids_of([8] * 8), 10, 4)
    with pytest.raises(UserError, match=r"batch-size 2 .* 4 images"):
        PKSampler(pids_of([8] * 8), 2, 4)


def test_identities_that_the_processes_cannot_share_are_refused():
    with pytest.raises(UserError, match=r"batch-size 12 .* 2 process"):
        PKSampler(pids_of([8] * 8), 12, 4, world_size=2)


def test_fewer_identities_than_a_batch_needs_are_refused_with_a_batch_that_works():
    with pytest.raises(UserError, match=r"needs 16 identities.* has 5; try --batch-size 20"):
        PKSampler(pids_of([8] * 5), 64, 4)
    assert len(PKSampler(pids_of([8] * 5), 20, 4)) == 2


# ---- PK with cameras balanced


@SOME
@given(pk_cases(), st.integers(1, 6), st.integers(0, 1000))
def test_each_camera_of_an_identity_is_spread_over_its_groups_as_evenly_as_can_be(case, cameras, seed):
    sizes, p, k = case
    pids = pids_of(sizes)
    camids = 10**7 + 100 * np.random.default_rng(seed).integers(0, cameras, len(pids))
    sampler = PKSampler(pids, p * k, k, seed, camids=camids)
    plain = PKSampler(pids, p * k, k, seed)
    assert len(sampler) == len(plain)
    for batch in epochs(sampler, 2):
        assert reference.pk_batch_problems(batch, pids, p, k) == []
    for images in sampler.images_of:
        groups = sampler._groups(images, np.random.default_rng(seed))
        if len(images) < k:
            continue
        assert len(set(groups.flat)) == groups.size  # every image once at most
        for camera in set(camids[images]):
            times = (camids[groups] == camera).sum(1)
            assert times.max() - times.min() <= 1


def test_balanced_groups_hold_more_cameras_than_plain_ones():
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(40), 16)
    camids = np.where(rng.random(640) < 0.7, 1, rng.integers(2, 7, 640))  # most images are of one camera

    def cameras(**kwargs) -> float:
        groups = [batch.reshape(-1, 4) for batch in epochs(PKSampler(pids, 32, 4, **kwargs), 3)]
        return np.mean([len(set(camids[group])) for batch in groups for group in batch])

    assert cameras(camids=camids) > cameras() + 0.1


def test_balanced_batches_repeat_with_seed_and_epoch_and_differ_otherwise():
    pids, camids = pids_of([9] * 30), np.arange(270) % 5
    runs = [list(PKSampler(pids, 16, 4, seed, camids=camids).epoch(e)) for seed in (0, 1) for e in (0, 1)]
    again = [list(PKSampler(pids, 16, 4, seed, camids=camids).epoch(e)) for seed in (0, 1) for e in (0, 1)]
    assert all(same(a, b) for a, b in zip(runs, again, strict=True))
    assert not any(same(runs[i], runs[j]) for i in range(4) for j in range(i))


def test_the_ranks_share_out_balanced_batches_too():
    pids, camids = pids_of([9] * 30), np.arange(270) % 5
    whole = epochs(PKSampler(pids, 32, 4, 3, camids=camids))
    parts = [epochs(PKSampler(pids, 32, 4, 3, rank, 4, camids)) for rank in range(4)]
    for batch, *shard in zip(whole, *parts, strict=True):
        assert np.array_equal(np.concatenate(shard), batch)


# ---- weighted


@SOME
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 1000), st.data())
def test_weighted_batches_show_every_identity_equally_often(sizes, seed, data):
    pids = pids_of(sizes)
    batch_size = data.draw(st.integers(1, len(pids)))
    sampler = WeightedSampler(pids, batch_size, seed)
    batches = epochs(sampler)
    assert len(batches) == len(sampler) == len(pids) // batch_size
    assert {len(batch) for batch in batches} == {batch_size}
    who, times = np.unique(pids[np.concatenate(batches)], return_counts=True)
    assert times.max() - (times.min() if len(who) == len(sizes) else 0) <= 2  # whole rounds, and one cut at the end


def test_weighted_takes_the_images_of_an_identity_equally_often():
    pids = pids_of([2, 40])
    times = np.bincount(np.concatenate(epochs(WeightedSampler(pids, 6), 400)), minlength=42)
    small, large = times[pids == -10], times[pids == -3]
    assert abs(small.sum() - large.sum()) <= 400
    assert small.max() < 1.1 * small.min() and large.max() < 1.5 * large.min()


def test_weighted_repeats_with_seed_and_epoch_differs_otherwise_and_is_shared_out():
    pids = pids_of([3, 9, 20])
    runs = [list(WeightedSampler(pids, 8, seed).epoch(e)) for seed in (0, 1) for e in (0, 1)]
    again = [list(WeightedSampler(pids.tolist(), 8, seed).epoch(e)) for seed in (0, 1) for e in (0, 1)]
    assert all(same(a, b) for a, b in zip(runs, again, strict=True))
    assert not any(same(runs[i], runs[j]) for i in range(4) for j in range(i))
    parts = [epochs(WeightedSampler(pids, 8, 1, rank, 2)) for rank in range(2)]
    for batch, *shard in zip(epochs(WeightedSampler(pids, 8, 1)), *parts, strict=True):
        assert np.array_equal(np.concatenate(shard), batch)


# ---- shuffle


@SOME
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_shuffle_gives_each_image_at_most_once_in_full_batches(images, batch_size, seed):
    if images < batch_size:
        with pytest.raises(UserError, match=f"batch-size {batch_size} .* {images} training images"):
            ShuffleSampler(range(images), batch_size, seed)
        return
    sampler = ShuffleSampler(range(images), batch_size, seed)
    batches = epochs(sampler)
    assert len(batches) == len(sampler) == images // batch_size
    assert {len(batch) for batch in batches} == {batch_size}
    seen = np.concatenate(batches)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(images))


def test_shuffle_leaves_no_image_out_over_many_epochs():
    sampler = ShuffleSampler([0] * 23, 5)
    assert set(np.concatenate(epochs(sampler, 30))) == set(range(23))


def test_shuffle_repeats_with_seed_and_epoch_and_differs_otherwise():
    runs = [list(ShuffleSampler(range(100), 10, seed).epoch(epoch)) for seed in range(3) for epoch in range(3)]
    again = [list(ShuffleSampler(range(100), 10, seed).epoch(epoch)) for seed in range(3) for epoch in range(3)]
    assert all(same(left, right) for left, right in zip(runs, again, strict=True))
    assert not any(same(left, right) for left, right in pairwise(runs))
    assert not same(runs[1], runs[3])  # seed 0, epoch 1 and seed 1, epoch 0
    assert not np.array_equal(np.concatenate(runs[0]), np.arange(100))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shuffle_ranks_share_out_the_batch_of_a_single_process(world_size):
    whole = epochs(ShuffleSampler(range(50), 8, 3))
    parts = [epochs(ShuffleSampler(range(50), 8, 3, rank, world_size)) for rank in range(world_size)]
    for batch, *shard in zip(whole, *parts, strict=True):
        assert {len(images) for images in shard} == {8 // world_size}
        assert np.array_equal(np.concatenate(shard), batch)


def test_shuffle_refuses_a_batch_that_the_processes_cannot_share():
    with pytest.raises(UserError, match=r"batch-size 10 .* 4 process"):
        ShuffleSampler(range(50), 10, world_size=4)
