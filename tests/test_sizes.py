"""Runs whose images grow: equal to runs of one size that hand over their weights, and resumable anywhere."""

import contextlib
from pathlib import Path

import pytest
import torch
from helpers import arguments, contents, fails, program, refused, start_training
from test_resume import short, stop_at

from config import Config
from model.reid import OneBranch
from processor import do_train
from processor.checkpoint import read_checkpoint
from processor.state import TrainState
from processor.train import train_step
from utils.errors import UserError

GROWING = {"height": 64, "width": 32, "pad": 5, "start_sizes": ("32x16:1", "48x24:2"), "epochs": 4, "eval_every": 1}
SIZES = [(32, 16, 2), (48, 24, 4), (48, 24, 4), (64, 32, 5)]  # of each epoch, and its padding (of 5: 2.5 and 3.75)


def test_sizes_and_padding_of_epochs_and_words_that_are_refused():
    cfg = Config(**GROWING).check()
    stages = [cfg.at_epoch(epoch) for epoch in range(6)]
    assert [(c.data.height, c.data.width, c.augment.pad) for c in stages] == [*SIZES, SIZES[-1], SIZES[-1]]
    assert Config().at_epoch(3) == Config()
    for words in (["32x16"], ["32x16:0"], ["32x16:2", "8x16:1"], ["32x16:2", "48x24:2"], ["x:1"], ["32x99999:1"]):
        with pytest.raises(UserError, match=f"--start-sizes {words[-1]}"):
            Config(**GROWING | {"start_sizes": tuple(words)}).check()


def plain(history: list[dict]) -> list[dict]:
    return [{k: v for k, v in entry.items() if k not in ("images_per_second", "data_wait")} for entry in history]


def train_in_turn(cfg: Config, sizes: list[tuple], monkeypatch) -> TrainState:
    """One run per epoch and size, each from the checkpoint of the one before."""
    for epoch, (height, width, pad) in enumerate(sizes):
        one = cfg.replace(start_sizes=(), height=height, width=width, pad=pad, resume=epoch > 0)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            stop_at(patch, "train_one_epoch", 2, fails(KeyboardInterrupt()))
            state = do_train(one)
    return state


def same(state: TrainState, other: TrainState) -> None:
    one, two = (read_checkpoint(run.directory / "last.pth") for run in (state, other))
    for part in ("model", "criterion"):
        assert all(torch.equal(one[part][k], v) for k, v in two[part].items()), part
    assert plain(state.history) == plain(other.history)  # losses, rates and scores of each epoch


def test_a_growing_run_equals_two_runs_of_one_size_each(tiny, monkeypatch):
    cfg = short(tiny, start_sizes=("32x16:1",), height=48, width=24, pad=3)
    grown = do_train(cfg.replace(name="grown"))
    same(grown, train_in_turn(cfg, [(32, 16, 2), (48, 24, 3)], monkeypatch))
    shown = program("test.py", grown.directory)
    assert shown.returncode == 0 and f"{grown.history[-1]['scores']['plain']['mAP']:.2f}" in shown.stdout


@pytest.mark.slow
def test_three_sizes_with_scores_of_each_equal_runs_in_turn_and_one_resumed_in_every_stage(tiny, monkeypatch):
    cfg = short(tiny, **GROWING)
    grown = do_train(cfg.replace(name="grown"))
    same(grown, train_in_turn(cfg, SIZES, monkeypatch))
    for done, steps in ((0, 2), (2, 4), (4, 6), (6, 11), (11, 12), (12, 15)):  # of 4 in each epoch: also between stages
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, "train_step", steps - done + 1, fails(KeyboardInterrupt()))
            do_train(cfg.replace(name="broken", resume=done > 0))
    broken = do_train(cfg.replace(name="broken", resume=True))
    assert contents(broken.directory / "last.pth") == contents(grown.directory / "last.pth")


def test_a_step_is_recorded_again_for_images_of_another_size(tiny, monkeypatch):
    state, network, _ = start_training(tiny)
    recorded = []
    capture = lambda network, images, targets: recorded.append(images.shape) or network.add_gradient  # noqa: E731
    monkeypatch.setattr("processor.cuda_graph.capture", capture)
    network.train(frozen=False)
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
