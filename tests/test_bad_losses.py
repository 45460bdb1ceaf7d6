"""Steps whose loss or gradient is NaN or inf are skipped, left out of the means, and stop the run if too many."""

import itertools
import os
import re
import signal

import pytest
import torch

from config import Config
from loss import Criterion
from model import ReIDModel
from processor import do_train
from utils.errors import Stopped, UserError

BAD = float("nan")


@pytest.fixture
def quick(tiny) -> Config:
    """4 steps per epoch."""
    return tiny.replace(epochs=2, eval_first=False, eval_every=9, width_multiplier=0.25, log_every=3, bad_steps=99)


def spoil(monkeypatch, steps: set[int], what: str = "loss", stop_at: int = -1) -> list[list[torch.Tensor]]:
    """These training steps, counted from 0 over all epochs, get a bad loss, gradient or forward pass.

    Gives a list that fills with the weights before each step. Step `stop_at` sends a SIGTERM.
    """
    forward, seen = ReIDModel.forward, []

    def spoiled(model: ReIDModel, images: torch.Tensor):
        if not model.training:
            return forward(model, images)
        number = len(seen)
        seen.append([p.detach().clone() for p in model.parameters()])
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if number not in steps:
            return forward(model, images)
        logits, features = forward(model, images * BAD if what == "forward" else images)
        if what == "gradient":
            logits[0].register_hook(lambda gradient: gradient * BAD)
        return [x * BAD for x in logits] if what == "loss" else logits, features

    monkeypatch.setattr(ReIDModel, "forward", spoiled)
    return seen


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("precision", "what", "changes"),
    [
        ("float32", "loss", {}),
        ("float32", "gradient", {"freeze_epochs": 0.5}),
        ("float32", "forward", {"ema_decay": 0.9}),
        pytest.param("fp16", "loss", {}, marks=pytest.mark.slow),
    ],
)
def test_a_bad_step_moves_no_weight_and_leaves_the_model_fit_to_be_tested(quick, monkeypatch, precision, what, changes):
    seen = spoil(monkeypatch, {1, 5}, what)
    epochs = 4 if precision == "fp16" else 2
    cfg = quick.replace(precision=precision, epochs=epochs, lr=1e-2, warmup_epochs=0, **changes)
    run = do_train(cfg)
    moved = [not same(before, after) for before, after in itertools.pairwise(seen)]
    assert len(seen) == 4 * cfg.solver.epochs and not moved[1] and not moved[5] and any(moved[2:])
    assert precision == "fp16" or moved.count(False) == 2  # the scale of fp16 starts too high
    assert "scores" in run.history[-1] and all(x.isfinite().all() for x in run.eval_model.state_dict().values())


def test_bad_steps_are_left_out_of_the_means_with_all_their_parts(quick, monkeypatch):
    real, parts = Criterion.forward, []

    def record(*args):
        total, values = real(*args)
        parts.append({name: value.item() for name, value in values.items()})
        return total, values

    monkeypatch.setattr(Criterion, "forward", record)
    spoil(monkeypatch, {1, 2, 4, 5, 6, 7})
    run = do_train(quick.replace(log_every=1))
    (first, second), log = run.history, (run.directory / "train.log").read_text()
    for name in ("id", "triplet", "center"):
        assert first[name] == pytest.approx((parts[0][name] + parts[3][name]) / 2, abs=1e-5), name
    assert "loss" not in second and "finite" not in first and len(re.findall("not finite|NaN", log)) >= 6


def test_too_many_in_a_row_stop_the_run_and_one_good_step_between_does_not(quick, monkeypatch):
    for log_every in (1, 50):
        cfg = quick.replace(log_every=log_every, bad_steps=3)
        with monkeypatch.context() as patch:
            spoil(patch, {0, 1, 3, 4, 6, 7})
            do_train(cfg.replace(name=f"goes-on-{log_every}"))
        with monkeypatch.context() as patch:
            spoil(patch, {0, 3, 4, 5})  # across two epochs
            with pytest.raises(UserError, match=r"3 .*epoch 2, step 2, .*bounding_box_train/\S+jpg"):
                do_train(cfg.replace(name=f"stops-{log_every}"))


def test_the_count_survives_a_stop(quick, monkeypatch):
    cfg = quick.replace(bad_steps=4, log_every=1)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        spoil(patch, set(range(9)), stop_at=1)
        do_train(cfg)
    seen = spoil(monkeypatch, set(range(9)))
    with pytest.raises(UserError, match=r"\b4 "):
        do_train(cfg.replace(resume=True))
    assert len(seen) == 2


def test_of_batches_that_make_one_step_each_bad_one_counts_and_only_a_good_step_ends_the_row(quick, monkeypatch):
    """One bad batch spoils the gradient of its group: with one in each, no weight would ever move."""
    cfg = quick.replace(accumulate=2, bad_steps=4, epochs=3, lr=1e-2, warmup_epochs=0)
    with monkeypatch.context() as patch:
        seen = spoil(patch, {0, 3, 4, 6, 9, 10})  # no good group
        with pytest.raises(UserError, match=r"4 .*epoch 2, step 3"):
            do_train(cfg.replace(name="one in each"))
        assert len(seen) == 8 and all(same(seen[0], other) for other in seen)
    with monkeypatch.context() as patch:
        seen = spoil(patch, {0, 3, 4, 8, 9, 10})  # the fourth group is good
        do_train(cfg.replace(name="a good one between"))
        assert same(seen[0], seen[6]) and not same(seen[0], seen[-1])
