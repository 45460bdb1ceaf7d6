"""Before training: data, model, losses, optimizers, directory, and what was left by a run that was stopped."""

from __future__ import annotations

import contextlib

import torch

from config import Config
from datasets.base import fingerprint
from datasets.loaders import Loaders, make_loaders
from loss import make_criterion
from model import find_backbone, make_model
from processor.distributed import (
    ALONE,
    Ranks,
    copy_first,
    from_first,
    same_everywhere,
    same_settings,
    started_as,
    together,
)
from processor.environment import pick_device
from processor.evaluate import scored_as, scores_note
from processor.numerics import Scaler, set_up, settle_precision
from processor.parallel import synchronised
from processor.resume import restore, seed_all
from processor.run import Run, run_directory, taken
from processor.watch import Watchers
from solver import make_average, make_optimizers, settings_without_effect
from utils.files import write_json
from utils.logging import log, setup_logging


def prepare(
    cfg: Config, command: str, ranks: Ranks = ALONE, at_end: contextlib.ExitStack | None = None
) -> tuple[Run, Loaders]:
    """Data, model, losses, optimizers and directory. What can fail fails here, before anything is written.

    What must be closed at the run's end, however it ends, is left with `at_end`.
    """
    setup_logging(quiet=not ranks.first)
    same_settings(ranks, cfg)
    with together(ranks, first_alone=True):
        device = pick_device(cfg.run.device)
        precision = settle_precision(cfg, device)
        chosen = set_up(cfg, device, precision)
        find_backbone(cfg.model.backbone)  # a wrong name shows before the data is read
        seed_all(cfg.run.seed)
        loaders = make_loaders(cfg, ranks.rank, ranks.size)
        dataset = loaders.dataset
        note = scores_note(scored_as(cfg, dataset), dataset.note)
        model = make_model(cfg, len(loaders.labels))
    images = fingerprint(dataset.train)
    tested = (fingerprint(dataset.query), fingerprint(dataset.gallery))
    same_everywhere(ranks, {"the training images": images, "the test images": tested})
    model, unsynchronised = synchronised(cfg, ranks, model, device)
    memory_format = torch.channels_last if cfg.loop.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)
    add_margins = [head.add_margin for head in model.heads]
    criterion = make_criterion(cfg, len(loaders.labels), model.feature_dims, add_margins).to(device)
    copy_first(ranks, (*model.state_dict().values(), *criterion.state_dict().values()))
    optimizers = make_optimizers(cfg, model, criterion)

    with together(ranks):
        directory = run_directory(cfg, at_end) if ranks.first else None
    directory = from_first(ranks, directory)
    setup_logging(directory / "train.log" if ranks.first else None, quiet=not ranks.first)
    command = started_as(ranks, command)
    about = {"command": command, "note": note, "train_note": dataset.train_note, "images": images, "ranks": ranks}
    scaler = Scaler(device, precision)
    run = Run(cfg, directory, device, model, criterion, optimizers, loaders.labels, scaler, precision, **about)
    run.average = make_average(cfg, model)
    introduce(run, loaders, chosen, unsynchronised)
    seed_all(cfg.run.seed + ranks.rank)  # what is drawn in training, such as dropout, differs by process
    with together(ranks, first_alone=True):  # it may rename damaged ones
        if cfg.run.resume and taken(directory):
            restore(run)
    progress = (run.epoch, run.step, len(run.history))
    same_everywhere(ranks, {"the checkpoint to go on from (--log-dir must be one that all machines share)": progress})
    if ranks.first:
        run.watchers = Watchers(cfg, directory, run.epoch, run.history)
        if at_end:
            at_end.callback(run.watchers.close)
        write_json(directory / "config.json", cfg.to_dict())
    return run, loaders


def introduce(run: Run, loaders: Loaders, chosen: str, unsynchronised: str) -> None:
    """What is trained, on what, where and how; and what may be meant otherwise."""
    cfg, dataset, size = run.cfg, loaders.dataset, run.ranks.size
    log.info(
        "run %s, seed %d: %s", run.directory, cfg.run.seed, ", ".join(f"{k} {v}" for k, v in run.environment.items())
    )
    log.info("command: %s", run.command or "(called from Python)")
    log.info("%s; %s", f"{size} processes" if size > 1 else "one process", chosen)
    log.info("%s\n%s", dataset.name, dataset.describe())
    if run.note:
        log.info("note: %s", run.note)
    for sentence in filter(None, (*settings_without_effect(cfg, len(loaders.train)), unsynchronised)):
        log.warning("warning: %s", sentence)
