import json
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import contents, stop_at

import processor.train
import solver.average
from config import Config
from datasets.loaders import make_loaders
from model import make_model
from processor import do_inference, do_train, load_model
from processor.checkpoint import read_checkpoint
from processor.evaluate import score_values
from processor.state import TrainState
from utils.errors import Stopped, UserError


def test_a_run_leaves_everything_in_its_directory(tiny, monkeypatch):
    monkeypatch.setattr(processor.train, "ESTIMATED", 3)  # of the four steps of an epoch
    run = do_train(tiny, command="python train.py")
    directory = Path(tiny.run.log_dir) / "demo"
    assert run.directory == directory
    assert {p.name for p in directory.iterdir()} == {
        ".lock", "best.pth", "curves.png", "last.pth", "last.1.pth", "config.json", "metrics.jsonl", "train.log",
        "results", "tensorboard",
    }  # fmt: skip
    assert list((directory / "tensorboard").glob("events*"))
    entries = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [e["epoch"] for e in entries] == [0, 1, 2, 3]
    assert [("scores" in e) for e in entries] == [True, False, True, True]  # before, every second, last
    assert entries[1].keys() >= {"loss", "id", "triplet", "center", "accuracy", "lr", "images_per_second"}
    assert Config.from_dict(json.loads((directory / "config.json").read_text())) == tiny
    result = json.loads((directory / "results" / "train.json").read_text())
    assert result["scores"] == entries[-1]["scores"] and result["seed"] == 0 and result["command"] == "python train.py"
    assert result["before"] == entries[0]["scores"]["plain"] and result["torch"] == str(torch.__version__)
    best = max(e["scores"]["plain"]["mAP"] for e in entries if "scores" in e)
    stored = read_checkpoint(directory / "best.pth")
    assert max(h["scores"]["plain"]["mAP"] for h in stored["history"] if "scores" in h) == best
    assert (directory / "train.log").read_text().count(" left\n") == 1  # once
    assert len(processor.train.log.handlers) == 1  # that of the screen: train.log is closed
    # a finished run that is resumed trains no more
    before = contents(directory / "last.pth")
    again = do_train(tiny.replace(resume=True))
    assert again.epoch == 3 and len(again.history) == 4
    assert contents(directory / "last.pth") == before


@pytest.mark.slow
def test_training_learns(tiny):
    settings = {"backbone": "resnet18", "erase_prob": 0.0, "center_weight": 0.0, "lr": 1e-3}
    run = do_train(tiny.replace(epochs=10, steps=(8,), eval_every=10, **settings))
    assert run.history[-1]["id"] < 0.8 * run.history[1]["id"]
    assert run.history[-1]["accuracy"] > 0.6 > run.history[1]["accuracy"]


def test_same_seed_same_run_other_seed_other_run(tiny):
    first, second = (do_train(tiny.replace(epochs=1, name=name)) for name in ("a", "b"))
    assert contents(first.directory / "last.pth") == contents(second.directory / "last.pth")
    other = do_train(tiny.replace(epochs=1, name="c", seed=1))
    assert not torch.equal(first.model.branches[0].classifier.weight, other.model.branches[0].classifier.weight)


# ---- stopped and resumed


def stopped_and_resumed(cfg: Config, stop_after: int, monkeypatch, **changes) -> TrainState:
    """Trained until a signal arrives at step `stop_after` (from 1), then resumed, with changed settings if any."""
    with monkeypatch.context() as patch, pytest.raises(Stopped) as stop:
        stop_at(patch, "set_lr", stop_after, lambda: os.kill(os.getpid(), signal.SIGTERM))
        do_train(cfg)
    assert stop.value.exit_code == 128 + signal.SIGTERM and "--resume" in str(stop.value)
    torch.manual_seed(12345)  # a new process would not have the old one's random state
    return do_train(cfg.replace(resume=True, **changes))


PHASES = {"warmup_iters": 2, "freeze_epochs": 1.25, "delay_epochs": 1.5, "schedule": "cosine", "min_lr_factor": 0.1}
PHASES |= {"clip_grad": 1.0, "ema_decay": 0.9, "backbone_lr_factor": 0.5, "bias_lr_factor": 2.0, "eval_every": 1}


@pytest.mark.parametrize(
    ("changes", "stops"),  # of 4 steps per epoch
    [
        ({}, (2, 4, 7)),  # within the first epoch, at its end, in the second
        # this one draws random numbers
        pytest.param({"backbone": "efficientnet_b0", "width_multiplier": 1.0}, (2,), marks=pytest.mark.slow),
        # in the warm-up, frozen after it, after an evaluation, before the first step that is not frozen
        (PHASES | {"optimizer": "sgd", "nesterov": True}, (1, 5, 7)),
        pytest.param(PHASES | {"optimizer": "amsgrad", "no_decay_norm_bias": True}, (3, 6), marks=pytest.mark.slow),
    ],
)
def test_stopped_by_a_signal_and_resumed_a_run_ends_with_bit_identical_weights(tiny, monkeypatch, changes, stops):
    cfg = tiny.replace(**{"epochs": 2, "eval_first": False, "width_multiplier": 0.25} | changes)
    whole = do_train(cfg.replace(name="whole"))
    assert len(whole.history) == 2
    for stop_after in stops:
        resumed = stopped_and_resumed(cfg.replace(name=f"stop{stop_after}"), stop_after, monkeypatch)
        assert resumed.directory.name == f"stop{stop_after}"
        assert contents(resumed.directory / "last.pth") == contents(whole.directory / "last.pth")
    if "freeze_epochs" in changes:
        expected = [cfg.solver.lr, cfg.solver.lr * (0.1 + 0.9 * 0.5)]
        assert [h["lr"] for h in whole.history] == pytest.approx(expected)
        assert whole.history[1]["grad_norm"] > 0


