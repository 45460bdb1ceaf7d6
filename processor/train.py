"""Training: the epochs, one epoch, one step, and the means of its losses."""

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta

import torch
from torch.optim import Optimizer

from config import Config
from datasets.loaders import Loaders, TrainLoader
from loss import Criterion
from model import ReIDModel
from processor.checkpoint import LAST
from processor.evaluate import do_inference, plain_settings, report, resolve_protocol, result_record
from processor.precision import FiniteStatistics, autocast, layout
from processor.setup import run_directory, start_session, start_state, training_criterion, training_data, training_model
from processor.state import Session, TrainState, best_score
from processor.watch import Progress, Watchers
from solver import make_optimizer, set_frozen, set_lr
from utils.errors import Stopped, UserError
from utils.files import write_json
from utils.logging import log
from utils.lookup import load

ESTIMATED = 4  # batches after the first step until the log gives the time left
SAVE_SHARE = 0.05  # of the time, for checkpoints: if an epoch takes seconds, not every one is saved
Losses = dict[str, torch.Tensor]  # of one step, as scalars on the device
Targets = Sequence[torch.Tensor]  # labels (B,) and, with a teacher, its features (B, D)
Gradient = tuple[Losses, list[torch.Tensor], torch.Tensor]  # a batch's losses, features of each branch, and labels
Batches = Iterable[Sequence[torch.Tensor]]  # images (B, 3, H, W), labels (B,) and, with a teacher, its features (B, D)


def do_train(cfg: Config, command: str = "") -> TrainState:
    """Train and evaluate, like train.py; all files of the run are in its directory, `LOG_DIR/NAME`.

    command: repeats the run, and is stored with it. Raises UserError for errors that the user can fix, and Stopped on a
    signal, after the state was saved. Under torchrun, all processes train together; an error of any process is raised
    in the first one only, and the others exit with the same code.
    """
    with start_session(cfg, command) as session:
        data = training_data(cfg, session)
        model = training_model(cfg, session, data)
        criterion = training_criterion(cfg, session, data, model)
        return train(cfg, session, data, model, criterion, make_optimizer(cfg, model, criterion))


def train(
    cfg: Config, session: Session, data: Loaders, model: ReIDModel, criterion: Criterion, optimizer: Optimizer
) -> TrainState:
    """Run all epochs with their evaluations and checkpoints; with `resume`, from the last checkpoint on."""
    ranks = session.ranks
    with run_directory(cfg, ranks) as directory:
        state = start_state(cfg, session, directory, data, model, criterion, optimizer)
        network = Network(state)
        # Signals to several processes wait until all check for them: none may leave while others wait for it.
        with contextlib.closing(Watchers(state)) as watchers, session.signals.held(ranks.size > 1):
            evaluated = state.step > 0 or (state.history and "scores" in state.history[-1])  # state is resumed
            if should_evaluate(cfg, state.epoch) and not evaluated:
                # a resumed run may be at the start of the next size
                evaluate_epoch(state, sized_data(state, data, max(state.epoch - 1, 0)), watchers)
            for entry in state.history[-1:]:  # the program may have ended between its checkpoint and its events
                watchers.log_entry(entry)
            while state.epoch < cfg.solver.epochs:
                data = sized_data(state, data, state.epoch)
                train_one_epoch(state, network, data.train, watchers)
                if should_evaluate(cfg, state.epoch):
                    evaluate_epoch(state, data, watchers)
                watchers.log_entry(state.history[-1])
        if ranks.first:
            write_result(state)
    return state


def sized_data(state: TrainState, data: Loaders, epoch: int) -> Loaders:
    """Return the loaders with the image size of this epoch (from 0)."""
    return load("processor.sizes:sized_data")(state, data, epoch) if state.cfg.data.start_sizes else data


def should_evaluate(cfg: Config, epoch: int) -> bool:
    """Whether to evaluate after `epoch` epochs (0: before training)."""
    if epoch == 0:
        return cfg.loop.eval_first
    return epoch % cfg.loop.eval_every == 0 or epoch >= cfg.solver.epochs


