"""tools/check_dataset.py and tools/visualize_augmentation.py as people run them."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import torch
from conftest import write_tree
from helpers import program, refused

from config import Config
from datasets.augment import TRANSFORMS
from datasets.base import ReIDDataset, Sample
from tools.check_dataset import File, describe, describe_sizes, find_problems
from tools.visualize_augmentation import columns


def check(dataset: object, sheet: object, *more: object):
    return program("tools/check_dataset.py", dataset, "--output", sheet, "--workers", 2, "--batch-size", 8, *more)


def test_a_sound_set_is_described_and_drawn_and_has_nothing_to_fix(tmp_path):
    shown = check(write_tree(tmp_path / "mine"), tmp_path / "sheet.png")
    assert shown.returncode == 0 and shown.stdout.rstrip().endswith("nothing to fix"), shown.stderr
    for words in (
        "mine, scored by protocol standard",
        "train        36 images     6 identities   3 cameras",
        "gallery: images per identity 6 to 6, median 6, mean 6.0; 1 distractors",
        "width               16      16      16      16      16",
        "73 files",
    ):
        assert words in shown.stdout, words
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["2", "12", "6", "4", "4", "8", "4"] in rows  # camera 2: train, query, gallery images and identities
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 2000 and sheet.std() > 20  # ten rows of pictures
    refused(check(tmp_path / "nowhere", tmp_path / "sheet.png"), "nowhere' is neither")


def test_what_is_wrong_is_listed_and_the_exit_code_is_1(tmp_path):
    base = write_tree(tmp_path / "mine")
    train, query, gallery = (base / folder for folder in ("bounding_box_train", "query", "bounding_box_test"))
    (train / "0001_c1s1_000000_00.jpg").write_bytes(b"no image")
    shutil.copy(train / "0002_c1s1_000000_00.jpg", train / "0003_c1s1_000077_00.jpg")
    shutil.copy(train / "0004_c1s1_000000_00.jpg", gallery / "0008_c2s1_000078_00.jpg")
    shutil.copy(train / "0005_c1s1_000000_00.jpg", gallery / "0005_c2s1_000079_00.jpg")
    shutil.copy(train / "0006_c1s1_000000_00.jpg", query / "0099_c2s1_000079_00.jpg")
    shown = check(base, tmp_path / "sheet.png")
    assert shown.returncode == 1 and "Traceback" not in shown.stderr
    problem = {line.split(" ", 2)[2]: int(line.split()[1]) for line in shown.stdout.splitlines() if "PROBLEM" in line}
    assert problem == {
        "files that cannot be decoded": 1,
        "equal files of different identities": 3,
        "equal files in training and test": 3,
        "identities in both training and test": 1,
        "queries without a match under another camera": 1,
    }
    assert "0001_c1s1_000000_00.jpg is not" in shown.stdout and "0099_c2s1_000079_00.jpg" in shown.stdout
    assert (tmp_path / "sheet.png").is_file()  # of all that can be drawn


def test_own_pictures_are_checked_as_they_would_be_trained_on(tmp_path):
    for pid, n in np.ndindex(6, 4):
        path = tmp_path / "mine" / f"person{pid}" / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng([pid, n]).integers(0, 255, (40, 20, 3), dtype=np.uint8))
    shown = check(tmp_path / "mine", tmp_path / "sheet.png", "--test-share", 0.34, "--batch-size", 64)
    assert shown.returncode == 1 and "try --batch-size 20" in shown.stdout and "one identity only" in shown.stdout
    shown = check(tmp_path / "mine", tmp_path / "sheet.png", "--split-seed", 1, "--people", 2)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "train         8 images     2 identities cameras unknown" in shown.stdout and "note: " in shown.stdout


def test_many_cameras_no_readable_file_and_equal_files_of_one_person():
    samples = [Sample(f"{i}.jpg", 1 + i % 3, i) for i in range(60)]
    assert "60 cameras" in describe(ReIDDataset("many", train=samples))[0]
    assert len(describe(ReIDDataset("many", train=samples))) == 2  # no table of cameras
    assert len(describe_sizes({"a": File(0, 0, "a", "broken")})) == 1
    assert find_problems(ReIDDataset("many", train=samples), {s.path: File(9, 9, s.path) for s in samples}) == {}
    samples = [Sample("a.jpg", 1, 1), Sample("b.jpg", 1, 2)]
    files = {"a.jpg": File(9, 9, "same"), "b.jpg": File(9, 9, "same")}
    assert find_problems(ReIDDataset("double", train=samples), files) == {}
    (kind,) = find_problems(ReIDDataset("double", query=samples[:1], gallery=samples[1:]), files)
    assert "copies of queries" in kind
    leaked = find_problems(ReIDDataset("double", train=samples[:1], gallery=[Sample("b.jpg", 7, 2)]), files)
    assert set(leaked) == {"equal files of different identities", "equal files in training and test"}


def test_a_batch_is_drawn_with_each_transform_alone_and_all_together(tiny, tmp_path):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 32, 16, 3), dtype=np.uint8))
    found = columns(images, Config(pad=2), epoch=0)
    assert list(found) == ["original", *TRANSFORMS, "as trained"]
    assert np.array_equal(found.pop("original"), images.numpy())
    assert all(c.shape == images.shape and not np.array_equal(c, images.numpy()) for c in found.values())
    args = ["--data-root", tiny.data.data_root, "--height", 32, "--width", 16, "--batch-size", 8, "--images-per-id", 2]
    shown = program("tools/visualize_augmentation.py", *args, "--num", 2, "--log-dir", tmp_path, "--workers", 2)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    picture = cv2.imread(str(tmp_path / "augmentation_demo.png"))
    assert picture.shape[1] > 1000 and picture.std() > 20
    refused(program("tools/visualize_augmentation.py", *args, "--num", 0), "--num")
    refused(program("tools/visualize_augmentation.py", "nothing"), "nothing")