@pytest.mark.parametrize("change", ["images", "batch size"])
def test_an_epoch_starts_again_if_its_batches_have_changed(tiny, monkeypatch, change):
    cfg = tiny.replace(epochs=1, eval_first=False, width_multiplier=0.25, name="parts")
    changes, steps, real = {"batch_size": 12} if change == "batch size" else {}, [], processor.train.train_step
    monkeypatch.setattr(processor.train, "train_step", lambda *args: steps.append(0) or real(*args))
    if change == "images":
        real_signal = os.kill
        image = next((Path(tiny.data.data_root) / "demo" / "bounding_box_train").glob("0001_c1*"))
        monkeypatch.setattr(os, "kill", lambda *args: image.unlink() or real_signal(*args))
    run = stopped_and_resumed(cfg, 3, monkeypatch, **changes)
    logged = (run.directory / "train.log").read_text()
    assert "epoch 1 starts again" in logged and len(run.history) == 1
    assert ("the training images have changed" in logged) == (change == "images")
    assert len(steps) == 3 + (4 if change == "images" else 3)


def test_an_evaluation_that_was_stopped_is_repeated(tiny, monkeypatch):
    cfg = tiny.replace(epochs=2, eval_first=False, name="parts")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, "do_inference", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        do_train(cfg)
    resumed = do_train(cfg.replace(resume=True))
    assert [h["epoch"] for h in resumed.history] == [1, 2] and "scores" in resumed.history[-1]


def test_resuming_with_another_optimizer_model_loss_or_other_data_is_refused(tiny):
    cfg = tiny.replace(epochs=1, eval_first=False, eval_every=9, width_multiplier=0.25)
    do_train(cfg)
    for changes, words in (
        ({"optimizer": "sgd"}, "--optimizer"),
        ({"optimizer": "amsgrad"}, "--optimizer"),
        ({"bias_lr_factor": 2.0}, "--bias-lr-factor"),
        ({"train_ids": 4}, "other identities"),
        ({"backbone": "resnet18"}, r"mobilenet_v2.*resnet18"),
        ({"center_weight": 0.0}, "other losses"),
    ):
        with pytest.raises(UserError, match=words):
            do_train(cfg.replace(resume=True, **changes))


# ---- parts of the training


def test_a_frozen_backbone_keeps_its_initial_weights_until_it_is_trained(tiny):
    cfg = tiny.replace(epochs=2, eval_every=1, warmup_epochs=0, freeze_epochs=2.0, width_multiplier=0.25)
    torch.manual_seed(cfg.run.seed)
    start = make_model(cfg, 6).state_dict()
    frozen = do_train(cfg.replace(name="frozen")).model.state_dict()
    moved = {k for k in start if not torch.equal(start[k], frozen[k])}
    assert moved and all(k.startswith(("branches.0.neck.", "branches.0.classifier.")) for k in moved)
    for epochs, steps in ((1.75, 1), (1.0, 4)):  # within an epoch, and at its start, after an evaluation
        trained = do_train(cfg.replace(name=f"trained{steps}", freeze_epochs=epochs)).model.state_dict()
        moved = {k for k in start if k.startswith("backbone.") and not torch.equal(start[k], trained[k])}
        assert any(k.endswith("running_mean") for k in moved) and any(k.endswith("conv.2.weight") for k in moved)
        assert trained["backbone.features.0.1.num_batches_tracked"] == steps


def test_evaluation_and_load_model_use_the_averaged_weights_and_a_checkpoint_holds_both(tiny, monkeypatch):
    steps, real = [], solver.average.update_average
    monkeypatch.setattr(solver.average, "update_average", lambda *args: steps.append(args[-1]) or real(*args))
    run = do_train(tiny.replace(epochs=2, eval_every=1, eval_first=False, ema_decay=0.9))
    assert steps == list(range(8))
    path = run.directory / "last.pth"
    state = read_checkpoint(path)
    model, cfg = load_model(path, "cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(value, run.average.state_dict()[name]), name
        assert torch.equal(state["training_model"][name], run.model.state_dict()[name]), name
    assert not torch.equal(model.branches[0].classifier.weight, run.model.branches[0].classifier.weight)
    loaders = make_loaders(cfg)
    inference = do_inference(cfg, model, loaders.query, loaders.gallery, torch.device("cpu"))
    assert score_values(inference.scores) == run.history[-1]["scores"]
