"""Testing a stored model: from a command line to features and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from config import Config
from config.cli import parse_settings, read_settings, split_first, widen
from datasets.loaders import TestLoader, make_test_loaders
from datasets.make import make_dataset
from model import make_model
from processor.checkpoint import find_checkpoint, read_checkpoint, rebuild_model
from processor.environment import describe_environment, pick_device
from processor.evaluate import Inference, do_inference, score_table, score_values
from processor.result import result_record
from utils.errors import UserError
from utils.files import write_json
from utils.logging import log, setup_logging

C = TypeVar("C", bound=Config)
Stored = tuple[Path, dict[str, Any]]  # a checkpoint's path and its dict, which is read once


@dataclass
class Tested:
    """The test split, what a model does on it, and the directory that holds its results."""

    directory: Path
    query: TestLoader
    gallery: TestLoader
    inference: Inference


def parse_test(
    args: Sequence[str] | None, environ: Mapping[str, str], prog: str, kind: type[C]
) -> tuple[C, Stored | None]:
    """`[CKPT] [--setting value ...]` to settings of class `kind`, which start from the checkpoint's, and that.

    No CKPT is the newest run, unless --weights is given: then it is None and the weights are tested as they are.
    Raises UserError when there is no such checkpoint.
    """
    name, args = split_first(args)
    given = read_settings(kind(), args, prog)  # first for --help and --log-dir, which need no checkpoint
    weights_given = any(a.split("=")[0] == "--weights" for a in args)
    if weights_given and name:
        raise UserError(f"{name} has weights of its own; give either a checkpoint or --weights")
    if weights_given:
        return parse_settings(kind(), args, environ, prog), None
    checkpoint = find_checkpoint(name, given.log_dir)
    state = read_checkpoint(checkpoint)
    trained = widen(Config.from_dict(state["config"]), kind)
    return parse_settings(trained, args, environ, prog), (checkpoint, state)


def do_test(cfg: Config, stored: Stored | None, command: str = "") -> Tested:
    """Score a checkpoint (or, without one, the backbone weights of the settings), print the table, write the JSON."""
    setup_logging()
    device = pick_device(cfg.device)
    dataset = make_dataset(cfg)
    if stored:
        checkpoint, state = stored
        name, directory, what = str(checkpoint), checkpoint.parent, checkpoint.stem
        model = rebuild_model(state, checkpoint, cfg).to(device).eval()
    else:
        torch.manual_seed(cfg.seed)
        model = make_model(cfg, num_classes=2).to(device).eval()  # the classifier plays no part in a test
        name, what = f"{cfg.backbone} with weights {cfg.weights}", "weights"
        directory = Path(cfg.log_dir) / f"weights_{cfg.backbone}"
        state = {"history": [], "command": "", "epoch": 0, "seconds": 0, "environment": describe_environment(device)}
    if cfg.channels_last:
        model = model.to(memory_format=torch.channels_last)
    query, gallery = make_test_loaders(cfg, dataset)
    log.info("%s on %s: %d queries in %d images", name, dataset.name, len(dataset.query), len(dataset.gallery))
    inference = do_inference(cfg, model, query, gallery, device)
    values = score_values(inference.scores)
    log.info(score_table(values, dataset.note))
    file = directory / "results" / f"test_{what}_{_protocol(cfg)}.json"
    write_json(file, result_record(state, cfg, values, dataset.note, command))
    log.info("written to %s", file)
    return Tested(directory, query, gallery, inference)


def _protocol(cfg: Config) -> str:
    words = [cfg.dataset, cfg.metric]
    words += [f"{cfg.test_ids}ids"] if cfg.test_ids else []
    return "_".join(words + [word for word in ("flip", "rerank") if getattr(cfg, word)])
