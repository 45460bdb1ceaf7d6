"""The training loop. It reads from top to bottom: prepare, then train and test epoch by epoch, then report."""

from __future__ import annotations

import contextlib
import math
import time

import torch
from tqdm import tqdm

from config import Config
from datasets.base import fingerprint
from datasets.loaders import Loaders, make_loaders
from loss import make_criterion
from model import find_backbone, make_model
from processor.checkpoint import LAST
from processor.environment import pick_device
from processor.evaluate import do_inference, quick, report, scored_as, scores_note
from processor.result import result_record
from processor.run import Run, StopSignals, run_directory
from solver import beyond_the_end, make_average, make_optimizers, set_frozen, set_lr, update_average
from utils.errors import UserError
from utils.files import write_json
from utils.logging import log, setup_logging


def do_train(cfg: Config, command: str = "") -> Run:
    """Train and test as the settings say; everything that the run makes lies under its directory.

    command: the words that repeat the run, stored with it. Raises UserError for what the user can mend, and Stopped
    (after the state was saved) on Ctrl-C or SIGTERM.
    """
    setup_logging()
    with StopSignals() as signals:
        run, loaders = prepare(cfg, command)
        while True:
            if due(run):
                test(run, loaders)
            if run.epoch >= cfg.epochs:
                break
            train_one_epoch(run, loaders, signals)
    finish(run)
    return run


def prepare(cfg: Config, command: str) -> tuple[Run, Loaders]:
    """Data, model, losses, optimizers and directory. What can fail fails here, before anything is written."""
    device = pick_device(cfg.device)
    find_backbone(cfg.backbone)  # a wrong name shows before the data is read
    torch.manual_seed(cfg.seed)
    loaders = make_loaders(cfg)
    dataset = loaders.dataset
    note = scores_note(scored_as(cfg, dataset), dataset.note)
    model = make_model(cfg, len(loaders.labels))
    memory_format = torch.channels_last if cfg.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format)
    hardens = [head.harden for head in model.heads]
    criterion = make_criterion(cfg, len(loaders.labels), model.feature_dims, hardens).to(device)
    optimizers = make_optimizers(cfg, model, criterion)

    directory = run_directory(cfg)
    setup_logging(directory / "train.log")
    about = {"command": command, "note": note, "train_note": dataset.train_note, "images": fingerprint(dataset.train)}
    run = Run(cfg, directory, device, model, criterion, optimizers, loaders.labels, **about)
    run.average = make_average(cfg, model)
    log.info("run %s, seed %d: %s", directory, cfg.seed, ", ".join(f"{k} {v}" for k, v in run.environment.items()))
    log.info("command: %s", command or "(called from Python)")
    log.info("%s\n%s", dataset.name, dataset.describe())
    if note:
        log.info("note: %s", note)
    for sentence in beyond_the_end(cfg, len(loaders.train)):
        log.warning("warning: %s", sentence)
    if cfg.resume and (directory / LAST).exists():
        run.restore()
    write_json(directory / "config.json", cfg.to_dict())
    return run, loaders


def train_one_epoch(run: Run, loaders: Loaders, signals: StopSignals) -> None:
    """The rest of the epoch that the run is in, then a checkpoint. Losses stay on the device between looks at them."""
    cfg, steps, first, started = run.cfg, len(loaders.train), run.step, time.perf_counter()
    bar = tqdm(
        total=steps * cfg.batch_size,
        initial=first * cfg.batch_size,
        desc=f"epoch {run.epoch + 1}/{cfg.epochs}",
        unit="img",
        leave=False,
        disable=None,
    )
    recent: list[dict[str, torch.Tensor]] = []
    frozen = None  # a test may have come between
    with contextlib.closing(bar), signals.held():
        for images, labels in loaders.train.epoch(run.epoch, run.device, first_step=first):
            steps_before = run.epoch * steps + run.step
            progress = steps_before / steps
            if frozen != (progress < cfg.freeze_epochs):
                frozen = progress < cfg.freeze_epochs
                set_frozen(run.model, run.optimizers["model"], frozen)
            lr = set_lr(cfg, run.optimizers["model"], progress, steps)
            recent.append(train_step(run, images, labels))
            if run.average is not None:
                update_average(cfg, run.average, run.model, steps_before)
            run.step += 1
            bar.update(len(images))
            stop = signals.requested and run.step < steps
            if run.step % cfg.log_every == 0 or run.step == steps or stop:
                add_up(run, recent)
                bar.set_postfix_str(f"loss {run.sums['loss'] / run.step:.3f}", refresh=False)
            if stop:
                run.seconds += time.perf_counter() - started
                run.save()
                signals.check(f"stopped in epoch {run.epoch + 1} after step {run.step}; go on with --resume")
        seconds = time.perf_counter() - started
        run.seconds += seconds
        close_epoch(run, lr, (steps - first) * cfg.batch_size / seconds)
    signals.check(f"stopped after epoch {run.epoch}; go on with --resume")


