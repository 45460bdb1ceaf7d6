"""Evaluation: images to features, features to scores, scores to tables and to the record of a result."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from config import Config
from datasets.base import ONE_CAMERA, ReIDDataset, join_notes
from datasets.loaders import TestLoader
from model import ReIDModel
from processor.precision import autocast, layout
from processor.ranks import ALONE, Ranks
from utils.distance import pairwise_distance
from utils.errors import UserError, printable
from utils.logging import log
from utils.lookup import load
from utils.metrics import NO_MATCH, Scores, evaluate

RANDOM_GALLERIES = ("single_shot", "vehicle_id")  # protocols without one ranked list per query
FALSE_POSITIVE_RATES = (1e-4, 1e-3, 1e-2)
FEW_QUERIES = 200  # with fewer queries, the confidence interval of Rank-1 is given
Z = 1.96  # standard deviations of a 95 % interval

Pair = tuple[torch.Tensor, torch.Tensor]  # features of queries (Q, D) and gallery (G, D)


# ---- features


def feature_batches(
    cfg: Config, model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False, shown: bool = True
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Yield embeddings (B, D) float32 of a split in order; with `flip`, also their mean with those of mirror images.

    Precision and memory layout are those of the settings. The model is put into evaluation mode.
    """
    model.eval()
    hidden = None if shown else True  # None: hidden without a terminal
    with tqdm(total=len(loader.samples), desc=loader.images.name, unit="img", leave=False, disable=hidden) as bar:
        for images in loader.batches(device):
            with torch.no_grad(), autocast(device, cfg.loop.test_precision):
                images = images.contiguous(memory_format=layout(cfg))
                features = model(images).float()
                flipped = (features + model(images.flip(3)).float()) / 2 if flip else None
            yield features, flipped
            bar.update(len(images))


