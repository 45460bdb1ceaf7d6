"""The programs that people run, as they run them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import done, program, refused

from config import Config
from processor import do_train


def train_args(cfg: Config) -> list[str]:
    return ["train.py", "--data-root", cfg.data.data_root, "--log-dir", cfg.run.log_dir, "--device", "cpu",
            "--epochs", "1", "--steps", "1", "--height", "32", "--width", "16", "--batch-size", "8",
            "--images-per-id", "2"]  # fmt: skip


@pytest.fixture
def trained(tiny: Config) -> Config:
    do_train(tiny.replace(epochs=1, eval_first=False))
    return tiny


def test_test_py_scores_the_newest_run_and_writes_json(trained, tmp_path):
    shown = done("test.py", "--log-dir", trained.run.log_dir, "--flip", "--rerank", "--metric", "euclidean")
    rows = [line.split()[0] for line in shown.splitlines() if line and line.split()[0] in ("plain", "flip")]
    assert rows == ["plain", "flip"] and "flip+rerank" in shown
    file = Path(trained.run.log_dir) / "demo" / "results" / "test_last_demo_euclidean_flip_rerank.json"
    result = json.loads(file.read_text())
    assert set(result["scores"]) == {"plain", "flip", "flip+rerank"}
    assert result["settings"]["metric"] == "euclidean" and "test.py" in result["test_command"]
    by_path = done("test.py", file.parents[1] / "last.pth", "--metric", "euclidean", "--no-flip")
    assert f"{result['scores']['plain']['mAP']:.2f}" in by_path


def test_ranked_lists_are_drawn(trained, tmp_path):
    out = tmp_path / "pictures"
    done("get_vis_result.py", "demo", "--log-dir", trained.run.log_dir, "--sort", "best", "--num", "3", "--output", out)
    names = sorted(p.name for p in out.iterdir())
    assert len(names) == 4 and names[-1] == "overview.png" and names[0].startswith("001_ap")
    picture = cv2.imread(str(out / names[0]))
    red, green = (
        (np.abs(picture.astype(int) - np.array(c)[::-1]).max(2) < 12).sum() for c in ((215, 25, 28), (26, 150, 65))
    )
    assert green > 1000, "no green frame around a right match"
    assert red > 1000, "no red frame around a wrong one"


def test_no_checkpoint_yet_and_one_that_is_not_there_or_of_another_program(tiny, tmp_path):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    refused(program("test.py", tmp_path / "foreign.pth"), "--weights")
    refused(program("test.py", "--log-dir", tiny.run.log_dir), "train.py", tiny.run.log_dir)
    refused(program("get_vis_result.py", "--log-dir", tiny.run.log_dir), "train.py")
    refused(program("test.py", "nowhere.pth", "--log-dir", tiny.run.log_dir), "nowhere.pth")


def test_a_checkpoint_of_another_architecture(trained):
    refused(program("test.py", "--log-dir", trained.run.log_dir, "--backbone", "resnet50"), "mobilenet_v2", "resnet50")
    refused(program("test.py", "demo", "--log-dir", trained.run.log_dir, "--weights", "x.pth"), "--weights")


def test_a_log_directory_that_cannot_be_written_to_and_a_device_that_is_not_there(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    blocked = tiny.replace(log_dir=str(tmp_path / "file" / "log"))
    refused(program(*train_args(blocked)), tmp_path / "file" / "log", "--log-dir")
    refused(program(*train_args(tiny.replace(log_dir="/proc/reid"))), "/proc/reid", "--log-dir")
    refused(program(*train_args(tiny), "--device", "gpu7"), "gpu7")
