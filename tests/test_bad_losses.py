from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import processor.setup
import processor.train
from config import Config
from processor import do_train
from processor.checkpoint import read_checkpoint
from processor.precision import FiniteStatistics
from processor.state import TrainState
from processor.train import Network
from utils.errors import Stopped, UserError

BAD = float("nan")


@pytest.fixture
def quick(tiny) -> Config:
    """4 steps an epoch."""
    return tiny.replace(epochs=2, eval_first=False, eval_every=9, width_multiplier=0.25, log_every=3, bad_steps=99)


def spoil(monkeypatch, steps: set[int], what: str = "loss", value: float = BAD) -> list[TrainState]:
    """These training steps, counted from 0 over all epochs, get a loss that is not finite, or a bad forward pass.

    Gives the list of runs that were seen, which is filled as they train.
    """
    real, seen = processor.train.train_step, []

    def step(run: TrainState, network: Network, images: torch.Tensor, *args):
        number, forward = len(seen), network.module.forward
        seen.append(run)

        def bad_forward(x: torch.Tensor):
            logits, features = forward(x * value if what == "forward" else x)
            return [x * value for x in logits] if what == "loss" else logits, features

        if number in steps:
            network.module.forward = bad_forward
        try:
            return real(run, network, images, *args)
        finally:
            network.module.forward = forward

    monkeypatch.setattr(processor.train, "train_step", step)
    return seen


def weights(run: TrainState) -> list[torch.Tensor]:
    return [p.detach().clone() for p in (*run.model.parameters(), *run.criterion.parameters())]


def test_gradients_that_are_not_finite_count_though_the_loss_is(quick, monkeypatch):
    """Else a run could stand still, step after step, with nothing said."""
    real = processor.train.train_step

    def step(run: TrainState, *args):
        layer = next(run.model.parameters())
        hook = layer.register_hook(lambda gradient: gradient * BAD)
        try:
            values = real(run, *args)
        finally:
            hook.remove()
        assert values["loss"].isfinite()
        return values

    monkeypatch.setattr(processor.train, "train_step", step)
    with pytest.raises(UserError, match="NaN or inf in 3 consecutive steps"):
        do_train(quick.replace(bad_steps=3))


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize(("what", "value"), [("loss", float("inf")), ("forward", BAD)])
def test_a_bad_step_moves_no_weight_and_no_moment(quick, monkeypatch, precision, what, value):
    spoil(monkeypatch, {1}, what, value)
    states = []
    real = processor.train.train_step

    def look(run: TrainState, *args):
        before = [weights(run), moments(run)]
        values = real(run, *args)
        states.append((bool(values["finite"] * values["moved"]), before, [weights(run), moments(run)]))
        return values

    monkeypatch.setattr(processor.train, "train_step", look)
    do_train(quick.replace(epochs=3, precision=precision, lr=1e-2, warmup_epochs=0))
    good = [finite for finite, *_ in states]
    assert len(good) == 12 and not good[1] and any(good[2:])
    assert precision == "fp16" or good.count(False) == 1  # in fp16 the scale begins too high
    for finite, (before, _), (after, _) in states:
        assert finite != all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    _, before, after = states[1]
    for a, b in zip(before, after, strict=True):
        assert len(a) == len(b) > 100 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def moments(run: TrainState) -> list[torch.Tensor]:
    values = [x for state in run.optimizer.state.values() for x in state.values()]
    return [x.detach().clone() for x in values if isinstance(x, torch.Tensor)]


def test_the_steps_after_a_bad_one_are_those_of_a_run_that_never_saw_its_batch(quick, monkeypatch):
    """But for the running statistics of a forward pass that was good."""
    cfg = quick.replace(epochs=1, precision="float32")
    with monkeypatch.context() as patch:
        spoil(patch, {1}, "forward")
        one = do_train(cfg.replace(name="one"))
    real = processor.train.train_step

    def skip(run: TrainState, *args):
        if run.step == 1:
            return {name: torch.tensor(BAD) for name in ("loss", "id", "finite")}
        return real(run, *args)

    monkeypatch.setattr(processor.train, "train_step", skip)
    other = do_train(cfg.replace(name="other"))
    names = [name for name in one.model.state_dict() if not name.endswith("num_batches_tracked")]
    a, b = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in names)


def test_bad_steps_are_counted_out_of_the_means_with_all_their_parts(quick, monkeypatch):
    cfg = quick.replace(epochs=1, log_every=1)
    values = []
    spoil(monkeypatch, {1, 2})
    real = processor.train.train_step

    def look(run: TrainState, *args):
        values.append({name: value.item() for name, value in real(run, *args).items()})
        return {name: torch.tensor(value) for name, value in values[-1].items()}

    monkeypatch.setattr(processor.train, "train_step", look)
    run = do_train(cfg)
    assert torch.tensor(values[1]["triplet"]).isfinite() and torch.tensor(values[1]["accuracy"]).isfinite()
    for name in ("loss", "id", "triplet", "center", "accuracy"):
        assert run.history[-1][name] == pytest.approx((values[0][name] + values[3][name]) / 2, abs=1e-5), name
    assert "finite" not in run.history[-1]
    log = (run.directory / "train.log").read_text()
    assert log.count("1 steps skipped because of NaN or inf") == 2


