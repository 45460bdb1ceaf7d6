"""The training loop, once `processor.prepare` is done: train and test epoch by epoch, then report."""

from __future__ import annotations

import contextlib

import torch

from config import Config
from datasets.augment import to_pixels
from datasets.loaders import Loaders
from processor.distributed import Ranks, copy_first, from_first, joined, of_all
from processor.evaluate import do_inference, quick, report, scored_as
from processor.prepare import prepare
from processor.ranked_lists import draw_some
from processor.result import result_record
from processor.run import Run, StopSignals
from processor.step import train_step
from processor.tally import add_up, averages
from processor.watch import Progress, clock, tile
from solver import set_lr, update_average
from utils.errors import Stopped
from utils.files import write_json
from utils.logging import log, setup_logging
from utils.plots import plot_curves


def do_train(cfg: Config, command: str = "") -> Run:
    """Train and test as the settings say; everything that the run makes lies under its directory.

    command: the words that repeat the run, stored with it. Raises UserError for what the user can mend, and Stopped
    (after the state was saved) on Ctrl-C, SIGTERM or SIGUSR1. Under torchrun, all its processes train together; only
    the first raises these where they concern all, and the others exit with the same code.
    """
    setup_logging()
    with StopSignals() as signals, joined(cfg) as ranks, contextlib.ExitStack() as at_end:
        run, loaders = prepare(cfg, command, ranks, at_end)
        # Signals of several processes wait until all look for them: none may leave while others count on it.
        with signals.held() if ranks.size > 1 else contextlib.nullcontext():
            while due(run) or run.epoch < cfg.solver.epochs:
                stop_together(run, signals)
                if due(run):
                    test(run, loaders, signals)
                else:
                    train_one_epoch(run, loaders, signals)
        if ranks.first:
            finish(run)
    return run


