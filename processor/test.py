"""Testing a stored model: from a command line to features and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from config import Config
from config.cli import TEST_SECTIONS, parse_settings, split_first
from datasets.base import fingerprint, full_note
from datasets.loaders import TestLoader, make_test_loaders
from datasets.make import make_test_set, refuse_another_split, short_name, test_name
from model import ReIDModel, make_model
from processor.checkpoint import find_checkpoint, read_checkpoint, rebuild_model
from processor.distributed import ALONE, Ranks, joined, same_everywhere, same_settings, together
from processor.environment import describe_environment, pick_device
from processor.evaluate import Inference, do_inference, report, scored_as, scores_note
from processor.numerics import set_up
from processor.result import result_record
from utils.errors import UserError
from utils.files import write_json
from utils.logging import log, setup_logging

T = TypeVar("T")
Stored = tuple[Path, dict[str, Any]]  # a checkpoint's path and its dict, which is read once


@dataclass
class Prepared:
    """A model on its device in evaluation mode, the test split, and where results go."""

    cfg: Config  # the settings, their protocol settled
    directory: Path
    what: str  # word for the model in the names of files
    state: dict[str, Any]  # the checkpoint's dict, or the little that there is without one
    device: torch.device
    model: ReIDModel
    query: TestLoader
    gallery: TestLoader
    note: str  # what features and scores must be read with


@dataclass
class Tested:
    """The test split, what a model does on it, and the directory that holds its results."""

    directory: Path
    query: TestLoader
    gallery: TestLoader
    inference: Inference


def parse_test(
    args: Sequence[str] | None,
    environ: Mapping[str, str],
    about: str,
    own: type[T] | None = None,
    ranges: Mapping[str, str] | None = None,
    sections: Sequence[str] = TEST_SECTIONS,
) -> tuple[Config, T | None, Stored | None]:
    """`[CKPT] [--setting value ...]` to settings, which start from the checkpoint's, the program's own options (see
    `config.cli.parse_settings`), and the checkpoint.

    Without CKPT it is that of the newest run, unless --weights is given: then there is none, and the weights are tested
    as they are. Raises UserError when there is no such checkpoint.
    """
    name, args = split_first(args)
    # First for --help and --log-dir, which need no checkpoint.
    given, options = parse_settings(args, Config(), environ, about, own, ranges, sections, check=False)
    weights_given = any(a.split("=")[0] == "--weights" for a in args)
    if weights_given and name:
        raise UserError(f"{name} has weights of its own; give either a checkpoint or --weights")
    if weights_given:
        return given.check(), options, None
    checkpoint = find_checkpoint(name, given.run.log_dir)
    state = read_checkpoint(checkpoint)
    cfg, options = parse_settings(args, Config.from_dict(state["config"]), environ, about, own, ranges, sections)
    return cfg, options, (checkpoint, state)


def prepare_test(cfg: Config, stored: Stored | None, ranks: Ranks = ALONE) -> Prepared:
    """The model of a checkpoint (or, without one, of the backbone weights of the settings) and the test split.

    Raises UserError, too, where several processes have different ones.
    """
    setup_logging(quiet=not ranks.first)
    same_settings(ranks, cfg)
    with together(ranks, first_alone=True):
        test = _prepared(cfg, stored)
    model = tuple(test.state[name] for name in ("epoch", "seconds"))
    images = tuple(fingerprint(loader.samples) for loader in (test.query, test.gallery))
    same_everywhere(ranks, {"the checkpoint": model, "the test images": images})
    return test


def _prepared(cfg: Config, stored: Stored | None) -> Prepared:
    device = pick_device(cfg.run.device)
    set_up(cfg, device, cfg.loop.test_precision)
    dataset = make_test_set(cfg)
    cfg = scored_as(cfg, dataset)
    if stored:
        checkpoint, state = stored
        refuse_another_split(cfg, Config.from_dict(state["config"]), dataset)
        name, directory, what = str(checkpoint), checkpoint.parent, checkpoint.stem
        model = rebuild_model(state, checkpoint, cfg).to(device).eval()
    else:
        torch.manual_seed(cfg.run.seed)
        model = make_model(cfg, num_classes=2).to(device).eval()  # the classifier plays no part in a test
        name, what = f"{cfg.model.backbone} with weights {cfg.model.weights}", "weights"
        directory = Path(cfg.run.log_dir) / f"weights_{cfg.model.backbone.replace('/', '_')}"
        state = {"history": [], "command": "", "epoch": 0, "seconds": 0, "environment": describe_environment(device)}
    if cfg.loop.channels_last:
        model = model.to(memory_format=torch.channels_last)
    dataset, query, gallery = make_test_loaders(cfg, dataset)
    log.info("%s on %s: %d queries in %d images", name, dataset.name, len(dataset.query), len(dataset.gallery))
    note = full_note(state.get("train_note", ""), dataset.test_note)
    return Prepared(cfg, directory, what, state, device, model, query, gallery, note)


def do_test(cfg: Config, stored: Stored | None, command: str = "") -> Tested | None:
    """Score the test split, print the table, write the JSON. Under torchrun each process extracts its share of the
    features, and all but the first give None."""
    with joined(cfg) as ranks:
        test = prepare_test(cfg, stored, ranks)
        inference = do_inference(test.cfg, test.model, test.query, test.gallery, test.device, ranks)
    if inference is None:
        return None
    cfg, note = test.cfg, scores_note(test.cfg, test.note)
    values = report(inference, note)
    record = result_record(test.state, cfg, values["scores"], note, command) | values
    file = test.directory / "results" / f"test_{test.what}_{_protocol(cfg)}.json"
    write_json(file, record)
    log.info("written to %s", file)
    return Tested(test.directory, test.query, test.gallery, inference)


def _protocol(cfg: Config) -> str:
    words = [short_name(test_name(cfg)), cfg.eval.metric]
    words += [f"{cfg.data.test_ids}ids"] if cfg.data.test_ids else []
    words += [cfg.eval.protocol] if cfg.eval.protocol not in ("auto", "standard") else []
    extras = {
        "flip": cfg.eval.flip,
        "dba": cfg.eval.augmentation_k,
        "qe": cfg.eval.query_expansion,
        "rerank": cfg.eval.rerank,
    }
    return "_".join(words + [word for word, on in extras.items() if on])