def test_the_means_of_an_epoch_whose_steps_are_all_bad_are_left_out(quick, monkeypatch):
    spoil(monkeypatch, {0, 1, 2, 3})
    run = do_train(quick)
    assert "loss" not in run.history[0] and run.history[1]["loss"] > 0


@pytest.mark.parametrize("log_every", [1, 3, 50])
def test_so_many_in_a_row_stop_the_run_and_one_good_step_between_does_not(quick, monkeypatch, log_every):
    cfg = quick.replace(log_every=log_every, bad_steps=3)
    with monkeypatch.context() as patch:
        spoil(patch, {0, 1, 3, 4, 6, 7})
        do_train(cfg.replace(name="goes on"))
    spoil(monkeypatch, {0, 3, 4, 5})  # over the border between two epochs
    files = r"(/\S+bounding_box_train/\S+jpg\S* ?)+"
    sentence = rf"NaN or inf in 3 consecutive steps, the last time in epoch 2, step 2, on .*{files}.*--lr"
    with pytest.raises(UserError, match=sentence):
        do_train(cfg)


def test_the_files_that_are_named_are_those_of_the_batch(quick, monkeypatch):
    batches, real = [], processor.setup.make_loaders

    def make_loaders(*args):
        loaders = real(*args)
        sampler, samples = loaders.train.sampler, loaders.train.samples
        batches.extend({samples[i].path for i in batch} for batch in sampler.epoch(0))
        return loaders

    monkeypatch.setattr(processor.setup, "make_loaders", make_loaders)
    spoil(monkeypatch, {2})
    with pytest.raises(UserError) as error:
        do_train(quick.replace(bad_steps=1))
    named = {path for batch in batches for path in batch if str(path) in str(error.value)}
    assert named and named <= batches[2]


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_the_count_goes_on_after_a_stop(quick, monkeypatch, stop_after):
    cfg = quick.replace(bad_steps=4)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        seen = spoil(patch, set(range(9)))
        stopping = processor.train.set_lr
        patch.setattr(
            processor.train,
            "set_lr",
            lambda *args: (len(seen) == stop_after - 1 and os.kill(os.getpid(), signal.SIGTERM)) or stopping(*args),
        )
        do_train(cfg)
    state = read_checkpoint(Path(cfg.run.log_dir) / "demo" / "last.pth")
    assert state["bad"] == state["step"] == stop_after and state["sums"] == {}
    seen = spoil(monkeypatch, set(range(9)))
    with pytest.raises(UserError, match="in 4 consecutive steps"):
        do_train(cfg.replace(resume=True, log_every=1))
    assert len(seen) == 4 - stop_after


def test_of_batches_that_make_one_step_each_bad_one_counts_and_only_a_good_step_ends_the_row(quick, monkeypatch):
    """One bad batch spoils the gradient of its group: with one in each, no weight would ever move."""
    cfg = quick.replace(accumulate=2, bad_steps=4, epochs=3)
    with monkeypatch.context() as patch:
        seen = spoil(patch, {0, 3, 4, 6, 9, 10})  # three bad groups, a good one, two bad ones
        with pytest.raises(UserError, match="in 4 consecutive steps, the last time in epoch 2, step 3"):
            do_train(cfg.replace(name="one in each"))
        assert len(seen) == 8
        start = weights(seen[0])
    with monkeypatch.context() as patch:
        seen = spoil(patch, {0, 3, 4, 8, 9, 10})  # the fourth group is good
        do_train(cfg.replace(name="a good one between"))
        assert not all(torch.equal(x, y) for x, y in zip(start, weights(seen[-1]), strict=True))


def test_a_group_with_a_bad_batch_moves_nothing(quick, monkeypatch):
    cfg = quick.replace(accumulate=4, epochs=1, lr=1e-2, warmup_epochs=0)
    seen = spoil(monkeypatch, {1})
    before = []
    real = processor.train.train_step
    monkeypatch.setattr(
        processor.train, "train_step", lambda run, *args: before.append(weights(run)) or real(run, *args)
    )
    do_train(cfg)
    assert len(seen) == 4 and all(torch.equal(x, y) for x, y in zip(before[0], weights(seen[0]), strict=True))


# ---- batch norm's running statistics


def test_statistics_of_a_bad_batch_are_taken_back_and_those_of_good_ones_stay():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)))
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16)))
    plain.load_state_dict(net.state_dict())
    statistics = FiniteStatistics(net)
    torch.manual_seed(0)
    for number, factor in enumerate([1.0, BAD, 2.0, float("inf"), 1e30, 3.0]):
        images = factor * torch.randn(8, 3, 2, 2)
        net(images)
        statistics.check()
        if factor < 10:
            plain(images)
        for name, value in plain.named_buffers():
            if "running" in name:
                assert torch.equal(net.get_buffer(name), value), (number, name)


def test_a_model_without_batch_norm_has_nothing_to_keep():
    FiniteStatistics(nn.Linear(2, 2)).check()


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"ema_decay": 0.9}, {"freeze_epochs": 0.5}])
def test_a_forward_pass_that_overflows_leaves_the_model_fit_to_be_tested(quick, monkeypatch, changes):
    spoil(monkeypatch, {1, 5}, "forward")
    run = do_train(quick.replace(**changes))
    assert "scores" in run.history[-1]
    for model in filter(None, (run.model, run.average)):
        assert all(x.isfinite().all() for x in model.state_dict().values())
