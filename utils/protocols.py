"""Evaluation protocols other than the single query of `utils.metrics.evaluate`.

Ids, metric, max_rank and errors are as for `evaluate`; ties also rank by gallery order. In a random gallery each query
has one match, at rank r, so AP and INP are both 1/r. A seed gives the same galleries on every device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from utils.distance import check_features, pairwise_distance
from utils.expansion import unit_rows
from utils.ids import Ids, check_ids
from utils.metrics import NO_MATCH, Scores, evaluate, evaluate_distance

BLOCK_BYTES = 32 << 20  # distances held at a time


@dataclass(kw_only=True)
class TrialScores(Scores):
    """Scores as means over trials, all of which have the same num_valid_queries. `ap` is a query's mean over the trials
    in which it was scored, NaN if there are none. Standard deviations are of a sample, NaN for a single trial."""

    mAP_std: float
    cmc_std: np.ndarray  # (max_rank,) float64
    trials: int


@torch.no_grad()
def pool_queries(
    query: Tensor, gallery: Tensor, query_pids: Ids, gallery_pids: Ids, query_camids: Ids, gallery_camids: Ids,
    *, metric: str = "cosine",
) -> Tensor:  # fmt: skip
    """Market-1501's multiple queries (Zheng et al., Scalable Person Re-identification, ICCV 2015): (Q, D) float32.

    Each query becomes the mean of itself and all gallery images of its identity under its camera, which the evaluation
    ignores anyway. For the cosine metric, rows are L2-normalized first; the result is not normalized.
    """
    check_features(query=query, gallery=gallery)
    query_ids = check_ids(len(query), query_pids=query_pids, query_camids=query_camids)
    gallery_ids = check_ids(len(gallery), gallery_pids=gallery_pids, gallery_camids=gallery_camids)
    if metric == "cosine":
        query, gallery = unit_rows(query), unit_rows(gallery)
    groups, group = np.unique(np.concatenate((query_ids, gallery_ids), axis=1), axis=1, return_inverse=True)
    of_query, of_gallery = torch.from_numpy(group.ravel()).to(query.device).split((len(query), len(gallery)))
    # in float64, so that the random order of a GPU's sums hardly ever changes the float32 result
    sums = query.new_zeros(groups.shape[1], query.shape[1], dtype=torch.float64)
    sums.index_add_(0, of_gallery, gallery.double())
    number = 1 + of_gallery.bincount(minlength=len(sums))[of_query, None]
    return ((sums[of_query] + query) / number).float()


def evaluate_single_shot(
    query: Tensor, gallery: Tensor, query_pids: Ids, gallery_pids: Ids, query_camids: Ids, gallery_camids: Ids,
    *, metric: str = "cosine", max_rank: int = 50, trials: int = 10, seed: int = 0,
) -> TrialScores:  # fmt: skip
    """CUHK03's first protocol (Li et al., DeepReID, CVPR 2014): each trial's gallery has one random image per identity.

    The query's own identity is represented by an image under another camera. In a trial, all queries share the
    images of other identities; torchreid's `eval_cuhk03` draws again per query, and returns the whole gallery's mAP.
    """
    check_features(query=query, gallery=gallery)
    query_pids, query_camids = check_ids(len(query), query_pids=query_pids, query_camids=query_camids)
    gallery_pids, gallery_camids = check_ids(len(gallery), gallery_pids=gallery_pids, gallery_camids=gallery_camids)
    identities, label = np.unique(gallery_pids, return_inverse=True)
    known = np.flatnonzero(np.isin(query_pids, identities))
    own_label, own_camera = np.searchsorted(identities, query_pids[known]), query_camids[known]

    def draw(order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        drawn = _first_of_each(label, order)
        elsewhere = gallery_camids[order] != gallery_camids[drawn][label[order]]
        # for queries under the drawn image's camera: the first image under another one, or any if there is none
        spare = _first_of_each(label, np.concatenate((order[elsewhere], order[~elsewhere])))
        own = np.where(gallery_camids[drawn][own_label] != own_camera, drawn[own_label], spare[own_label])
        valid = gallery_camids[own] != own_camera
        return drawn, known[valid], own[valid]

    return _over_trials(query, gallery, label, draw, metric, max_rank, trials, seed)


def evaluate_vehicle_id(
    features: Tensor, pids: Ids, *, metric: str = "cosine", max_rank: int = 50, trials: int = 10, seed: int = 0
) -> TrialScores:
    """PKU VehicleID's protocol (Liu et al., Deep Relative Distance Learning, CVPR 2016) on features (N, D).

    Each trial's gallery has one random image per identity; all other images are queries. Cameras are not used, and the
    only image of an identity is never a query. `ap` is (N,). Raises ValueError if no identity has two images.
    """
    check_features(vehicle=features)
    label = np.unique(*check_ids(len(features), pids=pids), return_inverse=True)[1]

    def draw(order: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        drawn = _first_of_each(label, order)
        rest = np.setdiff1d(order, drawn)
        return drawn, rest, drawn[label[rest]]

    return _over_trials(features, features, label, draw, metric, max_rank, trials, seed)


def evaluate_by_camera(
    query: Tensor, gallery: Tensor, query_pids: Ids, gallery_pids: Ids, query_camids: Ids, gallery_camids: Ids,
    *, metric: str = "cosine", max_rank: int = 50, distance: Tensor | None = None,
) -> dict[tuple[int, int], Scores]:  # fmt: skip
    """Scores of one camera's queries in another's gallery, by (query camera, gallery camera), where there is a match.

    distance: a (Q, G) matrix, such as a re-ranked one, to score instead of the features.
    """
    check_features(query=query, gallery=gallery)
    query_pids, query_camids = check_ids(len(query), query_pids=query_pids, query_camids=query_camids)
    gallery_pids, gallery_camids = check_ids(len(gallery), gallery_pids=gallery_pids, gallery_camids=gallery_camids)
    scores = {}
    for pair in product(np.unique(query_camids).tolist(), np.unique(gallery_camids).tolist()):
        q, g = np.flatnonzero(query_camids == pair[0]), np.flatnonzero(gallery_camids == pair[1])
        if pair[0] == pair[1] or not np.isin(query_pids[q], gallery_pids[g]).any():
            continue
        ids = (query_pids[q], gallery_pids[g], query_camids[q], gallery_camids[g])
        if distance is None:
            scores[pair] = evaluate(query[q], gallery[g], *ids, metric=metric, max_rank=max_rank)
        else:
            part = distance[torch.from_numpy(q)][:, torch.from_numpy(g)]
            scores[pair] = evaluate_distance(part, *ids, max_rank=max_rank)
    if not scores:
        raise ValueError(NO_MATCH)
    return scores


def _first_of_each(label: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the image of each label 0, 1, ... that comes first in `order`."""
    return order[np.unique(label[order], return_index=True)[1]]


