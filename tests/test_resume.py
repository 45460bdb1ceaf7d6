import contextlib
import errno
import itertools
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arguments, contents, done, fails, flat, program, refused, start_training, stop_at

import processor.setup
import processor.state
import processor.train
import utils.errors
from config import Config
from model.reid import OneBranch
from processor import do_train, load_model
from processor.checkpoint import kept_checkpoints, read_checkpoint
from processor.setup import run_directory
from processor.train import train_one_epoch, train_step
from processor.watch import Watchers
from utils.errors import UserError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def short(tiny: Config, **changes) -> Config:
    """4 steps per epoch, a checkpoint after each, and no evaluation but the last."""
    quick = {"epochs": 2, "eval_first": False, "eval_every": 9, "width_multiplier": 0.25, "log_every": 1}
    return tiny.replace(**quick | {"save_minutes": 0.0, "keep": 3} | changes)


def logged(cfg: Config) -> str:
    return (Path(cfg.run.log_dir) / "demo" / "train.log").read_text()


# ---- damaged and foreign checkpoints


def test_a_damaged_checkpoint_is_renamed_and_the_run_continues_from_the_one_before(tiny, monkeypatch):
    cfg = short(tiny)
    whole = do_train(cfg.replace(name="whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "train_step", 7, fails(KeyboardInterrupt()))
        do_train(cfg)
    directory = Path(cfg.run.log_dir) / "demo"
    states = [read_checkpoint(p) for p in kept_checkpoints(directory / "last.pth")]
    assert [(s["epoch"], s["step"]) for s in states] == [(1, 2), (1, 1), (1, 0)]
    damaged = bytearray((directory / "last.pth").read_bytes())
    damaged[len(damaged) // 2] ^= 4
    (directory / "last.pth").write_bytes(damaged)
    resumed = do_train(cfg.replace(resume=True))
    assert f"{directory}/last.pth cannot be read" in logged(cfg)
    assert "last.1.pth after epoch 1 and 1 steps" in logged(cfg)
    assert contents(resumed.directory / "last.pth") == contents(whole.directory / "last.pth")
    assert (directory / "last.damaged.pth").read_bytes() == damaged
    assert [p.name for p in kept_checkpoints(directory / "last.pth")] == ["last.pth", "last.1.pth", "last.2.pth"]
    # where all are damaged, the run is refused and nothing is changed
    for path in kept_checkpoints(directory / "last.pth"):
        path.write_bytes(path.read_bytes()[:-9])
    before = {p.name: p.read_bytes() for p in directory.glob("*.pth")}
    with pytest.raises(UserError, match=r"last.pth cannot be read.*nor can the 2 before it.*without --resume"):
        do_train(cfg.replace(resume=True))
    assert {p.name: p.read_bytes() for p in directory.glob("*.pth")} == before


def test_a_checkpoint_of_another_model_with_bad_settings_or_without_training_state_is_refused(tiny):
    run = do_train(short(tiny, epochs=1))
    path = run.directory / "last.pth"
    state = read_checkpoint(path)
    other = state | {"model": {k: v for k, v in state["model"].items() if "classifier" not in k}}
    torch.save(other, path)
    for attempt in (lambda: do_train(short(tiny, epochs=1, resume=True)), lambda: load_model(path, "cpu")):
        with pytest.raises(UserError, match=f"{path} holds a mobilenet_v2 model of 6 identities"):
            attempt()
    assert path.exists() and not (run.directory / "last.damaged.pth").exists()
    for settings, word in (({"height": "tall"}, "height"), ({"lr": -1.0}, "--lr")):
        torch.save(state | {"config": state["config"] | settings}, path)
        with pytest.raises(UserError, match=f"{path}.*{word}"):
            load_model(path, "cpu")
    torch.save({name: state[name] for name in ("model", "config", "labels", "train_note")}, path)
    load_model(path, "cpu")
    for name in ("last.1.pth", "last.2.pth"):
        (run.directory / name).unlink()
    with pytest.raises(UserError, match=f"{path} .*: criterion, opti"):
        do_train(short(tiny, epochs=1, resume=True))


def test_a_checkpoint_holds_everything_and_all_of_it_is_restored(tiny):
    cfg = short(tiny, ema_decay=0.9, precision="fp16", optimizer="amsgrad", backbone_lr_factor=0.5)
    fresh = flat(start_training(cfg.replace(name="fresh"))[0].state_dict())
    run, network, data = start_training(cfg)
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 8.0, "_growth_tracker": 99})
    with contextlib.closing(Watchers(run)) as watchers:
        train_one_epoch(run, network, data.train, watchers)
    run.epoch, run.step, run.bad, run.sums, run.seconds, run.history = 5, 1, 3, {"loss": (1.5, 2)}, 7.0, [{"epoch": 1}]
    random.random(), np.random.rand(), torch.rand(1)
    for path in run.directory.glob("last*.pth"):
        path.unlink()  # it is not replaced while the latest steps were bad
    run.save()
    saved = flat(read_checkpoint(run.directory / "last.pth"))
    kinds = ("training_model", "model", "criterion", "optimizers model state", "scaler scale", "scaler _growth_tracker")
    kinds += ("rng 0 torch", "rng 0 python", "rng 0 numpy", "epoch", "step", "bad", "sums", "seconds", "history")
    kinds += ("optimizers model param_groups 0 lr",)
    for kind in kinds:
        assert any(fresh.get(n) != value for n, value in saved.items() if n.startswith(f" {kind}")), kind
    resumed = flat(start_training(cfg.replace(resume=True))[0].state_dict())
    other = {name for name in saved.keys() | resumed.keys() if name not in saved or resumed.get(name) != saved[name]}
    assert other == {" config resume"}


# ---- full disks and lost directories


def test_a_full_disk_ends_the_run_with_the_last_checkpoint_unchanged(tiny, monkeypatch, capsys):
    cfg = short(tiny)
    whole = do_train(cfg.replace(name="whole"))
    directory, found = Path(cfg.run.log_dir) / "demo", {}

    def full() -> None:
        found.update({p.name: p.read_bytes() for p in directory.glob("*.pth")})
        monkeypatch.setattr("utils.files.os.fsync", fails(FULL))

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        stop_at(patch, "train_step", 6, full)
        do_train(cfg)
    assert str(directory / "last.pth") in str(error.value) and "No space left on device" in str(error.value)
    assert "--resume" in str(error.value) and len(found) == 3
    assert {p.name: p.read_bytes() for p in directory.glob("*.pth")} == found and not list(directory.glob(".*.tmp"))
    monkeypatch.undo()
    resumed = do_train(cfg.replace(resume=True))
    assert contents(resumed.directory / "last.pth") == contents(whole.directory / "last.pth")
    # any other file that cannot be written is named
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        stop_at(patch, "write_json", 1, lambda: patch.setattr("utils.files.os.fsync", fails(FULL)), processor.setup)
        utils.errors.run(lambda: do_train(cfg.replace(name="third")))
    assert stop.value.code == 2 and "third/config.json" in capsys.readouterr().err


# ---- one program per directory


def test_two_programs_get_two_directories_and_a_run_cannot_be_resumed_while_it_trains(tiny):
    directory = Path(tiny.run.log_dir) / "demo"
    directory.mkdir(parents=True)
    for name in (".last.pth.123.tmp", ".best.pth.9.tmp", ".probe.tmp", "mine.tmp"):
        (directory / name).write_bytes(b"half")
    with run_directory(tiny) as first, run_directory(tiny) as second:
        assert (first.name, second.name) == ("demo", "demo-2")
        assert sorted(p.name for p in directory.iterdir()) == [".lock", "mine.tmp"]  # left by killed programs
        with pytest.raises(UserError, match=r"another program.* in .*/demo"), run_directory(tiny.replace(resume=True)):
            pass
    with run_directory(tiny.replace(resume=True)) as third:
        assert third.name == "demo"


def test_a_kill_between_the_two_checkpoints_of_an_evaluation_does_not_lose_the_best(tiny, monkeypatch):
    cfg = short(tiny, eval_first=True)  # the initial weights are the best here
    whole = do_train(cfg.replace(name="whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "save_checkpoint", 2, fails(KeyboardInterrupt()), processor.state)
        do_train(cfg)
    resumed = do_train(cfg.replace(resume=True))
    best, expected = (processor.state.best_score(run.history) for run in (resumed, whole))
    assert best == expected == (whole.history[0]["scores"]["plain"]["mAP"], 0)
    for name in ("best.pth", "last.pth"):
        assert contents(resumed.directory / name) == contents(whole.directory / name)


# ---- runs whose images grow: equal to runs of one size that hand over their weights


GROWING = {"height": 64, "width": 32, "pad": 5, "start_sizes": ("32x16:1", "48x24:2"), "epochs": 4, "eval_every": 1}


def test_sizes_and_padding_of_epochs_and_words_that_are_refused():
    cfg = Config(**GROWING).check()
    stages = [cfg.at_epoch(epoch) for epoch in range(6)]
    sizes = [(32, 16, 2), (48, 24, 4), (48, 24, 4), (64, 32, 5), (64, 32, 5), (64, 32, 5)]  # padding 2.5 and 3.75 of 5
    assert [(c.data.height, c.data.width, c.augment.pad) for c in stages] == sizes
    assert Config().at_epoch(3) == Config()
    for words in (["32x16"], ["32x16:0"], ["32x16:2", "8x16:1"], ["32x16:2", "48x24:2"], ["x:1"], ["32x99999:1"]):
        with pytest.raises(UserError, match=f"--start-sizes {words[-1]}"):
            Config(**GROWING | {"start_sizes": tuple(words)}).check()


def test_a_growing_run_equals_two_runs_of_one_size_each(tiny, monkeypatch):
    cfg = short(tiny, start_sizes=("32x16:1",), height=48, width=24, pad=3, eval_every=1)
    grown = do_train(cfg.replace(name="grown"))
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        stop_at(patch, "train_one_epoch", 2, fails(KeyboardInterrupt()))
        do_train(cfg.replace(start_sizes=(), height=32, width=16, pad=2))
    second = do_train(cfg.replace(start_sizes=(), resume=True))
    one, two = (read_checkpoint(run.directory / "last.pth") for run in (grown, second))
    for part in ("model", "criterion"):
        assert all(torch.equal(one[part][k], v) for k, v in two[part].items()), part
    times = ("images_per_second", "data_wait")
    losses = [[{k: v for k, v in entry.items() if k not in times} for entry in run.history] for run in (grown, second)]
    assert losses[0] == losses[1]  # and rates and scores of each epoch
    shown = done("test.py", grown.directory)
    assert f"{grown.history[-1]['scores']['plain']['mAP']:.2f}" in shown


@pytest.mark.slow
def test_a_run_of_three_sizes_is_resumed_in_every_stage(tiny, monkeypatch):
    cfg = short(tiny, **GROWING)
    grown = do_train(cfg.replace(name="grown"))
    for before, steps in itertools.pairwise((0, 2, 4, 6, 11, 12, 15)):  # of 4 in each epoch: also between stages
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, "train_step", steps - before + 1, fails(KeyboardInterrupt()))
            do_train(cfg.replace(name="broken", resume=before > 0))
    broken = do_train(cfg.replace(name="broken", resume=True))
    assert contents(broken.directory / "last.pth") == contents(grown.directory / "last.pth")


def test_a_step_is_recorded_again_for_images_of_another_size(tiny, monkeypatch):
    state, network, _ = start_training(tiny)
    recorded = []
    capture = lambda network, images, targets: recorded.append(images.shape) or network.add_gradient  # noqa: E731
    monkeypatch.setattr("processor.cuda_graph.capture", capture)
    network.use_graph = True
    for height in (32, 32, 48):
        train_step(state, network, [(torch.randn(8, 3, height, 16), torch.arange(8) // 2)])
    assert [shape[2] for shape in recorded] == [32, 48]


def test_a_model_that_takes_one_size_only_is_refused(tiny, monkeypatch):
    def pooled(self, images):
        assert images.shape[2] == 64, "Input height (32) doesn't match model (64)."  # what some models of timm say

    monkeypatch.setattr(OneBranch, "pooled", pooled)
    refused(program("train.py", *arguments(tiny.replace(**GROWING))), "mobilenet_v2", "32x16", "--start-sizes")
    assert not Path(tiny.run.log_dir).exists()
