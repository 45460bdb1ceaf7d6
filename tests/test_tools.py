"""The programs that people run, as they run them."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import program, refused

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
    shown = program("test.py", "--log-dir", trained.run.log_dir, "--flip", "--rerank", "--metric", "euclidean")
    assert shown.returncode == 0, shown.stderr
    rows = [line.split()[0] for line in shown.stdout.splitlines() if line and line.split()[0] in ("plain", "flip")]
    assert rows == ["plain", "flip"] and "flip+rerank" in shown.stdout
    file = Path(trained.run.log_dir) / "demo" / "results" / "test_last_demo_euclidean_flip_rerank.json"
    result = json.loads(file.read_text())
    assert set(result["scores"]) == {"plain", "flip", "flip+rerank"}
    assert result["settings"]["metric"] == "euclidean" and "test.py" in result["test_command"]
    by_path = program("test.py", file.parents[1] / "last.pth", "--metric", "euclidean", "--no-flip")
    assert f"{result['scores']['plain']['mAP']:.2f}" in by_path.stdout


def test_a_cut_test_split_is_said_in_every_output(trained):
    shown = program("test.py", "--log-dir", trained.run.log_dir, "--test-ids", "2")
    assert "first 2 of 4 identities" in shown.stdout and "not comparable" in shown.stdout
    file = Path(trained.run.log_dir) / "demo" / "results" / "test_last_demo_cosine_2ids.json"
    assert "not comparable" in json.loads(file.read_text())["note"]


@pytest.mark.parametrize("entrance", ["get_vis_result.py", "tools/get_vis_result.py"])
def test_ranked_lists_are_drawn(trained, tmp_path, entrance):
    out = tmp_path / "pictures"
    shown = program(entrance, "demo", "--log-dir", trained.run.log_dir, "--sort", "best", "--num", "3", "--output", out)
    assert shown.returncode == 0, shown.stderr
    names = sorted(p.name for p in out.iterdir())
    assert len(names) == 4 and names[-1] == "overview.png" and names[0].startswith("001_ap")
    picture = cv2.imread(str(out / names[0]))
    red, green = (
        (np.abs(picture.astype(int) - np.array(c)[::-1]).max(2) < 12).sum() for c in ((215, 25, 28), (26, 150, 65))
    )
    assert green > 1000, "no green frame around a right match"
    assert red > 1000, "no red frame around a wrong one"


def test_missing_and_empty_data(tiny, tmp_path):
    common = ["train.py", "tiny_b1", "--weights", "none", "--log-dir", tiny.run.log_dir, "--device", "cpu"]
    refused(program(*common, "--data-root", tmp_path / "nowhere"), tmp_path / "nowhere", "--data-root")
    (tmp_path / "empty" / "Market-1501" / "bounding_box_train").mkdir(parents=True)
    refused(program(*common, "--data-root", tmp_path / "empty"), "Market-1501")
    for folder in ("query", "bounding_box_test"):
        (tmp_path / "empty" / "Market-1501" / folder).mkdir()
    refused(program(*common, "--data-root", tmp_path / "empty"), "bounding_box_train", "no image")
    assert not Path(tiny.run.log_dir).exists()


def test_a_bad_image_is_named_before_anything_is_written(tiny):
    for split, damage in (("bounding_box_train", "truncated"), ("bounding_box_test", "text")):
        victim = sorted((Path(tiny.data.data_root) / "demo" / split).glob("*_c2*.jpg"))[1]
        whole = victim.read_bytes()
        victim.write_bytes(whole[:-200] if damage == "truncated" else b"these are words, not pixels")
        refused(program(*train_args(tiny)), victim)
        victim.write_bytes(whole)
        assert not Path(tiny.run.log_dir).exists()


def test_grey_transparent_and_cmyk_images_are_trained_on(tiny):
    from PIL import Image

    folder = Path(tiny.data.data_root) / "demo" / "bounding_box_train"
    grey, clear, cmyk = sorted(folder.glob("*.jpg"))[:3]
    Image.open(grey).convert("L").save(grey)
    Image.open(clear).convert("RGBA").save(clear.with_suffix(".png"))
    clear.unlink()
    Image.open(cmyk).convert("CMYK").save(cmyk)
    shown = program(*train_args(tiny), "--eval-every", "1")
    assert shown.returncode == 0, shown.stderr
    assert "36 images" in shown.stdout


def test_no_checkpoint_yet_and_one_that_is_not_there(tiny):
    refused(program("test.py", "--log-dir", tiny.run.log_dir), "train.py", tiny.run.log_dir)
    refused(program("get_vis_result.py", "--log-dir", tiny.run.log_dir), "train.py")
    refused(program("test.py", "nowhere.pth", "--log-dir", tiny.run.log_dir), "nowhere.pth")


def test_a_checkpoint_of_another_architecture(trained):
    refused(program("test.py", "--log-dir", trained.run.log_dir, "--backbone", "resnet50"), "mobilenet_v2", "resnet50")
    refused(program("test.py", "demo", "--log-dir", trained.run.log_dir, "--weights", "x.pth"), "--weights")


class Bomb:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tiny, tmp_path):
    for name, save in (("old", lambda v, p: p.write_bytes(pickle.dumps(v))), ("new", lambda v, p: torch.save(v, p))):
        bomb = tmp_path / f"{name}.pth"
        save({"model": Bomb(str(tmp_path / "boom"))}, bomb)
        refused(program("test.py", bomb), bomb, "not a checkpoint" if name == "old" else "code")
        refused(program(*train_args(tiny), "--weights", bomb, "--backbone", "resnet18"), bomb, "refused")
    assert not (tmp_path / "boom").exists()
    assert not Path(tiny.run.log_dir).exists()


def test_damaged_and_foreign_checkpoints_are_refused(trained, tmp_path):
    whole = (Path(trained.run.log_dir) / "demo" / "last.pth").read_bytes()
    for content in (b"", b"PK\x03\x04 cut short", b"\x80\x02 half a pickle", b"plain words", whole[: len(whole) // 2]):
        (tmp_path / "bad.pth").write_bytes(content)
        refused(program("test.py", tmp_path / "bad.pth"), tmp_path / "bad.pth")
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    refused(program("test.py", tmp_path / "foreign.pth"), "--weights")


def test_a_log_directory_that_cannot_be_written_to_and_a_device_that_is_not_there(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    blocked = tiny.replace(log_dir=str(tmp_path / "file" / "log"))
    refused(program(*train_args(blocked)), tmp_path / "file" / "log", "--log-dir")
    refused(program(*train_args(tiny.replace(log_dir="/proc/reid"))), "/proc/reid", "--log-dir")
    refused(program(*train_args(tiny), "--device", "gpu7"), "gpu7")