def _over_trials(
    query: Tensor, gallery: Tensor, label: np.ndarray, draw: Callable[[np.ndarray], tuple],
    metric: str, max_rank: int, trials: int, seed: int,
) -> TrialScores:  # fmt: skip
    """Scores of galleries that `draw` makes from a random order of all gallery images, whose identities are `label`.

    draw returns the drawn images, one per label, the valid queries, and the image that is each valid query's match.
    """
    for name, value in (("max_rank", max_rank), ("trials", trials)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    generator = torch.Generator().manual_seed(seed)
    ranks = np.full((trials, len(query)), np.nan)
    for row in ranks:
        drawn, valid, own = draw(torch.randperm(len(gallery), generator=generator).numpy())
        if len(valid) == 0:
            raise ValueError(NO_MATCH)
        row[valid] = _ranks(query[valid], gallery, drawn, own, label[own], metric)
    mAP = np.nanmean(1 / ranks, axis=1)
    cmc = np.array([(row[:, None] <= np.arange(1, max_rank + 1)).sum(0) for row in ranks]) / len(valid)
    times = (~np.isnan(ranks)).sum(0)
    ap = np.nansum(1 / ranks, axis=0) / np.where(times, times, np.nan)
    mAP_std, cmc_std = (np.std(x, axis=0, ddof=1) if trials > 1 else np.full(x.shape[1:], np.nan) for x in (mAP, cmc))
    mAP, mAP_std = float(mAP.mean()), float(mAP_std)
    return TrialScores(mAP, mAP, cmc.mean(0), len(valid), ap, mAP_std=mAP_std, cmc_std=cmc_std, trials=trials)


def _ranks(
    query: Tensor, gallery: Tensor, drawn: np.ndarray, own: np.ndarray, label: np.ndarray, metric: str
) -> np.ndarray:
    """Rank (Q,) of image own[q] for query q among the drawn images of all labels but label[q]."""
    # One product for all images, so that equal features get equal distances; in gallery order, by which ties rank.
    columns, place = np.unique(np.concatenate((drawn, own)), return_inverse=True)
    images, position = gallery[columns], torch.arange(len(columns)).to(query.device)
    of_drawn, of_own = torch.from_numpy(place).to(query.device).split((len(drawn), len(own)))
    label = torch.from_numpy(label).to(query.device)
    ranks = []
    for rows in torch.arange(len(query)).to(query.device).split(max(1, BLOCK_BYTES // (4 * len(columns)))):
        distance = pairwise_distance(query[rows], images, metric)
        match = distance.gather(1, of_own[rows, None])
        before = (distance < match) | ((distance == match) & (position < of_own[rows, None]))
        others = before[:, of_drawn].scatter(1, label[rows, None], False)
        ranks.append(1 + others.sum(1).cpu().numpy())
    return np.concatenate(ranks)
