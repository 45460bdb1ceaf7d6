"""The training loop. It reads from top to bottom: prepare, then train and test epoch by epoch, then report."""

from __future__ import annotations

import contextlib
import math

import torch

from config import Config
from datasets.augment import to_pixels
from datasets.base import fingerprint
from datasets.loaders import Loaders, make_loaders
from loss import make_criterion
from model import find_backbone, make_model
from processor.distributed import (
    ALONE,
    Ranks,
    first_alone,
    from_first,
    joined,
    of_all,
    same_everywhere,
    started_as,
    synchronised,
)
from processor.environment import pick_device
from processor.evaluate import do_inference, quick, report, scored_as, scores_note
from processor.numerics import Scaler, set_up, settle_precision
from processor.ranked_lists import draw_some
from processor.result import result_record
from processor.run import Run, StopSignals, run_directory, taken
from processor.step import train_step
from processor.watch import Progress, Watchers, tile
from solver import beyond_the_end, make_average, make_optimizers, set_lr, update_average
from utils.errors import UserError
from utils.files import write_json
from utils.logging import log, setup_logging


def do_train(cfg: Config, command: str = "") -> Run:
    """Train and test as the settings say; everything that the run makes lies under its directory.

    command: the words that repeat the run, stored with it. Raises UserError for what the user can mend, and Stopped
    (after the state was saved) on Ctrl-C, SIGTERM or SIGUSR1. Under torchrun, all its processes train together.
    """
    setup_logging()
    with StopSignals() as signals, joined(cfg) as ranks:
        run, loaders = prepare(cfg, command, ranks)
        while True:
            if due(run):
                test(run, loaders)
            if run.epoch >= cfg.epochs:
                break
            train_one_epoch(run, loaders, signals)
        if ranks.first:
            finish(run)
    return run


def prepare(cfg: Config, command: str, ranks: Ranks = ALONE) -> tuple[Run, Loaders]:
    """Data, model, losses, optimizers and directory. What can fail fails here, before anything is written."""
    device = pick_device(cfg.device)
    precision = settle_precision(cfg, device)
    chosen = set_up(cfg, device, precision)
    find_backbone(cfg.backbone)  # a wrong name shows before the data is read
    torch.manual_seed(cfg.seed)
    with first_alone(ranks):
        loaders = make_loaders(cfg, ranks.rank, ranks.size)
        model = make_model(cfg, len(loaders.labels))
    dataset = loaders.dataset
    images = fingerprint(dataset.train)
    same_everywhere(ranks, images, "the training images")
    note = scores_note(scored_as(cfg, dataset), dataset.note)
    model, unsynchronised = synchronised(cfg, ranks, model, device)
    memory_format = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)
    hardens = [head.harden for head in model.heads]
    criterion = make_criterion(cfg, len(loaders.labels), model.feature_dims, hardens).to(device)
    optimizers = make_optimizers(cfg, model, criterion)

    directory = from_first(ranks, run_directory(cfg) if ranks.first else None)
    setup_logging(directory / "train.log" if ranks.first else None, quiet=not ranks.first)
    command = started_as(ranks, command)
    about = {"command": command, "note": note, "train_note": dataset.train_note, "images": images, "ranks": ranks}
    scaler = Scaler(device, precision)
    run = Run(cfg, directory, device, model, criterion, optimizers, loaders.labels, scaler, precision, **about)
    run.average = make_average(cfg, model)
    log.info("run %s, seed %d: %s", directory, cfg.seed, ", ".join(f"{k} {v}" for k, v in run.environment.items()))
    log.info("command: %s", command or "(called from Python)")
    log.info("%s; %s", f"{ranks.size} processes" if ranks.size > 1 else "one process", chosen)
    log.info("%s\n%s", dataset.name, dataset.describe())
    if note:
        log.info("note: %s", note)
    for sentence in filter(None, (*beyond_the_end(cfg, len(loaders.train)), unsynchronised)):
        log.warning("warning: %s", sentence)
    torch.manual_seed(cfg.seed + ranks.rank)  # what is drawn in training, such as dropout, differs by process
    if cfg.resume and taken(directory):
        run.restore()
    if ranks.first:
        run.watchers = Watchers(cfg, directory, run.epoch)
        write_json(directory / "config.json", cfg.to_dict())
    return run, loaders