class Network:
    """The model as training calls it: parallel, compiled, with a frozen backbone, or as a CUDA graph."""

    def __init__(self, state: TrainState):
        self.state, self.frozen, self.module = state, None, state.model
        self.statistics = FiniteStatistics(state.model)
        cfg, session = state.cfg, state.session
        alone = session.ranks.size == cfg.loop.accumulate == 1
        static = not any(getattr(module, "no_cuda_graph", False) for module in state.model.modules())
        self.use_graph = cfg.loop.cuda_graph and session.device.type == "cuda" and alone and static
        self.graph, self.shape = None, None  # of the images that the graph takes

    def train(self, frozen: bool) -> None:
        """Put the model into training mode, but not a frozen backbone."""
        state = self.state
        if frozen == self.frozen and state.model.training:  # no evaluation since the last step
            return
        set_frozen(state.model, state.optimizer, frozen)
        if frozen != self.frozen:  # DistributedDataParallel must know which weights get a gradient
            self.frozen, self.graph = frozen, None
            self.module = state.session.ranks.parallel(state.model, state.criterion, state.session.device)
            if state.cfg.loop.compile:
                self.module = torch.compile(self.module)

    def gradient(self, images: torch.Tensor, targets: Targets, place: int = 0, group: int = 1) -> Gradient:
        """Compute the gradient of one batch: batch number `place` of the `group` batches of an optimizer step."""
        if self.use_graph and (self.graph is None or images.shape != self.shape):
            self.graph, self.shape = load("processor.cuda_graph:capture")(self, images, targets), images.shape
            self.use_graph = self.graph is not None
        if self.use_graph:
            return self.graph(images, targets)
        if place == 0:
            self.state.optimizer.zero_grad(set_to_none=True)
        return self.add_gradient(images, targets, place, group)

    def add_gradient(self, images: torch.Tensor, targets: Targets, place: int = 0, group: int = 1) -> Gradient:
        """Run forward pass, losses and backward pass."""
        state, cfg, session = self.state, self.state.cfg, self.state.session
        images = images.contiguous(memory_format=layout(cfg))
        # processes exchange the gradients of a group only once
        once = place == group - 1 or session.ranks.size == 1
        with contextlib.nullcontext() if once else self.module.no_sync():
            with autocast(session.device, session.precision):
                logits, features = self.module(images)
            if cfg.loop.gather:
                gather = session.ranks.gather_batch
                logits, features, targets = ([gather(x) for x in rows] for rows in (logits, features, targets))
            loss, parts = state.criterion(logits, features, *targets)
            state.scaler.scale(loss / group).backward()
        accuracy = (logits[0].argmax(1) == targets[0]).float().mean()
        values = {"loss": loss, **parts, "accuracy": accuracy, "finite": torch.isfinite(loss).float()}
        return {name: value.detach() for name, value in values.items()}, [x.detach() for x in features], targets[0]


