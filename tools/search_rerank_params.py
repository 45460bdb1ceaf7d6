"""Search k1, k2 and lambda of re-ranking: `python tools/search_rerank_params.py [CKPT] [--k1s 10 20] [--split test]`.

Choose them on people that the model has not seen: those kept out of training with --holdout-ids (the default). You can
also use people that it has seen (--split train), the test split itself (--split test), or stored features (--features
FILE.npz without CKPT, with qf gf qp gp qc gc). All output says which of these was used.
"""

import math
import os
import shlex
import sys
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

from config import Config
from config.cli import parse_settings, split_first, typed_command
from config.config import check_range, option
from datasets.base import full_note
from datasets.loaders import TestLoader
from datasets.make import make_dataset, make_test_set
from datasets.own import refuse_another_split
from datasets.subsets import last_identities, split_queries
from processor.checkpoint import stored_config
from processor.environment import describe_environment, pick_device
from processor.evaluate import extract_features, score_table, score_values
from processor.test import Stored, parse_test, tested_model
from tools.score_features import read_features
from utils.errors import Stopped, UserError, run
from utils.files import write_json
from utils.logging import log, setup_logging
from utils.metrics import evaluate, evaluate_distance
from utils.rerank import k_reciprocal_grid


@dataclass
class Options:
    k1s: tuple[int, ...] = (5, 10, 15, 20, 25, 30, 40)  # numbers of neighbors to try
    k2s: tuple[int, ...] = (1, 3, 6, 9, 12)  # numbers of averaged neighbors to try
    lambda_values: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # shares of the original distance to try
    by: Literal["mAP", "rank1", "mINP"] = "mAP"  # score to maximize; of equal ones, the first tried is best
    split: Literal["heldout", "train", "test"] = "heldout"  # people to search on: unseen, seen, or the test split
    train_split_ids: int = 100  # number of identities of --split train, the last ones
    distractors: bool = True  # heldout, train: add all other training images to the gallery
    features: str = ""  # .npz or directory of stored features to search on instead of a checkpoint's


class SearchData(NamedTuple):
    """Features and ids to search on, and where they come from."""

    features: list[torch.Tensor]  # (Q, D) and (G, D)
    ids: list[np.ndarray]  # query pids, gallery pids, query cameras, gallery cameras
    split: str
    label: str  # the split in words, part of every output
    note: str  # of the dataset
    directory: Path  # for the result


def read_options() -> tuple[Config, Options, Stored | None]:
    """Settings, options, and the checkpoint unless --features is given."""
    if any(word.split("=")[0] == "--features" for word in sys.argv[1:]):
        name, args = split_first(None)
        if name:
            raise UserError(f"{name} has its own features; give either a checkpoint or --features")
        cfg, options = parse_settings(args, Config(), os.environ, __doc__, Options, sections=("eval",))
        stored = None
    else:
        cfg, options, stored = parse_test(None, os.environ, __doc__, Options, {"train_split_ids": "[1, inf)"})
        if not stored:
            raise UserError("--weights do not say on whom they were trained; give a checkpoint, or --features FILE.npz")
    for name, interval in {"k1s": "[1, inf)", "k2s": "[1, inf)", "lambda_values": "[0, 1]"}.items():
        if not getattr(options, name):
            raise UserError(f"{option(name)} takes one or more numbers")
        for value in getattr(options, name):
            check_range(name, value, interval)
    return cfg, options, stored


def from_checkpoint(cfg: Config, options: Options, stored: Stored, device: torch.device) -> SearchData:
    """Features of the chosen split by the checkpoint's model, averaged with the mirrored ones with --flip."""
    checkpoint, state = stored
    trained, split = stored_config(state, checkpoint), options.split
    if split == "test":
        dataset = make_test_set(cfg)
        refuse_another_split(cfg, trained, dataset)
        query, gallery, label = dataset.query, dataset.gallery, f"the test split of {dataset.name}"
    elif split == "heldout" and not trained.data.holdout_ids:
        raise UserError(
            "the checkpoint was trained on all identities; train one with --holdout-ids 100, or search with --split "
            "train (identities that the model has seen) or --split test (the values are then tuned on the test split)"
        )
    else:
        dataset = make_dataset(cfg)
        chosen = dataset.heldout if split == "heldout" else last_identities(dataset.train, options.train_split_ids)
        pids = {s.pid for s in chosen}
        expected = set() if split == "heldout" else pids
        if not pids or pids & set(state["labels"]) != expected or cfg.data.dataset != trained.data.dataset:
            raise UserError(
                "the identities are not split as they were for the checkpoint; leave --dataset, "
                "--data-root, --train-ids and --holdout-ids as they were in training"
            )
        query, gallery = split_queries(chosen, dataset.name, "use more identities")
        which = "held-out training identities of {}, not" if split == "heldout" else "training identities of {},"
        label = f"{len(pids)} {which.format(dataset.name)} seen by the model"
        if options.distractors:
            others = [s._replace(pid=0) for s in dataset.train if s.pid not in pids]
            gallery, label = gallery + others, f"{label}, among {len(others)} distractors"
    model, _, path, _ = tested_model(cfg, stored, device)
    query, gallery = TestLoader(cfg, query, "query"), TestLoader(cfg, gallery, "gallery")
    features = [extract_features(cfg, model, x, device, cfg.eval.flip)[cfg.eval.flip] for x in (query, gallery)]
    ids = [query.pids, gallery.pids, query.camids, gallery.camids]
    test_note = dataset.test_note if split == "test" else ""
    note = full_note(state.get("train_note", ""), test_note, query.images.note, gallery.images.note)
    return SearchData(features, ids, split, label, note, path.parent)


