"""tools/check_dataset.py and tools/visualize_augmentation.py as people run them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_tree
from helpers import program, refused

from config import load_preset
from datasets.augment import OFF, TRANSFORMS, Draws
from datasets.base import ReIDDataset, Sample
from datasets.check import File, counts, problems, sizes
from tools.visualize_augmentation import AugmentationConfig, pictures


def check(dataset: object, sheet: Path, *more: object):
    return program("tools/check_dataset.py", dataset, "--output", sheet, "--workers", 2, *more)


def test_a_sound_set_is_described_drawn_and_has_nothing_to_mend(tmp_path):
    shown = check(write_tree(tmp_path / "mine"), tmp_path / "sheet.png")
    assert shown.returncode == 0 and shown.stdout.rstrip().endswith("nothing to mend")
    for words in (
        "mine, scored by protocol standard",
        "train        36 images     6 identities   3 cameras",
        "gallery: images an identity 6 to 6, median 6, mean 6.0; 1 distractors",
        "width               16      16      16      16      16",
        "height 32 to 63",
        "73 files looked at",
    ):
        assert words in shown.stdout, words
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["2", "12", "6", "4", "4", "8", "4"] in rows  # camera 2: train, query, gallery images and identities
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 2000 and sheet.std() > 20  # ten rows of pictures


def test_what_is_wrong_is_listed_and_the_exit_code_is_1(tmp_path):
    base = write_tree(tmp_path / "mine")
    train, query, gallery = (base / folder for folder in ("bounding_box_train", "query", "bounding_box_test"))
    (train / "0001_c1s1_000000_00.jpg").write_bytes(b"no image")
    shutil.copy(train / "0002_c1s1_000000_00.jpg", train / "0003_c1s1_000077_00.jpg")
    shutil.copy(train / "0004_c1s1_000000_00.jpg", gallery / "0008_c2s1_000078_00.jpg")
    shutil.copy(train / "0005_c1s1_000000_00.jpg", gallery / "0005_c2s1_000079_00.jpg")
    shutil.copy(train / "0006_c1s1_000000_00.jpg", query / "0099_c2s1_000079_00.jpg")
    shown = check(base, tmp_path / "sheet.png")
    assert shown.returncode == 1 and "nothing to mend" not in shown.stdout and "Traceback" not in shown.stderr
    problem = {line.split(" ", 2)[2]: int(line.split()[1]) for line in shown.stdout.splitlines() if "PROBLEM" in line}
    assert problem == {
        "files that cannot be decoded": 1,
        "equal files of different identities": 3,
        "equal files in training and test": 3,
        "identities in both training and test": 1,
        "queries without a match under another camera": 1,
    }
    assert "0001_c1s1_000000_00.jpg is not an image" in shown.stdout and "0099_c2s1_000079_00.jpg" in shown.stdout
    assert (tmp_path / "sheet.png").is_file()  # of all that can be drawn


def test_own_pictures_are_checked_as_they_would_be_trained_on(tmp_path):
    for pid in range(6):
        for n in range(4):
            path = tmp_path / "mine" / f"person{pid}" / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.random.default_rng([pid, n]).integers(0, 255, (40, 20, 3), dtype=np.uint8))
    shown = check(tmp_path / "mine", tmp_path / "sheet.png", "--test-share", 0.34, "--people", 2)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "train        20 images     5 identities cameras unknown" in shown.stdout and "note: " in shown.stdout
    refused(check(tmp_path / "nowhere", tmp_path / "sheet.png"), "nowhere' is neither")


def test_many_cameras_and_empty_sides_are_told_in_a_line():
    samples = [Sample(f"{i}.jpg", 1 + i % 3, i) for i in range(60)]
    assert counts(ReIDDataset("many", train=samples))[-1] == "60 cameras: too many for a table"
    assert sizes({"a": File((0, 0), "", "broken")}) == []
    assert problems(ReIDDataset("many", train=samples), {s.path: File((9, 9), s.path, "") for s in samples}) == {}


def test_equal_files_of_one_person_in_one_side_are_no_problem():
    samples = [Sample("a.jpg", 1, 1), Sample("b.jpg", 1, 2)]
    files = {"a.jpg": File((9, 9), "same", ""), "b.jpg": File((9, 9), "same", "")}
    assert problems(ReIDDataset("double", train=samples), files) == {}
    assert problems(ReIDDataset("double", query=samples[:1], gallery=samples[1:]), files) == {}
    leaked = problems(ReIDDataset("double", train=samples[:1], gallery=[Sample("b.jpg", 7, 2)]), files)
    assert set(leaked) == {"equal files of different identities", "equal files in training and test"}


# ---- augmentation, drawn


def test_a_batch_is_drawn_with_each_transform_alone_and_all_together(tiny, tmp_path):
    args = ["--data-root", tiny.data.data_root, "--height", 32, "--width", 16, "--batch-size", 8, "--images-per-id", 2]
    shown = program("tools/visualize_augmentation.py", *args, "--num", 2, "--log-dir", tmp_path, "--workers", 2)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    picture = cv2.imread(str(tmp_path / "augmentation_demo.png"))
    assert picture.shape[1] > 1000 and picture.std() > 20
    refused(program("tools/visualize_augmentation.py", *args, "--num", 0), "--num", "at least 1")
    refused(program("tools/visualize_augmentation.py", "nothing"), "no preset is called nothing")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_alone_changes_pictures_and_none_leaves_them_alone(name):
    cfg = AugmentationConfig(**vars(replace(load_preset("tiny_b1"), preset="")))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 32, 16, 3), dtype=np.uint8))
    assert np.array_equal(pictures(images, cfg.replace(**OFF), Draws(0, batch=6)), images.numpy())
    changed = pictures(images, cfg.replace(**(OFF | TRANSFORMS[name])), Draws(0, batch=6))
    assert changed.shape == images.shape and not np.array_equal(changed, images.numpy())
