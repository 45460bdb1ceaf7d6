from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import processor.train
from config import Config
from datasets.loaders import make_loaders
from model import make_model
from processor import do_inference, do_train, load_model
from processor.checkpoint import find_checkpoint, newest_run, read_checkpoint
from processor.evaluate import score_values
from processor.run import Run, run_directory
from utils.errors import Stopped, UserError


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Everything in a checkpoint that training changes, flat."""
    state = read_checkpoint(path)
    flat = {f"{m}.{k}": v for m in ("model", "training_model") for k, v in state.get(m, {}).items()}
    flat |= {f"criterion.{k}": v for k, v in state["criterion"].items()}
    for name, optimizer in state["optimizers"].items():
        for index, values in optimizer["state"].items():
            flat |= {f"{name}.{index}.{k}": torch.as_tensor(v) for k, v in values.items() if v is not None}
    return flat


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, different[:5]


def test_a_run_leaves_everything_in_its_directory(tiny):
    run = do_train(tiny, command="python train.py")
    directory = Path(tiny.run.log_dir) / "demo"
    assert run.directory == directory
    left = {p.name for p in directory.iterdir()}
    assert left == {
        ".lock",
        "best.pth",
        "curves.png",
        "last.pth",
        "last.1.pth",
        "config.json",
        "metrics.jsonl",
        "train.log",
        "results",
        "tensorboard",
    }
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


def test_training_learns(tiny):
    settings = {"backbone": "resnet18", "erase_prob": 0.0, "center_weight": 0.0, "lr": 1e-3}
    run = do_train(tiny.replace(epochs=10, steps=(8,), eval_every=10, **settings))
    assert run.history[-1]["id"] < 0.8 * run.history[1]["id"]
    assert run.history[-1]["accuracy"] > 0.6 > run.history[1]["accuracy"]


def test_same_seed_same_run_other_seed_other_run(tiny):
    first, second = (do_train(tiny.replace(epochs=1, name=name)) for name in ("a", "b"))
    assert_same(weights(first.directory / "last.pth"), weights(second.directory / "last.pth"))
    other = do_train(tiny.replace(epochs=1, name="c", seed=1))
    assert not torch.equal(first.model.branches[0].classifier.weight, other.model.branches[0].classifier.weight)


@pytest.mark.parametrize(
    ("backbone", "stop_after"),  # of 4 steps an epoch: inside the first, at its end, in the second
    [("mobilenet_v2", 2), ("mobilenet_v2", 4), ("mobilenet_v2", 7), ("efficientnet_v2_s", 2)],  # the last draws itself
)
def test_stopped_by_a_signal_and_resumed_ends_with_bit_identical_weights(tiny, monkeypatch, backbone, stop_after):
    cfg = tiny.replace(backbone=backbone, epochs=2, eval_first=False)
    whole = do_train(cfg.replace(name="whole"))
    assert len(whole.history) == 2
    resumed = stopped_and_resumed(cfg.replace(name="parts"), stop_after, monkeypatch)
    assert resumed.directory.name == "parts"
    assert_same_run(whole, resumed)


def stopped_and_resumed(cfg: Config, stop_after: int, monkeypatch) -> Run:
    """Trained until a signal comes at step `stop_after` (from 1), then to the end by what stands for a new process."""
    steps = 0
    real = processor.train.set_lr

    def set_lr_and_interrupt(*args):
        nonlocal steps
        steps += 1
        if steps == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(processor.train, "set_lr", set_lr_and_interrupt)
    with pytest.raises(Stopped) as stop:
        do_train(cfg)
    assert stop.value.exit_code == 128 + signal.SIGTERM and "--resume" in str(stop.value)
    monkeypatch.setattr(processor.train, "set_lr", real)
    torch.manual_seed(12345)  # a new process would not have the old one's random state
    return do_train(cfg.replace(resume=True))


def assert_same_run(whole: Run, resumed: Run) -> None:
    """The same weights, moments and history."""
    assert_same(weights(whole.directory / "last.pth"), weights(resumed.directory / "last.pth"))
    drop = ("images_per_second", "data_wait")
    for a, b in zip(whole.history, resumed.history, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}


@pytest.mark.parametrize("change", ["images", "batch size"])
def test_an_epoch_whose_batches_are_others_now_begins_anew(tiny, monkeypatch, change):
    cfg = tiny.replace(epochs=1, eval_first=False, name="parts")
    real, steps = processor.train.set_lr, []

    def set_lr_and_interrupt(*args):
        steps.append(len(steps))
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(processor.train, "set_lr", set_lr_and_interrupt)
    with pytest.raises(Stopped, match="after step 3"):
        do_train(cfg)
    if change == "images":
        next((Path(tiny.data.data_root) / "demo" / "bounding_box_train").glob("0001_c1*")).unlink()
    steps.clear()
    monkeypatch.setattr(processor.train, "set_lr", lambda *args: steps.append(0) or real(*args))
    run = do_train(cfg.replace(resume=True, batch_size=12 if change == "batch size" else 8))
    said = (run.directory / "train.log").read_text()
    assert "epoch 1 begins anew, as its batches are others now" in said and len(run.history) == 1
    assert ("the training images are not those of before" in said) == (change == "images")
    assert len(steps) == (4 if change == "images" else 3)


ALL = {"warmup_iters": 2, "freeze_epochs": 1.25, "delay_epochs": 1.5, "schedule": "cosine", "min_lr_factor": 0.1}
ALL |= {"clip_grad": 1.0, "ema_decay": 0.9, "backbone_lr_factor": 0.5, "bias_lr_factor": 2.0}


@pytest.mark.parametrize(
    ("optimizer", "stops"),
    # of 4 steps an epoch: in warm-up, frozen after warm-up, frozen after a test, before the first that is not, the fall
    [
        ({"optimizer": "sgd", "nesterov": True}, (1, 5, 7)),
        ({"optimizer": "amsgrad", "no_decay_norm_bias": True}, (3, 6)),
    ],
)
def test_stopped_in_any_phase_and_resumed_ends_with_bit_identical_weights(tiny, monkeypatch, optimizer, stops):
    cfg = tiny.replace(epochs=2, eval_first=False, eval_every=1, **ALL, **optimizer)
    whole = do_train(cfg.replace(name="whole"))
    for stop_after in stops:
        resumed = stopped_and_resumed(cfg.replace(name=f"stop{stop_after}"), stop_after, monkeypatch)
        assert_same_run(whole, resumed)
    assert [h["lr"] for h in whole.history] == pytest.approx([cfg.solver.lr, cfg.solver.lr * (0.1 + 0.9 * 0.5)])
    assert "grad_norm" in whole.history[0] and whole.history[1]["grad_norm"] > 0


def test_a_frozen_backbone_is_that_of_the_start_until_its_time_is_over(tiny):
    cfg = tiny.replace(epochs=2, eval_every=1, warmup_epochs=0, freeze_epochs=2.0)
    torch.manual_seed(cfg.run.seed)
    start = make_model(cfg, 6).state_dict()
    frozen = do_train(cfg.replace(name="frozen")).model.state_dict()
    moved = {k for k in start if not torch.equal(start[k], frozen[k])}
    assert moved and all(k.startswith(("branches.0.neck.", "branches.0.classifier.")) for k in moved)
    for epochs, steps in ((1.75, 1), (1.0, 4)):  # within an epoch, and at its border, after a test
        opened = do_train(cfg.replace(name=f"opened{steps}", freeze_epochs=epochs)).model.state_dict()
        moved = {k for k in start if k.startswith("backbone.") and not torch.equal(start[k], opened[k])}
        assert any(k.endswith("running_mean") for k in moved) and any(k.endswith("conv.2.weight") for k in moved)
        assert opened["backbone.features.0.1.num_batches_tracked"] == steps


def test_tests_and_load_model_use_the_averaged_weights_and_a_checkpoint_holds_both(tiny):
    run = do_train(tiny.replace(epochs=2, eval_every=1, eval_first=False, ema_decay=0.9))
    path = run.directory / "last.pth"
    state = read_checkpoint(path)
    model, cfg = load_model(path, "cpu")
    for name, value in model.state_dict().items():
        assert torch.equal(value, run.average.state_dict()[name]), name
        assert torch.equal(state["training_model"][name], run.model.state_dict()[name]), name
    assert not torch.equal(model.branches[0].classifier.weight, run.model.branches[0].classifier.weight)
    loaders = make_loaders(cfg)
    inference = do_inference(cfg, model, loaders.query, loaders.gallery, run.device)
    assert score_values(inference.scores) == run.history[-1]["scores"]


def test_the_average_counts_the_steps_of_all_epochs(tiny, monkeypatch):
    steps = []
    monkeypatch.setattr(processor.train, "update_average", lambda *args: steps.append(args[-1]))
    do_train(tiny.replace(epochs=2, eval_every=2, eval_first=False, ema_decay=0.9))
    assert steps == list(range(8))


def test_averaging_does_not_change_the_training(tiny):
    plain, averaged = (do_train(tiny.replace(epochs=1, eval_first=False, ema_decay=d, name=str(d))) for d in (0.0, 0.9))
    a, b = plain.model.state_dict(), averaged.model.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert "training_model" not in read_checkpoint(plain.directory / "last.pth")


def test_an_average_can_begin_or_end_with_a_resumed_run(tiny):
    cfg = tiny.replace(epochs=1, eval_first=False)
    averaged = do_train(cfg.replace(ema_decay=0.9, name="ends"))
    ended = do_train(cfg.replace(name="ends", resume=True))
    ends, averages = (run.model.branches[0].classifier.weight for run in (ended, averaged))
    assert torch.equal(ends, averages) and ended.average is None
    plain = do_train(cfg.replace(name="begins"))
    begun = do_train(cfg.replace(ema_decay=0.9, name="begins", resume=True))
    assert torch.equal(begun.average.branches[0].classifier.weight, plain.model.branches[0].classifier.weight)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": "sgd"}, "--optimizer adam, not sgd"),
        ({"optimizer": "amsgrad"}, "--optimizer adam, not amsgrad"),
        ({"bias_lr_factor": 2.0}, "--bias-lr-factor 1.0, not 2.0"),
    ],
)
def test_resuming_with_another_optimizer_is_refused(tiny, changes, words):
    do_train(tiny.replace(epochs=1, eval_first=False, eval_every=9))
    with pytest.raises(UserError, match=words):
        do_train(tiny.replace(resume=True, **changes))


def test_settings_whose_time_never_comes_are_warned_about(tiny):
    run = do_train(tiny.replace(epochs=1, eval_first=False, warmup_iters=2000))
    text = (run.directory / "train.log").read_text()
    assert "warning: warm-up takes 500 epochs" in text and "warning: --steps 2 go beyond the 1 epochs" in text


def test_stopped_while_testing_and_resumed_the_test_is_made_up_for(tiny, monkeypatch):
    cfg = tiny.replace(epochs=2, eval_first=False, name="parts")
    real = processor.train.do_inference

    def stopped(*args):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(processor.train, "do_inference", stopped)
    with pytest.raises(Stopped):
        do_train(cfg)
    monkeypatch.setattr(processor.train, "do_inference", real)
    resumed = do_train(cfg.replace(resume=True))
    assert [h["epoch"] for h in resumed.history] == [1, 2] and "scores" in resumed.history[-1]


def test_a_loss_that_is_not_finite_stops_the_run_with_a_sentence(tiny):
    where = r"not finite 2 times in a row, the last time in epoch 1, step \d, on /.*jpg.*--lr"
    with pytest.raises(UserError, match=where):
        do_train(tiny.replace(lr=1e30, warmup_epochs=0, eval_first=False, log_every=1, bad_steps=2))


def test_a_second_run_does_not_overwrite_the_first(tiny):
    cfg = tiny.replace(epochs=1, eval_first=False)
    assert [do_train(cfg).directory.name for _ in range(3)] == ["demo", "demo-2", "demo-3"]
    assert run_directory(cfg.replace(resume=True)).name == "demo-3"
    assert newest_run(cfg.run.log_dir).parent.name == "demo-3"
    assert find_checkpoint("demo-2", cfg.run.log_dir) == Path(cfg.run.log_dir) / "demo-2" / "last.pth"
    assert run_directory(cfg.replace(name="new", resume=True)).name == "new"


def test_a_finished_run_resumed_trains_no_more(tiny):
    cfg = tiny.replace(epochs=1, eval_first=False)
    before = weights(do_train(cfg).directory / "last.pth")
    again = do_train(cfg.replace(resume=True))
    assert again.epoch == 1 and len(again.history) == 1
    assert_same(before, weights(again.directory / "last.pth"))


def test_resuming_with_other_data_or_another_model_is_refused(tiny):
    do_train(tiny.replace(epochs=1, eval_first=False))
    with pytest.raises(UserError, match="other identities"):
        do_train(tiny.replace(resume=True, train_ids=4))
    with pytest.raises(UserError, match=r"mobilenet_v2.*resnet18"):
        do_train(tiny.replace(resume=True, backbone="resnet18"))
    with pytest.raises(UserError, match="optimizer"):
        do_train(tiny.replace(resume=True, center_weight=0.0))


def test_the_centers_learn_at_their_own_rate_and_weight_0_switches_them_off(tiny):
    run = do_train(tiny.replace(epochs=1, eval_first=False))
    assert run.optimizers["center"].param_groups[0]["lr"] == 0.5
    off = do_train(tiny.replace(epochs=1, eval_first=False, center_weight=0.0, name="off"))
    assert "center" not in off.optimizers and "center" not in off.history[-1]


def test_load_model_gives_the_trained_model_in_evaluation_mode(tiny):
    run = do_train(tiny.replace(epochs=1, eval_first=False))
    model, cfg = load_model(run.directory / "last.pth", "cpu")
    assert not model.training and cfg == run.cfg
    images = torch.randn(3, 3, 32, 16)
    with torch.no_grad():
        assert torch.allclose(model(images), run.model.eval()(images), atol=1e-5)  # layouts differ


def test_memory_layout_changes_speed_not_results(tiny):
    a, b = (do_train(tiny.replace(epochs=1, name=str(x), channels_last=x)) for x in (True, False))
    assert a.history[0]["scores"]["plain"]["mAP"] == pytest.approx(b.history[0]["scores"]["plain"]["mAP"], abs=0.5)
    assert a.history[-1]["loss"] == pytest.approx(b.history[-1]["loss"], rel=0.05)