def train_one_epoch(run: Run, loaders: Loaders, signals: StopSignals) -> None:
    """The rest of the epoch that the run is in, then a checkpoint. Losses stay on the device between looks at them."""
    cfg, steps, first = run.cfg, len(loaders.train), run.step
    title = f"epoch {run.epoch + 1}/{cfg.solver.epochs}"
    progress = Progress(title, steps, cfg.data.batch_size, first, shown=run.ranks.first)
    recent: list[dict[str, torch.Tensor]] = []
    frozen = None  # a test may have come between
    with contextlib.closing(progress), held(run, signals):
        for images, labels in progress.waiting(loaders.train.epoch(run.epoch, run.device, first_step=first)):
            epochs_done = run.epoch + run.step / steps
            place, group = place_in_group(run.step, steps, cfg.loop.accumulate)
            if place == 0:
                if frozen != (epochs_done < cfg.solver.freeze_epochs):
                    frozen = epochs_done < cfg.solver.freeze_epochs
                    run.training_mode(frozen)
                lr = set_lr(cfg, run.optimizers["model"], epochs_done, steps)
            if run.watchers and run.epoch == run.step == 0:
                run.watchers.picture("train_batch", tile(to_pixels(images[:32])), 0)
            recent.append(train_step(run, images, labels, place, group))
            run.statistics.keep()
            run.step += 1
            progress.step()
            if place < group - 1:
                continue  # the gradients of a group that is under way are in no checkpoint
            copy_first(run.ranks, run.statistics.buffers)  # those of batch norm that is not synchronised differ
            if run.average is not None:
                before = run.epoch * -(-steps // cfg.loop.accumulate) + (run.step - 1) // cfg.loop.accumulate
                update_average(cfg, run.average, run.model, before)
            ended = run.step == steps
            if len(recent) >= cfg.loop.log_every or ended or (signals.requested and run.ranks.size == 1):
                add_up(run, recent, loaders)
                progress.tell(averages(run), lr)
                if not ended:
                    save_within_epoch(run, progress, signals)
        close_epoch(run, loaders, progress, lr)


def held(run: Run, signals: StopSignals) -> contextlib.AbstractContextManager:
    """A signal waits until the block is over; of several processes `do_train` holds them all the time."""
    return signals.held() if run.ranks.size == 1 else contextlib.nullcontext()


def place_in_group(step: int, steps: int, size: int) -> tuple[int, int]:
    """Which batch of its group a step is, from 0, and how many make that group: the last of an epoch may be smaller."""
    return step % size, min(size, steps - step // size * size)


def save_within_epoch(run: Run, progress: Progress, signals: StopSignals) -> None:
    """Write a checkpoint where it is time, or where a signal came to any of the processes: then stop."""
    late = progress.since_saved > 60 * run.cfg.loop.save_minutes
    requests, lates = zip(*of_all(run.ranks, (signals.requested, late)), strict=True)
    if any(requests) or lates[0]:
        run.seconds += progress.lap()
        run.save()
    if any(requests):
        stop(run.ranks, f"stopped in epoch {run.epoch + 1} after step {run.step}; go on with --resume", max(requests))


def stop_together(run: Run, signals: StopSignals) -> None:
    """Stop where a signal came to any of the processes, between epochs: the state is saved already."""
    number = max(of_all(run.ranks, signals.requested))
    if number:
        stop(run.ranks, f"stopped after epoch {run.epoch}; go on with --resume", number)


def stop(ranks: Ranks, sentence: str, number: int) -> None:
    """Raise Stopped, but leave the word to the first of several processes; to be called in all of them."""
    of_all(ranks, None)  # the first is still writing; when another left, torchrun or srun would end it
    raise Stopped(sentence, 128 + number) if ranks.first else SystemExit(128 + number)


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
        run.watchers.trained(run.history[-1])
    left = (cfg.solver.epochs - run.epoch) * len(loaders.train) * cfg.data.batch_size / speed
    losses = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
    log.info(
        "epoch %*d/%d  %s  lr %.1e  %.0f img/s  data %.0f %%  left %s",
        len(str(cfg.solver.epochs)), run.epoch, cfg.solver.epochs, losses, lr, speed, 100 * progress.data_share, clock(left),
    )  # fmt: skip


def due(run: Run) -> bool:
    """Is the state that the run is in to be tested, and not yet tested?"""
    if run.step or (run.history and "scores" in run.history[-1]):
        return False
    if run.epoch == 0:
        return run.cfg.loop.eval_first
    return run.epoch % run.cfg.loop.eval_every == 0 or run.epoch >= run.cfg.solver.epochs


def test(run: Run, loaders: Loaders, signals: StopSignals) -> None:
    """Score the model as it is, or its average. Write the scores into the history, keep the checkpoint if it is the
    best so far."""
    last = run.epoch >= run.cfg.solver.epochs
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
    with held(run, signals):
        run.save(best=best)
    if run.watchers:
        run.watchers.tested(run.history[-1])
        if run.epoch:
            plot_curves({run.directory.name: run.history}, run.directory / "curves.png")
        if cfg.loop.ranked_lists and cfg.eval.protocol in ("standard", "multi_query"):  # others have no one list
            path = run.directory / "ranked_lists.png"
            pixels = draw_some(cfg, inference, loaders.query, loaders.gallery, path)
            run.watchers.picture("ranked_lists", pixels, run.epoch)


def finish(run: Run) -> None:
    """The run's result as JSON, and one line with the score before and after."""
    record = result_record(run.summary(), run.cfg, run.history[-1]["scores"], run.note)
    if "by_camera" in run.history[-1]:
        record["by_camera"] = run.history[-1]["by_camera"]
    write_json(run.directory / "results" / "train.json", record)
    run.write_history()  # a kill after the last checkpoint may have come before it
    scores = {h["epoch"]: h["scores"]["plain"]["mAP"] for h in run.history if "scores" in h}
    before = f"{scores[0]:.2f} % before training, " if 0 in scores else ""
    log.info("mAP %s%.2f %% after epoch %d; everything is in %s", before, scores[run.epoch], run.epoch, run.directory)