def extract_features(
    cfg: Config, model: ReIDModel, loader: TestLoader, device: torch.device, flip: bool = False, ranks: Ranks = ALONE
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Join all `feature_batches` to (N, D) float32 on `device`. Several processes extract a part each, and get all."""
    part = loader.part(ranks.rank, ranks.size)
    batches = list(feature_batches(cfg, model, part, device, flip, ranks.first))
    none = [torch.zeros(0, model.embedding_dim, device=device)]  # with more processes than images
    plain = ranks.gather_rows(torch.cat([plain for plain, _ in batches] or none))
    return plain, ranks.gather_rows(torch.cat([flipped for _, flipped in batches] or none)) if flip else None


# ---- scores


@dataclass
class Inference:
    """Scores by processing of the features ("plain", "flip+rerank", ...), and what the last scores were made from."""

    scores: dict[str, Scores]
    query: torch.Tensor  # (Q, D) float32
    gallery: torch.Tensor  # (G, D)
    reranked: torch.Tensor | None = None  # (Q, G)
    by_camera: dict[tuple[int, int], Scores] = field(default_factory=dict)  # (query camera, gallery camera)
    record: dict[str, Any] = field(default_factory=dict)  # what a test stores, as JSON

    def distance(self, cfg: Config, queries) -> torch.Tensor:
        """Return the distances (len(queries), G) of the last scores; queries are indices."""
        if self.reranked is not None:
            return self.reranked[queries]
        return pairwise_distance(self.query[queries], self.gallery, cfg.eval.metric)

    def per_query(self) -> dict[str, dict[str, list[float]]]:
        """Return AP and rank of the first match of each query with a match, for JSON; not for random galleries."""
        kept = {name: (s.ap, s.first, ~np.isnan(s.ap)) for name, s in self.scores.items() if s.first is not None}
        return {
            name: {"ap": ap[some].round(6).tolist(), "first": first[some].astype(int).tolist()}
            for name, (ap, first, some) in kept.items()
        }


def do_inference(
    cfg: Config, model: ReIDModel, query: TestLoader, gallery: TestLoader, device: torch.device, ranks: Ranks = ALONE
) -> Inference | None:
    """Extract features of both splits and compute all scores of the settings; None in all processes but the first.

    Raises UserError if the features are not finite or nothing can be scored.
    """
    q, g = (extract_features(cfg, model, x, device, cfg.eval.flip, ranks) for x in (query, gallery))
    if not ranks.first:
        return None
    pairs = {"plain": (q[0], g[0])} | ({"flip": (q[1], g[1])} if cfg.eval.flip else {})
    return score_features(cfg, pairs, (query.pids, gallery.pids, query.camids, gallery.camids))


def score_features(cfg: Config, pairs: dict[str, Pair], ids: tuple) -> Inference:
    """Compute all scores of the settings.

    pairs: features by name; expansion and re-ranking use the last pair. ids: the four id arrays of `evaluate`.
    Raises UserError if the features are not finite or nothing can be scored.
    """
    options = cfg.eval
    try:
        if options.protocol == "multi_query":
            pairs = load("processor.optional_scores:pool")(cfg, pairs, ids)
        score = scoring_function(cfg)
        inference = Inference({name: score(*pair, *ids) for name, pair in pairs.items()}, *list(pairs.values())[-1])
        if options.augmentation_k or options.query_expansion or options.by_camera or options.rerank:
            load("processor.optional_scores:add_scores")(cfg, inference, score, ids)
    except ValueError as error:
        remedy = f"; {ONE_CAMERA}" if str(error) == NO_MATCH else ""
        raise UserError(f"{error}{remedy}") from error
    return inference


def scoring_function(cfg: Config) -> Callable[..., Scores]:
    """Return the protocol as a function of features and ids."""
    options = {"metric": cfg.eval.metric, "max_rank": cfg.eval.max_rank}
    if cfg.eval.roc and cfg.eval.metric != "cosine":
        return partial(load("processor.optional_scores:evaluate_with_cosine_roc"), **options)
    if cfg.eval.protocol not in RANDOM_GALLERIES:
        return partial(evaluate, **options, roc=cfg.eval.roc)
    options |= {"trials": cfg.eval.trials, "seed": cfg.run.seed}
    return partial(load(f"processor.optional_scores:{cfg.eval.protocol}"), **options)


# ---- the protocol


def plain_settings(cfg: Config) -> Config:
    """Return the settings with the scores of plain features only."""
    return cfg.replace(flip=False, rerank=False, query_expansion=0, augmentation_k=0, roc=False, by_camera=False)


def resolve_protocol(cfg: Config, dataset: ReIDDataset, ranked_lists: bool = False) -> Config:
    """Return the settings with the protocol `auto` replaced by that of the dataset's authors.

    ranked_lists: for programs that show one ranked list per query; `auto` is then `standard`. Raises UserError if the
    protocol does not fit ranked lists or typed settings, or if there are too many cameras for a table.
    """
    if ranked_lists and cfg.eval.protocol in RANDOM_GALLERIES:
        raise UserError(f"--protocol {cfg.eval.protocol} has random galleries and no single ranked list; leave it out")
    if cfg.eval.protocol == "auto":
        cfg = cfg.replace(protocol="standard" if ranked_lists else dataset.protocol)
    if cfg.eval.protocol in RANDOM_GALLERIES:
        cfg = load("processor.optional_scores:drop_undefined")(cfg)
    if cfg.eval.by_camera:
        load("processor.optional_scores:check_cameras")(dataset)
    return cfg


def scores_note(cfg: Config, note: str = "") -> str:
    """Return all caveats of the scores, the dataset's note first; empty for the full standard protocol."""
    protocol = f"protocol {cfg.eval.protocol}" if cfg.eval.protocol in (*RANDOM_GALLERIES, "multi_query") else ""
    if cfg.eval.protocol in RANDOM_GALLERIES:
        protocol += f", mean of {cfg.eval.trials} random galleries (seed {cfg.run.seed})"
    return join_notes(note, protocol, cfg.eval.rerank_note if cfg.eval.rerank else "")


# ---- tables and records


def report(inference: Inference, note: str, camera_names: Mapping[int, str] = {}) -> dict[str, dict]:
    """Log the tables; return the same as plain values for JSON: `scores` and, if asked for, `by_camera`."""
    values = {"scores": score_values(inference.scores)}
    log.info(score_table(values["scores"], note))
    if inference.by_camera:
        log.info(load("processor.optional_scores:camera_table")(inference.by_camera, camera_names))
        words = (f"{camera_names.get(q, q)} to {camera_names.get(g, g)}" for q, g in inference.by_camera)
        values["by_camera"] = score_values(dict(zip(words, inference.by_camera.values(), strict=True)))
    return values


def score_values(scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
    """Return the scores as plain values in percent, for JSON and for `score_table`."""
    table = {}
    for name, s in scores.items():
        row = {"mAP": s.mAP, "mINP": s.mINP} | {f"rank{k}": s.rank(k) for k in (1, 5, 10, 20) if k <= len(s.cmc)}
        if s.roc:
            row |= {f"tpr@{fpr:.0e}": s.roc.tpr(fpr) for fpr in FALSE_POSITIVE_RATES}
        if hasattr(s, "mAP_std"):  # of several random galleries
            row |= {"mAP_std": s.mAP_std, "rank1_std": float(s.cmc_std[0])}
        table[name] = {key: round(100 * value, 4) for key, value in row.items() if math.isfinite(value)}
        table[name]["valid_queries"] = s.num_valid_queries
    return table


COLUMNS = {"mAP": "mAP", "mINP": "mINP", "Rank-1": "rank1", "Rank-5": "rank5", "Rank-10": "rank10"}
OPTIONAL = {"mAP ±": "mAP_std", "R-1 ±": "rank1_std"} | {
    f"T@F{fpr:.0e}".replace("e-0", "e-"): f"tpr@{fpr:.0e}" for fpr in FALSE_POSITIVE_RATES
}


def score_table(values: dict[str, dict[str, float]], note: str = "") -> str:
    """Return the result of `score_values` as a text table: one row per protocol, in percent."""
    columns = COLUMNS | {k: v for k, v in OPTIONAL.items() if any(v in row for row in values.values())}
    width = max(14, *(len(name) + 1 for name in values))
    lines = [f"{'protocol':<{width}}" + "".join(f"{title:>8}" for title in columns) + f"{'queries':>9}"]
    for name, row in values.items():
        cells = "".join(f"{row[key]:>8.2f}" if key in row else f"{'-':>8}" for key in columns.values())
        lines.append(f"{name:<{width}}{cells}{row['valid_queries']:>9}")
    return "\n".join(filter(None, [*lines, rank1_interval(values), note and f"note: {printable(note)}"]))


def rank1_interval(values: dict[str, dict[str, float]]) -> str:
    """Return the confidence interval of Rank-1 of the first scores if there are few queries, else ""."""
    name, row = next(iter(values.items()))
    number, share = row["valid_queries"], row["rank1"] / 100
    if number >= FEW_QUERIES:
        return ""
    squared = Z**2 / number
    middle = (share + squared / 2) / (1 + squared)  # of Wilson's interval
    half = (share * (1 - share) * squared + squared**2 / 4) ** 0.5 / (1 + squared)
    low, high = 100 * max(middle - half, 0), 100 * min(middle + half, 1)
    return (
        f"{number} {'query' if number == 1 else 'queries'}: {name} Rank-1 {100 * share:.0f} ± {100 * half:.0f} "
        f"(95 % Wilson interval {low:.0f} to {high:.0f})"
    )


def result_record(state: dict[str, Any], cfg: Config, scores: dict, note: str, command: str = "") -> dict[str, Any]:
    """Return plain values with which a result can be repeated and compared.

    state: a checkpoint's dict. cfg, scores, note: settings, `score_values` and note of the evaluation. command: repeats
    the evaluation, if it was separate.
    """
    speeds = sorted(h["images_per_second"] for h in state["history"] if "images_per_second" in h)
    first = state["history"][0] if state["history"] else {}
    return {
        "preset": cfg.run.preset, "dataset": cfg.data.dataset, "test_dataset": cfg.data.test_dataset,
        "command": state["command"], "test_command": command, **state["environment"], "seed": cfg.run.seed,
        "precision": state.get("precision", ""),
        "epochs": state["epoch"], "train_seconds": round(state["seconds"], 1),
        "images_per_second": speeds[len(speeds) // 2] if speeds else None, "note": note,
        "before": first["scores"]["plain"] if first.get("epoch") == 0 and "scores" in first else None,
        "scores": scores, "settings": cfg.to_dict(),
    }  # fmt: skip
