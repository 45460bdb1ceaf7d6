"""Search k1, k2 and lambda of re-ranking: `python tools/search_rerank_params.py [CKPT] [--k1 10 20] [--split heldout]`.

They are chosen on people whom the model has not seen: those that training kept out with --holdout-ids. The other splits
are people whom it has seen (train), the test split itself (test) and stored features (--features FILE.npz, without
CKPT: qf gf qp gp qc gc); whatever is printed or written says which one it was.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from tqdm import tqdm
from tyro.conf import Fixed, Suppress, arg

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config
from config.cli import parse_settings, read_settings, split_first, typed_command
from config.config import option
from datasets.base import ReIDDataset, Sample, full_note, heldout_split, last_identities
from datasets.loaders import TestLoader, left_out
from datasets.make import make_dataset, make_test_set, refuse_another_split
from processor.checkpoint import rebuild_model
from processor.environment import describe_environment, pick_device
from processor.evaluate import extract_features, score_table, score_values
from processor.features import read_features
from processor.test import Stored, parse_test
from utils.errors import Stopped, UserError, run
from utils.files import write_json
from utils.logging import log, setup_logging
from utils.metrics import Scores, evaluate, evaluate_distance
from utils.rerank import k_reciprocal_grid

DEFAULTS = (Config.k1, Config.k2, Config.lambda_value)
PROGRAM = "search_rerank_params.py [CKPT]"


@dataclass
class SearchConfig(Config):
    k1: Suppress[Fixed[int]] = Config.k1  # the single values make room on the command line for those to try
    k2: Suppress[Fixed[int]] = Config.k2
    lambda_value: Suppress[Fixed[float]] = Config.lambda_value
    k1s: Annotated[tuple[int, ...], arg(name="k1")] = (5, 10, 15, 20, 25, 30, 40)  # neighbours considered, to try
    k2s: Annotated[tuple[int, ...], arg(name="k2")] = (1, 3, 6, 9, 12)  # neighbours averaged, to try
    lambda_values: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # shares of the original distance, to try
    by: Literal["mAP", "rank1", "mINP"] = "mAP"  # score that decides; of equals the first tried
    split: Literal["heldout", "train", "test"] = "heldout"  # people to search on: unseen, seen, or the test split
    train_split_ids: int = 100  # identities of --split train, the last ones
    distractors: bool = True  # in both the other training images fill the gallery, which else is far easier than a test
    features: str = ""  # .npz or directory of stored features to search on instead of a checkpoint's

    def _bad_ranges(self):
        yield from super()._bad_ranges()
        if self.train_split_ids < 1:
            yield f"--train-split-ids must be at least 1, not {self.train_split_ids}"
        for name, values in (("k1", self.k1s), ("k2", self.k2s)):
            if not values or min(values) < 1:
                yield f"--{name} takes one or more whole numbers from 1 up, not {values}"
        if not self.lambda_values or not all(0 <= value <= 1 for value in self.lambda_values):
            yield f"--lambda-values takes one or more numbers from 0 to 1, not {self.lambda_values}"


@dataclass
class Material:
    """What is searched on, and where it comes from."""

    features: list[torch.Tensor]  # (Q, D) and (G, D)
    ids: list[np.ndarray]  # query pids, gallery pids, query cameras, gallery cameras
    split: str
    label: str  # the split in words, which goes with every output
    note: str  # of the dataset
    directory: Path  # takes the result


def parse_search(environ: dict[str, str]) -> tuple[SearchConfig, Stored | None]:
    """Settings, and the checkpoint that they start from; no checkpoint with --features."""
    name, args = split_first(None)
    if not read_settings(SearchConfig(), args, PROGRAM).features:
        cfg, stored = parse_test(None, environ, PROGRAM, SearchConfig)
        if not stored:
            raise UserError("--weights do not say whom they were trained on; give a checkpoint, or --features FILE.npz")
        return cfg, stored
    if name:
        raise UserError(f"{name} has features of its own; give either a checkpoint or --features")
    return parse_settings(SearchConfig(), args, environ, PROGRAM), None


def choose_split(
    cfg: SearchConfig, trained: Config, seen: set[int], dataset: ReIDDataset
) -> tuple[list[Sample], list[Sample], str]:
    """Query, gallery and label of the split in the settings. trained, seen: settings and identities of the training."""
    if cfg.split == "test":
        return dataset.query, dataset.gallery, f"the test split of {dataset.name}"
    if cfg.split == "heldout" and not trained.data.holdout_ids:
        raise UserError(
            "the checkpoint was trained on all identities; train one with --holdout-ids 100, or search with --split "
            "train (identities that the model has seen) or --split test (the values are then tuned on the test split)"
        )
    heldout = cfg.split == "heldout"
    samples = dataset.heldout if heldout else last_identities(dataset.train, cfg.train_split_ids)
    pids = {s.pid for s in samples}
    if not pids or pids & seen != (set() if heldout else pids) or cfg.data.dataset != trained.data.dataset:
        raise UserError(
            "these are not the identities that the checkpoint was trained on and without; leave --dataset, "
            "--data-root, --train-ids and --holdout-ids as they were in training"
        )
    which = "held-out training identities of {}, not" if heldout else "training identities of {},"
    label = f"{len(pids)} {which.format(dataset.name)} seen by the model"
    query, gallery = heldout_split(samples)
    if cfg.distractors:
        others = [s._replace(pid=0) for s in dataset.train if s.pid not in pids]
        return query, gallery + others, f"{label}, among {len(others)} distractors"
    return query, gallery, label


def from_checkpoint(cfg: SearchConfig, stored: Stored, device: torch.device) -> Material:
    """Features of the split in the settings, mirrored with --flip."""
    checkpoint, state = stored
    dataset = make_test_set(cfg) if cfg.split == "test" else make_dataset(cfg)
    if cfg.split == "test":
        refuse_another_split(cfg, Config.from_dict(state["config"]), dataset)
    *splits, label = choose_split(cfg, Config.from_dict(state["config"]), set(state["labels"]), dataset)
    model = rebuild_model(state, checkpoint, cfg).to(device).eval()
    if cfg.loop.channels_last:
        model = model.to(memory_format=torch.channels_last)
    query, gallery = (TestLoader(cfg, x, name) for x, name in zip(splits, ("query", "gallery"), strict=True))
    features = [extract_features(cfg, model, x, device, cfg.eval.flip)[cfg.eval.flip] for x in (query, gallery)]
    ids = [query.pids, gallery.pids, query.camids, gallery.camids]
    note = dataset.test_note if cfg.split == "test" else ""
    note = full_note(state.get("train_note", ""), left_out(left_out(note, query.images), gallery.images))
    return Material(features, ids, cfg.split, label, note, checkpoint.parent)


def from_file(cfg: SearchConfig, device: torch.device) -> Material:
    """Stored features, of which nobody knows the split."""
    stored = read_features(cfg.features)
    label = f"features of {cfg.features}, split unknown"
    directory = Path(cfg.run.log_dir) / f"features_{Path(cfg.features).stem}"
    features = [stored.query.to(device), stored.gallery.to(device)]
    return Material(features, list(stored.ids), "features", label, stored.note, directory)


def grids(cfg: SearchConfig) -> list[tuple[list[int], list[int], list[float]]]:
    """k1s, k2s and lambdas to combine; before those asked for the defaults, unless they are among them."""
    asked = tuple(sorted(set(values)) for values in (cfg.k1s, cfg.k2s, cfg.lambda_values))
    return [asked] if DEFAULTS in product(*asked) else [tuple([value] for value in DEFAULTS), asked]


def search(cfg: SearchConfig, data: Material, rows: list[dict]) -> None:
    """Score every combination. `rows` is filled on the way, so that a stop loses nothing."""
    total = sum(math.prod(map(len, grid)) for grid in grids(cfg))
    with contextlib.closing(tqdm(total=total, desc="search", unit="comb", leave=False, disable=None)) as bar:
        for grid in grids(cfg):
            for k1, k2, lambda_value, distance in k_reciprocal_grid(*data.features, *grid, metric=cfg.eval.metric):
                scores = score_values({"": evaluate_distance(distance, *data.ids, max_rank=cfg.eval.max_rank)})[""]
                rows.append({"k1": k1, "k2": k2, "lambda_value": lambda_value, **scores})
                bar.update()


def command_of(cfg: SearchConfig, stored: Stored | None, data: Material, best: dict) -> str:
    """The line that tests with the values found, and carries on where they come from if that flatters the test."""
    trained = Config.from_dict(stored[1]["config"]) if stored else Config()
    words = ["python", "test.py", str(stored[0]) if stored else "CKPT", "--rerank"]
    words += ["--k1", f"{best['k1']}", "--k2", f"{best['k2']}", "--lambda-value", f"{best['lambda_value']}"]
    if stored and cfg.eval.flip != trained.eval.flip:
        words.append("--flip" if cfg.eval.flip else "--no-flip")
    which = ("dataset", "test_dataset", "data_root", "test_ids", "test_share", "split_seed", "camera_pattern")
    which += ("on_bad_image",)
    for name in ("metric", "test_feature", *(which if stored else ())):
        if cfg.get(name) != trained.get(name):
            words += [f"{option(name)}", str(cfg.get(name))]
    note = f"k1, k2 and lambda were searched on {data.label}" if data.split in ("test", "features") else ""
    return shlex.join(words + (["--rerank-note", note] if note != trained.eval.rerank_note else []))


def report(
    cfg: SearchConfig, stored: Stored | None, data: Material, plain: Scores, rows: list[dict], seconds: float
) -> None:
    """Print the ten best beside the defaults and no re-ranking, and write everything to the run's results."""
    total = sum(math.prod(map(len, grid)) for grid in grids(cfg))
    ranked = sorted(rows, key=lambda row: -row[cfg.by])  # stable: of equals, the first tried
    default = next((row for row in rows if (row["k1"], row["k2"], row["lambda_value"]) == DEFAULTS), None)
    table = {**score_values({"no re-ranking": plain}), **({"defaults": default} if default else {})}
    table |= {f"{row['k1']}, {row['k2']}, {row['lambda_value']:g}": row for row in ranked[:10]}
    short = "" if len(rows) == total else f"INCOMPLETE, {len(rows)} of {total} combinations: "
    title = (
        f"{short}best k1, k2, lambda by {cfg.by}, searched on {data.label} (defaults: {', '.join(map(str, DEFAULTS))})"
    )
    command = command_of(cfg, stored, data, ranked[0])
    log.info("%s\n%s\n# %ssearched on %s\n%s", title, score_table(table, data.note), short, data.label, command)
    for name, tried in (("k1", cfg.k1s), ("k2", cfg.k2s)):
        if ranked[0][name] in {min(tried), max(tried)} - {1} and len(set(tried)) > 1:
            log.info(
                "the best %s, %d, is at the end of what was tried; there may be better beyond", name, ranked[0][name]
            )
    file = data.directory / "results" / f"rerank_search_{data.split}.json"
    record = {
        "split": data.split, "label": data.label, "note": data.note, "by": cfg.by,
        "complete": not short, "scored": len(rows), "combinations": total,
        "checkpoint": str(stored[0]) if stored else None, "features": cfg.features or None,
        "queries": len(data.ids[0]), "gallery": len(data.ids[1]), "identities": len(set(data.ids[0].tolist())),
        "flip": cfg.eval.flip, "metric": cfg.eval.metric, "seconds": round(seconds, 2),
        **describe_environment(data.features[0].device), "search_command": typed_command(),
        "test_command": command, "best": ranked[0], "defaults": default, "no_reranking": table["no re-ranking"],
        "rows": rows,
    }  # fmt: skip
    write_json(file, record)
    log.info("written to %s", file)


def main() -> None:
    cfg, stored = parse_search(os.environ)
    setup_logging()
    device = pick_device(cfg.run.device)
    data = from_checkpoint(cfg, stored, device) if stored else from_file(cfg, device)
    log.info("searching on %s: %d queries in %d images", data.label, *map(len, data.features))
    people = set(data.ids[0].tolist())
    images = len(data.ids[0]) + sum(pid in people for pid in data.ids[1].tolist())
    log.info("%.1f images a person, which k1 follows: where a test has more, so should k1 be", images / len(people))
    started, rows, stopped = time.perf_counter(), [], False
    try:
        plain = evaluate(*data.features, *data.ids, metric=cfg.eval.metric, max_rank=cfg.eval.max_rank)
        search(cfg, data, rows)
    except ValueError as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        if not rows:
            raise
        stopped = True
    report(cfg, stored, data, plain, rows, time.perf_counter() - started)
    if stopped:
        raise Stopped("stopped; what was scored so far is written", 130)


if __name__ == "__main__":
    run(main)