def from_file(cfg: Config, path: str, device: torch.device) -> SearchData:
    """Stored features, whose split is unknown."""
    query, gallery, ids, note, *_ = read_features(path)
    directory = Path(cfg.run.log_dir) / f"features_{Path(path).stem}"
    label = f"features of {path}, split unknown"
    return SearchData([query.to(device), gallery.to(device)], list(ids), "features", label, note, directory)


def search(cfg: Config, grids: list[tuple], data: SearchData, rows: list[dict[str, Any]]) -> None:
    """Score every combination of the grids. `rows` is filled on the way, so that a stop loses nothing."""
    combinations = chain(*(k_reciprocal_grid(*data.features, *grid, metric=cfg.eval.metric) for grid in grids))
    total = sum(math.prod(map(len, grid)) for grid in grids)
    bar = tqdm(combinations, total=total, desc="search", unit="comb", leave=False, disable=None)
    for k1, k2, lambda_value, distance in bar:
        scores = score_values({"": evaluate_distance(distance, *data.ids, max_rank=cfg.eval.max_rank)})[""]
        rows.append({"k1": k1, "k2": k2, "lambda_value": lambda_value, **scores})


def report(cfg: Config, options: Options, data: SearchData, plain: dict, rows: list[dict], complete: bool) -> dict:
    """Print the ten best, the current settings and no re-ranking; return the record of the search."""
    ranked = sorted(rows, key=lambda row: -row[options.by])  # stable: of equal ones, the first tried
    best, current = ranked[0], rows[0]  # the current settings are always tried first
    table = {"no re-ranking": plain, "current": current}
    table |= {f"{row['k1']}, {row['k2']}, {row['lambda_value']:g}": row for row in ranked[:10]}
    words = ["--rerank", "--k1", f"{best['k1']}", "--k2", f"{best['k2']}", "--lambda-value", f"{best['lambda_value']}"]
    note = f"k1, k2 and lambda were searched on {data.label}" if data.split in ("test", "features") else ""
    words += ["--rerank-note", note] if note != cfg.eval.rerank_note else []
    test_options = shlex.join(words)
    short = "" if complete else f"INCOMPLETE, {len(rows)} combinations: "
    log.info("%sbest k1, k2, lambda by %s, searched on %s", short, options.by, data.label)
    log.info(score_table(table, data.note))
    log.info("# %ssearched on %s; options for test.py:", short, data.label)
    log.info("%s", test_options)
    for name, tried in (("k1", options.k1s), ("k2", options.k2s)):
        if best[name] in {min(tried), max(tried)} - {1} and len(set(tried)) > 1:
            log.info("the best %s, %d, is at the end of the range; values beyond may be better", name, best[name])
    return {
        "split": data.split, "label": data.label, "note": data.note, "by": options.by, "complete": complete,
        "queries": len(data.ids[0]), "gallery": len(data.ids[1]), "identities": len(set(data.ids[0].tolist())),
        "flip": cfg.eval.flip, "metric": cfg.eval.metric, "test_options": test_options,
        "best": best, "current": current, "no_reranking": plain, "rows": rows,
    }  # fmt: skip


def main() -> None:
    cfg, options, stored = read_options()
    setup_logging()
    device = pick_device(cfg.run.device)
    data = from_checkpoint(cfg, options, stored, device) if stored else from_file(cfg, options.features, device)
    people = set(data.ids[0].tolist())
    images = len(data.ids[0]) + sum(pid in people for pid in data.ids[1].tolist())
    log.info("searching on %s: %d queries in %d images", data.label, *map(len, data.features))
    log.info("%.1f images per person; if a test has more, k1 should be larger there", images / len(people))
    asked = tuple(sorted(set(values)) for values in (options.k1s, options.k2s, options.lambda_values))
    grids = [([cfg.eval.k1], [cfg.eval.k2], [cfg.eval.lambda_value]), asked]
    started, rows, complete = time.perf_counter(), [], True
    try:
        plain = evaluate(*data.features, *data.ids, metric=cfg.eval.metric, max_rank=cfg.eval.max_rank)
        search(cfg, grids, data, rows)
    except ValueError as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        if not rows:
            raise
        complete = False
    record = report(cfg, options, data, score_values({"": plain})[""], rows, complete)
    record |= {"checkpoint": str(stored[0]) if stored else None, "features": options.features or None}
    record |= {"seconds": round(time.perf_counter() - started, 2), "search_command": typed_command()}
    file = data.directory / "results" / f"rerank_search_{data.split}.json"
    write_json(file, record | describe_environment(device))
    log.info("written to %s", file)
    if not complete:
        raise Stopped("stopped; what was scored so far is written", 130)


if __name__ == "__main__":
    run(main)