def train_one_epoch(run: Run, loaders: Loaders, signals: StopSignals) -> None:
    """The rest of the epoch that the run is in, then a checkpoint. Losses stay on the device between looks at them."""
    cfg, steps, first = run.cfg, len(loaders.train), run.step
    title = f"epoch {run.epoch + 1}/{cfg.epochs}"
    progress = Progress(title, steps, cfg.batch_size, first, shown=run.ranks.first)
    recent: list[dict[str, torch.Tensor]] = []
    frozen = None  # a test may have come between
    with contextlib.closing(progress), signals.held():
        for images, labels in progress.waiting(loaders.train.epoch(run.epoch, run.device, first_step=first)):
            epochs_done = run.epoch + run.step / steps
            place, group = place_in_group(run.step, steps, cfg.accumulate)
            if place == 0:
                if frozen != (epochs_done < cfg.freeze_epochs):
                    frozen = epochs_done < cfg.freeze_epochs
                    run.training_mode(frozen)
                lr = set_lr(cfg, run.optimizers["model"], epochs_done, steps)
            if run.watchers and run.epoch == run.step == 0:
                run.watchers.picture("train_batch", tile(to_pixels(images[:32])), 0)
            recent.append(train_step(run, images, labels, place, group))
            run.step += 1
            progress.step()
            if place < group - 1:
                continue  # the gradients of a group that is under way are in no checkpoint
            if run.average is not None:
                update_average(cfg, run.average, run.model, (run.epoch * steps + run.step) // cfg.accumulate - 1)
            ended = run.step == steps
            if len(recent) >= cfg.log_every or ended or (signals.requested and run.ranks.size == 1):
                add_up(run, recent, loaders)
                progress.tell(averages(run), lr)
                if not ended:
                    save_within_epoch(run, progress, signals)
        close_epoch(run, loaders, progress, lr)
        signals.requested = max(of_all(run.ranks, signals.requested))
    signals.check(f"stopped after epoch {run.epoch}; go on with --resume")


def place_in_group(step: int, steps: int, size: int) -> tuple[int, int]:
    """Which batch of its group a step is, from 0, and how many make that group: the last of an epoch may be smaller."""
    return step % size, min(size, steps - step // size * size)


def save_within_epoch(run: Run, progress: Progress, signals: StopSignals) -> None:
    """Write a checkpoint where it is time, or where a signal came to any of the processes: then raise Stopped."""
    late = progress.since_saved > 60 * run.cfg.save_minutes
    wishes = of_all(run.ranks, (signals.requested, late))
    signals.requested = max(number for number, _ in wishes)
    if signals.requested or wishes[0][1]:
        run.seconds += progress.lap()
        run.save()
    signals.check(f"stopped in epoch {run.epoch + 1} after step {run.step}; go on with --resume")


def add_up(run: Run, recent: list[dict[str, torch.Tensor]], loaders: Loaders) -> None:
    """Move the losses of the last steps into the run's sums, those that are not finite excepted.

    Raises UserError when too many of these came in a row.
    """
    named = [(name, value) for parts in recent for name, value in parts.items()]
    values = torch.stack([value.double() for _, value in named]).tolist()  # the one place that waits for the device
    for (name, _), value in zip(named, values, strict=True):
        total, count = run.sums.get(name, (0.0, 0))
        run.sums[name] = (total + value, count + 1) if math.isfinite(value) else (total, count)
    finite = [value for (name, _), value in zip(named, values, strict=True) if name == "finite"]
    for step, good in enumerate(finite, run.step - len(recent)):
        run.bad = 0 if good else run.bad + 1
        if run.bad >= run.cfg.bad_steps:
            raise UserError(
                f"the loss was not finite {run.bad} times in a row, the last time in epoch {run.epoch + 1}, step "
                f"{step + 1}, on {loaders.train.files(run.epoch, step)}; the last good state is in {run.directory}; "
                f"lower --lr ({run.cfg.lr}) or lengthen --warmup-epochs, then go on with --resume"
            )
    if not all(finite):
        count = int(len(finite) - sum(finite))
        log.warning("warning: epoch %d: %d steps without effect, as their loss was not finite", run.epoch + 1, count)
    recent.clear()


def averages(run: Run) -> dict[str, float]:
    """Means over the steps of the epoch so far."""
    sums = {name: pair for name, pair in run.sums.items() if pair[1] and name != "finite"}
    return {name: round(total / count, 5) for name, (total, count) in sums.items()}


def close_epoch(run: Run, loaders: Loaders, progress: Progress, lr: float) -> None:
    """Turn the sums of an epoch into its line of history, save, and say how long the rest will take."""
    cfg, means, speed = run.cfg, averages(run), progress.speed
    run.seconds += progress.lap()
    run.epoch, run.step, run.sums = run.epoch + 1, 0, {}
    about = {"lr": lr, "images_per_second": round(speed, 1), "data_wait": round(progress.data_share, 4)}
    if run.device.type == "cuda":
        about["memory_gb"] = round(torch.cuda.max_memory_allocated(run.device) / 2**30, 2)
    run.history.append({"epoch": run.epoch, **means, **about})
    run.save()
    if run.watchers:
        run.watchers.numbers("train", means | about, run.epoch)
    left = (cfg.epochs - run.epoch) * len(loaders.train) * cfg.batch_size / speed
    losses = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
    log.info(
        "epoch %*d/%d  %s  lr %.1e  %.0f img/s  data %.0f %%  left %s",
        len(str(cfg.epochs)), run.epoch, cfg.epochs, losses, lr, speed, 100 * progress.data_share, clock(left),
    )  # fmt: skip


def due(run: Run) -> bool:
    """Is the state that the run is in to be tested, and not yet tested?"""
    if run.step or (run.history and "scores" in run.history[-1]):
        return False
    if run.epoch == 0:
        return run.cfg.eval_first
    return run.epoch % run.cfg.eval_every == 0 or run.epoch >= run.cfg.epochs


def test(run: Run, loaders: Loaders) -> None:
    """Score the model as it is, or its average. Write the scores into the history, keep the checkpoint if it is the
    best so far."""
    last = run.epoch >= run.cfg.epochs
    cfg = scored_as(run.cfg if last else quick(run.cfg), loaders.dataset)
    inference = do_inference(cfg, run.tested, loaders.query, loaders.gallery, run.device, run.ranks)
    values = None
    if inference is not None:
        log.info("before training:" if run.epoch == 0 else f"after epoch {run.epoch}:")
        values = report(inference, run.note)
    values = from_first(run.ranks, values)
    best = values["scores"]["plain"]["mAP"] > run.best
    if run.epoch == 0:
        run.history.append({"epoch": 0})
    run.history[-1] |= values
    run.save(best=best)
    if run.watchers:
        for protocol, row in values["scores"].items():
            named = {name: row[name] for name in ("mAP", "mINP", "rank1")}
            run.watchers.numbers(f"test_{protocol}", named, run.epoch)
        if cfg.ranked_lists and cfg.protocol in ("standard", "multi_query"):  # others have no one list
            path = run.directory / "ranked_lists.png"
            pixels = draw_some(cfg, inference, loaders.query, loaders.gallery, path)
            run.watchers.picture("ranked_lists", pixels, run.epoch)


def finish(run: Run) -> None:
    """The run's result as JSON, and one line with the score before and after."""
    record = result_record(run.summary(), run.cfg, run.history[-1]["scores"], run.note)
    if "by_camera" in run.history[-1]:
        record["by_camera"] = run.history[-1]["by_camera"]
    write_json(run.directory / "results" / "train.json", record)
    if run.watchers:
        run.watchers.close()
    scores = {h["epoch"]: h["scores"]["plain"]["mAP"] for h in run.history if "scores" in h}
    before = f"{scores[0]:.2f} % before training, " if 0 in scores else ""
    log.info("mAP %s%.2f %% after epoch %d; everything is in %s", before, scores[run.epoch], run.epoch, run.directory)


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
