"""Everything that training needs before its first step; whatever can fail fails here, before anything is written."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch.optim import Optimizer

from config import Config
from config.config import METRIC_LOSSES
from datasets.base import fingerprint
from datasets.loaders import Loaders, make_loaders
from datasets.make import place, short_name, train_names
from loss import Criterion, make_criterion
from model import ReIDModel, find_backbone, make_model
from processor.environment import describe_environment, pick_device
from processor.evaluate import resolve_protocol, scores_note
from processor.precision import Scaler, configure_torch, layout, resolve_precision
from processor.ranks import ALONE, Ranks, init_distributed
from processor.signals import StopSignals
from processor.state import Session, TrainState, has_checkpoint, seed_all
from solver import settings_without_effect
from utils.errors import UserError
from utils.files import lock_directory, write_json
from utils.logging import log, setup_logging
from utils.lookup import load


@contextlib.contextmanager
def start_session(cfg: Config, command: str = "") -> Iterator[Session]:
    """Join other processes if torchrun started some, choose device and precision, and seed the random generators.

    command: repeats the run, and is stored with it. A stop signal ends the block with Stopped. Closes train.log.
    """
    setup_logging()
    with StopSignals() as signals, init_distributed(cfg) as ranks:
        setup_logging(quiet=not ranks.first)
        ranks.check_same_settings(cfg)
        with ranks.sync_errors():
            device = pick_device(cfg.run.device)
        configure_torch(cfg, device)
        seed_all(cfg.run.seed)
        try:
            yield Session(ranks, signals, device, resolve_precision(cfg, device), ranks.command(command))
        finally:
            setup_logging(quiet=not ranks.first)


def training_data(cfg: Config, session: Session) -> Loaders:
    """Make loaders of training, query and gallery images. Raises UserError, also if processes have different images."""
    ranks = session.ranks
    with ranks.sync_errors(first_alone=True):
        find_backbone(cfg.model.backbone)  # a wrong name is reported before the data is read
        data = make_loaders(cfg.at_epoch(0), ranks.rank, ranks.size)
        resolve_protocol(cfg, data.dataset)
    tested = (fingerprint(data.dataset.query), fingerprint(data.dataset.gallery))
    ranks.check_same({"the training images": fingerprint(data.dataset.train), "the test images": tested})
    return data


def training_model(cfg: Config, session: Session, data: Loaders) -> ReIDModel:
    """Make the model with its initial weights on the device, the same in all processes."""
    ranks, device = session.ranks, session.device
    with ranks.sync_errors(first_alone=True):  # the first one downloads weights
        model = make_model(cfg, len(data.labels))
        if cfg.data.start_sizes:
            load("processor.sizes:check_sizes")(cfg, model)
    if device.type == "cpu" and session.precision in ("bf16", "auto"):
        load("processor.cpu_precision:keep_float32")(model)
    model = ranks.sync_batch_norm(cfg, model, device).to(device, memory_format=layout(cfg))
    ranks.broadcast(model.state_dict().values())
    return model


def training_criterion(cfg: Config, session: Session, data: Loaders, model: ReIDModel) -> Criterion:
    """Make the losses on the device, with the same centers in all processes; centers are updated without autograd."""
    margins = [head.add_margin for head in model.heads]
    criterion = make_criterion(cfg, len(data.labels), model.feature_dims, margins, data.train.teacher_dim)
    criterion.to(session.device).centers.requires_grad_(False)
    session.ranks.broadcast(criterion.state_dict().values())
    return criterion


@contextlib.contextmanager
def run_directory(cfg: Config, ranks: Ranks = ALONE) -> Iterator[Path]:
    """Yield LOG_DIR/NAME, or NAME-2, NAME-3, ... if there is a run already; with `resume`, the latest of them, or the
    one that --name names.

    It is created, and no other program trains there until the block ends. Raises UserError if it cannot be written to,
    or if another program trains in the directory to resume.
    """
    with contextlib.ExitStack() as locks:
        with ranks.sync_errors():
            directory = choose_directory(cfg, locks) if ranks.first else None
        yield ranks.all_gather(directory)[0]


def choose_directory(cfg: Config, locks: contextlib.ExitStack) -> Path:
    """Find and lock the run's directory; `locks` unlocks it."""
    base, name = Path(cfg.run.log_dir), cfg.run.name or cfg.run.preset or "+".join(map(short_name, train_names(cfg)))
    numbered = (base / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    try:
        if not cfg.run.resume:
            return next(d for d in numbered if not has_checkpoint(d) and locks.enter_context(lock_directory(d)))
        latest = [base / name, *itertools.takewhile(has_checkpoint, numbered)][-1]
        directory = base / name if cfg.run.name else latest
        locked = locks.enter_context(lock_directory(directory))
    except OSError as error:
        raise UserError(
            f"{error.filename or base} cannot be written to ({error.strerror}); choose another place with --log-dir"
        ) from error
    if not locked:
        raise UserError(f"another program is training in {directory}; wait until it ends, or stop it, to --resume")
    if not has_checkpoint(directory):
        log.info("nothing to resume in %s: this is a new run", directory)
    return directory


def start_state(
    cfg: Config, session: Session, directory: Path, data: Loaders,
    model: ReIDModel, criterion: Criterion, optimizer: Optimizer,
) -> TrainState:  # fmt: skip
    """Return the state before the first step, or of the last checkpoint with `resume`. Opens train.log for the log."""
    ranks, device, dataset = session.ranks, session.device, data.dataset
    cfg = cfg.replace(pixel_range=data.train.cfg.data.pixel_range)  # found in the images: tests must use the same
    setup_logging(directory / "train.log" if ranks.first else None, quiet=not ranks.first)
    test_place = place(cfg.data.test_dataset) if cfg.data.test_dataset else ""
    about = {
        "command": session.command, "environment": describe_environment(device, ranks.size),
        "note": scores_note(resolve_protocol(cfg, dataset), dataset.note), "train_note": dataset.train_note,
        "labels": data.labels, "images": fingerprint(dataset.train),
        "places": {"dataset": "+".join(map(place, train_names(cfg))), "test_dataset": test_place},
        "names": {pid: name for pid, name in dataset.train_names.items() if pid in data.labels},
    }  # fmt: skip
    resumed = cfg.run.resume and has_checkpoint(directory)
    if session.precision == "auto":
        precision = None if resumed else load("processor.cpu_precision:faster_precision")(cfg, model)
        session = replace(session, precision=ranks.all_gather(precision)[0] or "auto")
    about["precision"] = session.precision
    average = load("solver.average:make_average")(model) if cfg.solver.ema_decay > 0 else None
    scaler = Scaler(device, session.precision)
    state = TrainState(cfg, session, directory, about, model, criterion, optimizer, scaler, average)
    log_run(state, data)
    seed_all(cfg.run.seed + ranks.rank)  # random numbers of training, such as dropout, differ between processes
    with ranks.sync_errors(first_alone=True):  # the first one may rename damaged checkpoints
        if resumed:
            load("processor.resume:restore")(state)
    log.info("training in %s", state.session.precision)
    progress = (state.epoch, state.step, len(state.history))
    ranks.check_same({"the checkpoint to resume (--log-dir must be one that all machines share)": progress})
    if ranks.first:
        write_json(directory / "config.json", cfg.to_dict())
    return state


def log_run(state: TrainState, data: Loaders) -> None:
    """Log what is trained, on what, where and how, and warn of settings without effect."""
    cfg, session, ranks = state.cfg, state.session, state.session.ranks
    environment = ", ".join(f"{name} {value}" for name, value in state.about["environment"].items())
    log.info("run %s, seed %d: %s", state.directory, cfg.run.seed, environment)
    log.info("command: %s", session.command or "(called from Python)")
    log.info("%s", data.dataset.name)
    log.info(data.dataset.describe())
    log.info(
        "model: %s, weights %s, input %s, embedding %d; losses: %s; %s, lr %g, %d epochs of %d batches; preset %s",
        cfg.model.backbone, cfg.model.weights,
        " ".join((*cfg.data.start_sizes, f"{cfg.data.height} x {cfg.data.width}")), state.model.embedding_dim,
        " + ".join(
            [name for name in ("id", *METRIC_LOSSES, "center") if cfg.get(f"{name}_weight") > 0]
            + ["teacher"] * bool(data.train.teacher_dim)
        ),
        cfg.solver.optimizer, cfg.solver.lr, cfg.solver.epochs, len(data.train),
        cfg.run.preset or cfg.run.preset_note or "none",
    )  # fmt: skip
    if state.model.loaded:
        log.info(str(state.model.loaded))
    if state.about["note"]:
        log.info("note: %s", state.about["note"])
    warnings = settings_without_effect(cfg, len(data.train))
    if ranks.size > 1 and cfg.loop.sync_bn and session.device.type != "cuda":
        warnings += ["torch has no SyncBatchNorm on CPUs: each process normalizes over its own part of a batch"]
    for warning in warnings:
        log.warning("warning: %s", warning)