def train_step(run: Run, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """One step of all optimizers. Gives the losses as scalars on the device, so that nothing waits for it.

    Clipping is of the model's gradient alone, by its norm over all weights, which `grad_norm` tells as it was before.
    The centers have an optimizer of their own, at another rate: they neither count nor are scaled.
    """
    if not run.cfg.channels_last:
        images = images.contiguous()
    logits, features = run.model(images)
    loss, parts = run.criterion(logits, features, labels)
    for optimizer in run.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    run.criterion.undo_center_weight()
    if run.cfg.clip_grad > 0:
        parts["grad_norm"] = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.cfg.clip_grad)
    for optimizer in run.optimizers.values():
        optimizer.step()
    accuracy = (logits[0].argmax(1) == labels).float().mean()
    return {name: value.detach() for name, value in {"loss": loss, **parts, "accuracy": accuracy}.items()}


def add_up(run: Run, recent: list[dict[str, torch.Tensor]]) -> None:
    """Move the losses of the last steps into the run's sums. Raises UserError when the run has diverged."""
    sums = torch.stack([torch.stack(list(parts.values())) for parts in recent]).double().sum(0).tolist()
    for name, value in zip(recent[0], sums, strict=True):
        run.sums[name] = run.sums.get(name, 0.0) + value
    recent.clear()
    if not math.isfinite(run.sums["loss"]):
        raise UserError(
            f"the loss is not finite in epoch {run.epoch + 1} near step {run.step}; the last good state is in "
            f"{run.directory}; lower --lr ({run.cfg.lr}) or lengthen --warmup-epochs, then go on with --resume"
        )


def close_epoch(run: Run, lr: float, speed: float) -> None:
    """Turn the sums of an epoch into its line of history, save, and say how long the rest will take."""
    means = {name: round(value / run.step, 5) for name, value in run.sums.items()}
    run.epoch, run.step, run.sums = run.epoch + 1, 0, {}
    run.history.append({"epoch": run.epoch, **means, "lr": lr, "images_per_second": round(speed, 1)})
    run.save()
    run.plot("train", {**means, "lr": lr, "images_per_second": speed})
    left = run.seconds / run.epoch * (run.cfg.epochs - run.epoch)
    losses = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
    log.info(
        "epoch %*d/%d  %s  lr %.1e  %.0f img/s  left %s",
        len(str(run.cfg.epochs)), run.epoch, run.cfg.epochs, losses, lr, speed, clock(left),
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
    inference = do_inference(cfg, run.tested, loaders.query, loaders.gallery, run.device)
    log.info("before training:" if run.epoch == 0 else f"after epoch {run.epoch}:")
    values = report(inference, run.note)
    best = values["scores"]["plain"]["mAP"] > run.best
    if run.epoch == 0:
        run.history.append({"epoch": 0})
    run.history[-1] |= values
    run.save(best=best)
    for protocol, row in values["scores"].items():
        run.plot(f"test_{protocol}", {name: row[name] for name in ("mAP", "mINP", "rank1")})


def finish(run: Run) -> None:
    """The run's result as JSON, and one line with the score before and after."""
    record = result_record(run.state(), run.cfg, run.history[-1]["scores"], run.note)
    if "by_camera" in run.history[-1]:
        record["by_camera"] = run.history[-1]["by_camera"]
    write_json(run.directory / "results" / "train.json", record)
    if run.board:
        run.board.close()
    scores = {h["epoch"]: h["scores"]["plain"]["mAP"] for h in run.history if "scores" in h}
    before = f"{scores[0]:.2f} % before training, " if 0 in scores else ""
    log.info("mAP %s%.2f %% after epoch %d; everything is in %s", before, scores[run.epoch], run.epoch, run.directory)


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