def train_one_epoch(state: TrainState, network: Network, loader: TrainLoader, watchers: Watchers) -> None:
    """Train the rest of the current epoch, then save a checkpoint. Losses stay on the device until they are logged."""
    save_or_stop(state)
    cfg, session, steps = state.cfg, state.session, len(loader)
    alone = session.ranks.size == 1
    recent: list[Sequence[Losses]] = []  # losses of the batches of each optimizer step
    progress = Progress(f"epoch {state.epoch + 1}/{cfg.solver.epochs}", steps, cfg.data.batch_size, state.step, session)
    with contextlib.closing(progress), session.signals.held(alone):
        batches = progress.waiting(loader.epoch(state.epoch, session.device, first_step=state.step))
        if state.epoch == state.step == 0:
            batches = watchers.show_first(batches)
        while state.step < steps:
            epochs_done = state.epoch + state.step / steps
            network.train(frozen=epochs_done < cfg.solver.freeze_epochs)
            lr = set_lr(cfg, state.optimizer, epochs_done, steps)
            recent.append(train_step(state, network, batches, min(cfg.loop.accumulate, steps - state.step)))
            state.step += len(recent[-1])
            progress.step(len(recent[-1]))
            if progress.timed >= ESTIMATED and not watchers.estimated:
                watchers.estimated = True
                log.info("about %s left", time_left(state, steps, progress.step_seconds))
            session.ranks.broadcast(network.statistics.buffers)  # unsynchronized batch norm differs
            if state.average is not None:
                steps_before = state.epoch * -(-steps // cfg.loop.accumulate) + (state.step - 1) // cfg.loop.accumulate
                load("solver.average:update_average")(cfg, state.average, state.model, steps_before)
            finished = state.step == steps
            if sum(map(len, recent)) >= cfg.loop.log_every or finished or (session.signals.requested and alone):
                add_losses(state, recent, loader)
                recent = []
                progress.show(means(state), lr)
                state.seconds += progress.lap()
                if not finished:
                    save_or_stop(state, late=time.perf_counter() - state.saved_at > 60 * cfg.loop.save_minutes)
        finish_epoch(state, progress, steps, lr)


def time_left(state: TrainState, steps: int, step_seconds: float) -> timedelta:
    """Estimate the time for the rest of the run: epochs of `steps` steps, at the seconds per step of the current image
    size (more for larger images), and tests that take as long as the latest one."""
    cfg, epochs = state.cfg, state.cfg.solver.epochs
    tests = sum(should_evaluate(cfg, epoch) for epoch in range(state.epoch + 1, epochs + 1))
    left = epochs - state.epoch
    if cfg.data.start_sizes:
        present = state.epoch if state.step else max(state.epoch - 1, 0)
        left = load("config.sizes:epochs_left")(cfg, state.epoch, present)
    return timedelta(seconds=round((left * steps - state.step) * step_seconds + tests * state.test_seconds))


def train_step(state: TrainState, network: Network, batches: Batches, number: int = 1) -> Sequence[Losses]:
    """Update the weights and the centers of the center loss, with the gradient of the next `number` batches.

    batches: this process's share of each. The identity loss is that of one large batch; metric losses mine, and batch
    norm computes statistics, within each batch. Returns scalars on the device per batch, so that nothing waits for the
    device: the losses and `finite` (0 for a loss of NaN or inf). The last batch also has `moved` (0 if the gradient had
    NaN or inf and nothing was changed) and, if the gradient is clipped, `grad_norm`, its norm before clipping.
    """
    cfg, ranks, results = state.cfg, state.session.ranks, []
    for place, (images, *targets) in enumerate(itertools.islice(batches, number)):
        results.append(network.gradient(images, targets, place, number))
        network.statistics.check()
    losses, features, labels = zip(*results, strict=True)
    for weight in state.criterion.learned:  # not part of the parallel model
        ranks.all_reduce_mean(weight.grad)
    state.scaler.unscale_(state.optimizer)
    if cfg.solver.clip_grad > 0:
        losses[-1]["grad_norm"] = torch.nn.utils.clip_grad_norm_(state.model.parameters(), cfg.solver.clip_grad)
    losses[-1]["moved"] = moved = state.scaler.step_and_update(state.optimizer)
    if state.criterion.centers:
        rows = [torch.cat(x) for x in (*zip(*features, strict=True), labels)]
        if not cfg.loop.gather:
            rows = [ranks.gather_batch(x) for x in rows]
        state.criterion.move_centers(rows[:-1], rows[-1], moved)
    return losses


# ---- the means of an epoch


def add_losses(state: TrainState, recent: Sequence[Sequence[Losses]], loader: TrainLoader) -> None:
    """Add the losses of the latest steps to the state's sums, except those of steps with NaN or inf.

    recent: per optimizer step, the losses of its batches. Raises UserError after too many consecutive bad steps. One
    bad batch spoils the gradient of its group, so only a group without a bad batch resets their count.
    """
    values = torch.stack([value.double() for group in recent for parts in group for value in parts.values()])
    values = iter(state.session.ranks.all_reduce_mean(values).tolist())  # the only line that waits for the device
    step, bad = state.step - sum(map(len, recent)), []
    for group in recent:
        rows = [{name: next(values) for name in parts} for parts in group]
        good = [row.pop("finite") == 1 for row in rows]
        moved = rows[-1].pop("moved") == 1
        if all(good):
            good[-1] = moved
        for row in itertools.compress(rows, good):
            for name, value in row.items():
                if math.isfinite(value):  # the norm of a gradient may not be, though the loss is
                    total, count = state.sums.get(name, (0.0, 0))
                    state.sums[name] = (total + value, count + 1)
        bad += [place for place, fine in enumerate(good, step) if not fine]
        state.bad = 0 if all(good) else state.bad + good.count(False)
        if state.bad >= state.cfg.loop.bad_steps:
            refuse_bad_steps(state, loader, bad[-1])
        step += len(rows)
    if bad:
        fp16 = "; usual for the first few in fp16" if state.session.precision == "fp16" else ""
        log.warning("warning: epoch %d: %d steps skipped because of NaN or inf%s", state.epoch + 1, len(bad), fp16)


def refuse_bad_steps(state: TrainState, loader: TrainLoader, step: int) -> None:
    """Raises UserError that names the images of the last bad step."""
    files = "; ".join(state.session.ranks.all_gather(loader.files(state.epoch, step)))
    last = state.directory / LAST
    fix = f"continue with --resume from {last}, saved before them" if last.exists() else "start again"
    with state.session.ranks.sync_errors():  # the other processes exit silently
        raise UserError(
            f"the loss or its gradient was NaN or inf in {state.bad} consecutive steps, the last time in epoch "
            f"{state.epoch + 1}, step {step + 1}, on {files}; lower --lr ({state.cfg.solver.lr}) or raise "
            f"--warmup-epochs, then {fix}"
        )


def means(state: TrainState) -> dict[str, float]:
    """Return the means over the steps of the epoch so far."""
    return {name: round(total / count, 5) for name, (total, count) in state.sums.items()}


# ---- checkpoints, evaluation and the end


def save_or_stop(state: TrainState, late: bool = False) -> None:
    """Save a checkpoint if it is `late` in the first process. After a signal to any process, save one and stop all."""
    ranks = state.session.ranks
    signals, lates = zip(*ranks.all_gather((state.session.signals.requested, late)), strict=True)
    number = max(signals)
    if lates[0] or (number and state.saved != (state.epoch, state.step)):
        state.save()
    if number:
        ranks.all_gather(None)  # the first is still writing; if another ended now, torchrun or srun would kill it
        place = f"in epoch {state.epoch + 1} after step {state.step}" if state.step else f"after epoch {state.epoch}"
        stopped = Stopped(f"stopped {place}; continue with --resume", 128 + number)
        raise stopped if ranks.first else SystemExit(stopped.exit_code)


def finish_epoch(state: TrainState, progress: Progress, steps: int, lr: float) -> None:
    """Add the epoch to the history, save a checkpoint, and log one line with the time left."""
    cfg, losses, speed, waiting = state.cfg, means(state), progress.speed, progress.data_share
    state.epoch, state.step, state.sums = state.epoch + 1, 0, {}
    entry = {"epoch": state.epoch, **losses, "lr": lr, "images_per_second": round(speed, 1)}
    entry["data_wait"] = round(waiting, 4)
    if state.session.device.type == "cuda":
        entry["memory_gb"] = round(torch.cuda.max_memory_allocated(state.session.device) / 2**30, 2)
    state.history.append(entry)
    late = state.save_seconds < SAVE_SHARE * (time.perf_counter() - state.saved_at)
    if state.session.ranks.all_gather(late or state.epoch == cfg.solver.epochs)[0]:
        state.save()
    left = time_left(state, steps, progress.batch / speed)
    words = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
    place = f"{state.epoch:>{len(str(cfg.solver.epochs))}}/{cfg.solver.epochs}"
    log.info("epoch %s  %s  lr %.1e  %.0f img/s  data %.0f %%  left %s", place, words, lr, speed, 100 * waiting, left)


def evaluate_epoch(state: TrainState, data: Loaders, watchers: Watchers) -> None:
    """Score the model, or its moving average; add the scores to the history, and keep the checkpoint if it is the best
    so far. All scores of the settings are computed after the last epoch only, before it the plain scores."""
    session, last = state.session, state.epoch >= state.cfg.solver.epochs
    save_or_stop(state)
    cfg = resolve_protocol(state.cfg if last else plain_settings(state.cfg), data.dataset)
    started = time.perf_counter()
    inference = do_inference(cfg, state.eval_model, data.query, data.gallery, session.device, session.ranks)
    state.test_seconds, values = time.perf_counter() - started, None
    if inference is not None:
        log.info("before training:" if state.epoch == 0 else f"after epoch {state.epoch}:")
        values = report(inference, state.about["note"], data.dataset.camera_names)
    values = session.ranks.all_gather(values)[0]
    best = values["scores"]["plain"]["mAP"] > best_score(state.history)[0]
    if state.epoch == 0:
        state.history.append({"epoch": 0})
    state.history[-1] |= values
    if inference is not None:  # before the checkpoint: if it is killed here, the evaluation is repeated
        watchers.draw_evaluation(cfg, state, data, inference)
    with session.signals.held():
        state.save(best)


def write_result(state: TrainState) -> None:
    """Write results/train.json, and log one line with the scores before and after training."""
    last = state.history[-1]
    record = result_record(state.summary(), state.cfg, last["scores"], state.about["note"])
    if "by_camera" in last:
        record["by_camera"] = last["by_camera"]
    write_json(state.directory / "results" / "train.json", record)
    state.write_history()  # a kill after the last checkpoint may have come before it
    plain, before = last["scores"]["plain"], record["before"]
    log.info(
        "to report: plain, %s, epoch %d: mAP %.2f, Rank-1 %.2f%s (best.pth, epoch %d, was chosen on the test split)",
        LAST, state.epoch, plain["mAP"], plain["rank1"],
        f"; before training: {before['mAP']:.2f}, {before['rank1']:.2f}" if before else "",
        best_score(state.history)[1],
    )  # fmt: skip
    log.info("files: %s; next: python test.py, python get_vis_result.py, python tools/report.py", state.directory)
