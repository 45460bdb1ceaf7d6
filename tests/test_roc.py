"""The verification curve against all thresholds tried one by one."""

import numpy as np
import pytest
import reference
import torch

from utils import metrics, roc
from utils.metrics import evaluate_distance
from utils.roc import STEPS, PairCounter, Roc


def random_distances(seed: int) -> tuple[np.ndarray, tuple]:
    """(distances, ids) of up to 10 queries and 40 images: real, few different values, all equal, or with infinities."""
    rng = np.random.default_rng(seed)
    queries, images = rng.integers(1, 11), rng.integers(1, 41)
    ids = tuple(rng.integers(0, top, n) for top in rng.integers(1, (9, 4)) for n in (queries, images))
    distance = rng.normal(size=(queries, images)).astype((np.float32, np.float64)[seed % 2])
    if seed % 5 == 1:
        distance = np.round(distance)  # 0 and -0 among them
    elif seed % 5 == 2:
        distance[:] = 0.5
    elif seed % 5 == 3:
        distance[rng.random(distance.shape) < 0.3] = np.inf
        distance[rng.random(distance.shape) < 0.1] = -np.inf
    return distance, ids


def counted(distance: np.ndarray, ids: tuple, rows: int) -> Roc:
    """The curve from blocks of so many rows, as `metrics` passes them: ignored entries are NaN."""
    same_pid, same_camera = ids[0][:, None] == ids[1], ids[2][:, None] == ids[3]
    curve = Roc(int((~same_pid).sum()))
    masked = torch.from_numpy(np.where(same_pid & same_camera, np.nan, distance))
    for start in range(0, len(distance), rows):
        where = np.nonzero((same_pid & ~same_camera)[start : start + rows])
        curve.add(masked[start : start + rows], *(torch.from_numpy(x) for x in where))
    return curve


def assert_is_the_curve(found: Roc, positives: list, negatives: list) -> None:
    assert found.num_negatives == len(negatives)
    assert sorted(found.positives.tolist()) == sorted(positives)
    assert sorted(found.negatives.tolist()) == sorted(negatives)[: len(found.negatives)]
    for fpr in {0.0, *(k * roc.MAX_FPR / 7 for k in range(1, 7)), roc.MAX_FPR}:
        expected = reference.largest_tpr(positives, negatives, fpr)
        assert found.tpr(fpr) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_the_curve_is_that_of_all_thresholds(monkeypatch):
    for seed in range(150):
        distance, ids = random_distances(seed)
        positives, negatives = reference.accepted_pairs(distance, *ids)
        if not positives:
            continue
        monkeypatch.setattr(roc, "PIECE", (1, 5, 50, 1 << 20)[seed % 4])
        monkeypatch.setattr(metrics, "BLOCK_BYTES", (1, 300, 64 << 20)[seed % 3])
        monkeypatch.setattr(roc, "MAX_FPR", (0.0, 0.01, 0.1, 0.3, 0.5, 0.9)[seed % 6])
        assert_is_the_curve(counted(distance, ids, 1 + seed % 10), positives, negatives)
        scores = evaluate_distance(torch.from_numpy(distance), *ids, roc=True)
        assert_is_the_curve(scores.roc, positives, negatives)
        expected = evaluate_distance(torch.from_numpy(distance), *ids)
        assert expected.roc is None
        assert scores.mAP == pytest.approx(expected.mAP, rel=1e-12)  # counting pairs changes no score


# ---- counts at given thresholds


def test_pairs_are_counted_at_every_threshold():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        counter = PairCounter()
        thresholds = counter.thresholds.numpy()[:: STEPS // 8]
        values = np.concatenate([thresholds, np.nextafter(thresholds, np.float32(np.inf)), rng.normal(size=20)])
        values = np.append(values, [np.inf, -np.inf]).astype(np.float32)
        blocks = [[rng.choice(values, rng.integers(0, 200)) for _ in "ab"] for _ in range(3)]
        for block in blocks:
            counter.add(*map(torch.from_numpy, block))
        pairs = [np.concatenate(kind) for kind in zip(*blocks, strict=True)]
        assert counter.number.tolist() == [len(kind) for kind in pairs]
        thresholds = counter.thresholds.numpy()
        expected = np.array([[(kind <= t).sum() / max(len(kind), 1) for t in thresholds] for kind in pairs])
        np.testing.assert_allclose(counter.rates(), expected, rtol=1e-12)
        for most in (0, 0.1, 0.5, 1):
            fits = [i for i in range(len(thresholds)) if expected[1, i] <= most + 1e-12]
            assert counter.at_fpr(most) == (fits[-1] if fits else 0)
        apart = np.abs(expected[1] - (1 - expected[0]))
        assert apart[counter.equal_error()] == apart.min()
        for kind in range(2):
            reached = [i for i in range(len(thresholds)) if expected[kind, i] >= 0.5 - 1e-12]
            assert counter.quantile(kind, 0.5) == (reached[0] if reached else len(thresholds) - 1)
