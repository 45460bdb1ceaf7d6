"""Test a stored model: from a command line to features and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from config import Config
from config.cli import TEST_SECTIONS, parse_settings, split_first
from datasets.base import ReIDDataset, fingerprint, full_note, join_notes
from datasets.loaders import TestLoader, make_test_loaders, with_pixel_range
from datasets.make import make_test_set, short_name, test_name
from model import ReIDModel, make_model
from processor.checkpoint import (
    ABOUT,
    find_checkpoint,
    read_checkpoint,
    rebuild_model,
    results_directory,
    stored_config,
)
from processor.environment import describe_environment, pick_device
from processor.evaluate import Inference, do_inference, report, resolve_protocol, result_record, scores_note
from processor.precision import configure_torch, layout
from processor.ranks import ALONE, Ranks, init_distributed
from utils.errors import UserError
from utils.files import write_json
from utils.logging import log, setup_logging
from utils.lookup import load

T = TypeVar("T")
Stored = tuple[Path, dict[str, Any]]  # a checkpoint's path and its dict


@dataclass
class TestJob:
    """A model on its device in evaluation mode, the test split, and where results go."""

    __test__ = False  # not a test case of pytest

    cfg: Config  # the settings, with the protocol resolved
    directory: Path
    what: str  # the model, in names of files
    state: dict[str, Any]  # the checkpoint's dict, or default values without one
    device: torch.device
    model: ReIDModel
    dataset: ReIDDataset
    query: TestLoader
    gallery: TestLoader
    images: list[str]  # fingerprints of query and gallery
    note: str  # caveats of features and scores


def parse_test(
    args: Sequence[str] | None, environ: Mapping[str, str], about: str, own: type[T] | None = None,
    ranges: Mapping[str, str] = {},
) -> tuple[Config, T | None, Stored | None]:  # fmt: skip
    """Parse `[CKPT] [--setting value ...]` into settings (starting from the checkpoint's), the program's own options
    (see `config.cli.parse_settings`) and the checkpoint.

    Without CKPT, it is that of the latest run. With --weights, there is none, and these weights are tested as they are.
    Raises UserError if there is no such checkpoint.
    """
    name, args = split_first(args)
    # First for --help and --log-dir, which need no checkpoint.
    given, options = parse_settings(args, Config(), environ, about, own, ranges, TEST_SECTIONS, check=False)
    weights_given = any(a.split("=")[0] == "--weights" for a in args)
    if weights_given and name:
        raise UserError(f"{name} has weights of its own; give either a checkpoint or --weights")
    if weights_given:
        return given.check(), options, None
    checkpoint = find_checkpoint(name, given.run.log_dir)
    state = read_checkpoint(checkpoint)
    # paths come from the command line and the environment only, not from a file that may be someone else's
    places = {name: given.get(name) for name in ("log_dir", "data_root", "cache_dir")}
    default = stored_config(state, checkpoint).replace(**places)
    cfg, options = parse_settings(args, default, environ, about, own, ranges, TEST_SECTIONS)
    return cfg, options, (checkpoint, state)


def prepare_test(
    cfg: Config, stored: Stored | None, ranks: Ranks = ALONE, ranked_lists: bool = False,
    dataset: ReIDDataset | None = None,
) -> TestJob:  # fmt: skip
    """Load the model of a checkpoint (or, without one, of the settings' backbone weights) and the test split.

    ranked_lists: as in `resolve_protocol`. dataset: replaces the settings' test set. Raises UserError, also if
    processes have different checkpoints or images.
    """
    setup_logging(quiet=not ranks.first)
    ranks.check_same_settings(cfg)
    with ranks.sync_errors(first_alone=True):
        device = pick_device(cfg.run.device)
        configure_torch(cfg, device)
        dataset = dataset or make_test_set(cfg)
        cfg = with_pixel_range(resolve_protocol(cfg, dataset, ranked_lists), dataset)
        if stored and dataset.drawn:
            load("datasets.own:refuse_another_split")(cfg, stored_config(stored[1], stored[0]), dataset)
        model, state, path, name = tested_model(cfg, stored, device)
        dataset, query, gallery = make_test_loaders(cfg, dataset)
    images = [fingerprint(query.samples), fingerprint(gallery.samples)]
    ranks.check_same({"the checkpoint": (state["epoch"], state["seconds"]), "the test images": images})
    log.info("%s on %s: %d queries in %d images", name, dataset.name, len(dataset.query), len(dataset.gallery))
    note = full_note(state["train_note"], dataset.test_note)
    note = join_notes(note, model.loaded.note if model.loaded else "")
    what = path.name.removesuffix(".pth")
    return TestJob(cfg, path.parent, what, state, device, model, dataset, query, gallery, images, note)


def tested_model(
    cfg: Config, stored: Stored | None, device: torch.device
) -> tuple[ReIDModel, dict[str, Any], Path, str]:
    """Return the model of a checkpoint (or, without one, of the settings' backbone weights) on the device in evaluation
    mode; the checkpoint's dict, or default values; a path for names of results; and a description of the model."""
    if stored:
        path, state = stored[0], ABOUT | stored[1]
        model, name = rebuild_model(state, path, cfg), str(path)
        path = results_directory(path, cfg.run.log_dir) / path.name
    else:
        torch.manual_seed(cfg.run.seed)
        model = make_model(cfg, num_classes=2)  # a test does not use the classifier
        if model.loaded:
            log.info(str(model.loaded))
            model.test_after_neck &= "neck" in model.loaded.found
        name = f"{cfg.model.backbone} with weights {cfg.model.weights}"
        path = Path(cfg.run.log_dir) / f"weights_{cfg.model.backbone.replace('/', '_')}" / "weights"
        state = ABOUT | {"environment": describe_environment(device)}
    return model.to(device, memory_format=layout(cfg)).eval(), state, path, name


def do_test(
    cfg: Config, stored: Stored | None, command: str = "", ranked_lists: bool = False
) -> tuple[TestJob, Inference] | None:
    """Score the test split, print the table, write the JSON. Under torchrun, each process extracts its share of the
    features, and all but the first return None."""
    with init_distributed(cfg) as ranks:
        job = prepare_test(cfg, stored, ranks, ranked_lists)
        inference = do_inference(job.cfg, job.model, job.query, job.gallery, job.device, ranks)
    if inference is None:
        return None
    note = scores_note(job.cfg, job.note)
    values = report(inference, note, job.dataset.camera_names)
    if not isinstance(job.model, ReIDModel):
        load("processor.model_file:check_input")(job.cfg, job.model, job.query, job.gallery, inference)
    record = result_record(job.state, job.cfg, values["scores"], note, command) | values
    record |= {"images": job.images, "queries": inference.per_query()}
    inference.record = record
    file = job.directory / "results" / f"test_{job.what}_{_protocol(job.cfg)}.json"
    try:
        write_json(file, record)
        log.info("written to %s", file)
    except OSError as error:
        log.warning("warning: %s cannot be written (%s); the scores are on the screen only", file, error.strerror)
    return job, inference


def _protocol(cfg: Config) -> str:
    words = [short_name(test_name(cfg)), cfg.eval.metric]
    words += [f"{cfg.data.test_ids}ids"] if cfg.data.test_ids else []
    words += [cfg.eval.protocol] if cfg.eval.protocol not in ("auto", "standard") else []
    words += ["flip"] * cfg.eval.flip + ["dba"] * bool(cfg.eval.augmentation_k)
    words += ["qe"] * bool(cfg.eval.query_expansion) + ["rerank"] * cfg.eval.rerank
    return "_".join(words)
