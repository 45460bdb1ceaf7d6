"""Damaged image files in the tree of a whole program: refused, or left out with a note."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arguments, program, refused, save_model

from config import Config
from datasets.images import read_image
from datasets.loaders import make_loaders

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
SKIP = ("--on-bad-image", "skip")
TRAIN = [f"{pid:04}_c1s1_000000_00" for pid in range(1, 7)]
QUERY = ["0007_c1s1_000090_00", "0008_c2s1_000090_00"]
GALLERY = ["0007_c1s1_000000_00", "0009_c3s1_000001_00", "0000_c1s1_000005_00"]


def damage(cfg: Config, split: str, *names: str) -> list[str]:
    """Damage these images of a split, each in another way; returns their paths."""
    paths = [Path(cfg.data.data_root) / "demo" / FOLDERS[split] / f"{name}.jpg" for name in names]
    for number, path in enumerate(paths):
        data = path.read_bytes()
        path.unlink()
        way = number % 5
        if way == 0:
            path.write_bytes(data[: len(data) // 2])
        elif way == 1:
            path.write_bytes(b"<html>404 Not Found</html>")
        elif way == 2:
            path.write_bytes(b"")
        else:
            path.symlink_to("nowhere.jpg" if way == 3 else "/dev/null")
    return list(map(str, paths))


def all_of(cfg: Config, split: str, start: str) -> list[str]:
    return sorted(path.stem for path in (Path(cfg.data.data_root) / "demo" / FOLDERS[split]).glob(f"{start}*.jpg"))


def train(cfg: Config, *more: object):
    args = arguments(cfg, "epochs", "steps")
    return program("train.py", *args, "--epochs", "1", "--steps", "1", "--no-eval-first", *more)


def test_bad_images_of_all_splits_stop_a_run_before_it_begins(tiny):
    bad = damage(tiny, "gallery", *GALLERY) + damage(tiny, "query", *QUERY) + damage(tiny, "train", *TRAIN)
    shown = train(tiny)
    refused(shown, "6 of 36 train images", "--on-bad-image skip")
    assert all(path in shown.stderr for path in bad)  # all at once
    assert "3 of 25 gallery images" in shown.stderr and "2 of 12 query images" in shown.stderr
    assert not Path(tiny.run.log_dir).exists()


def test_a_run_goes_on_without_them_and_says_so(tiny):
    bad = damage(tiny, "train", *TRAIN[:3]) + damage(tiny, "query", *QUERY) + damage(tiny, "gallery", *GALLERY)
    shown = train(tiny, *SKIP)
    assert shown.returncode == 0, shown.stderr
    assert all(path in shown.stdout for path in bad)
    directory = Path(tiny.run.log_dir) / "demo"
    note = json.loads((directory / "results" / "train.json").read_text())["note"]
    for number, count, split in ((3, 36, "train"), (2, 12, "query"), (3, 25, "gallery")):
        assert f"{number} of {count} {split} images left out" in shown.stdout
        assert f"{number} unreadable {split} images left out" in note
    assert "not comparable with published scores" in note
    shown = program("test.py", directory / "last.pth", *SKIP)
    assert shown.returncode == 0, shown.stderr
    (result,) = (directory / "results").glob("test_last_*.json")
    note = json.loads(result.read_text())["note"]
    assert "3 unreadable train images" in note and "2 unreadable query images" in note
    refused(program("test.py", directory / "last.pth", "--on-bad-image", "refuse"), "2 of 12 query images")


@pytest.mark.parametrize("settings", [{}, {"disk_gb": 0}, {"disk_gb": 0, "cache_gb": 0}], ids=str)
def test_batches_hold_the_readable_images_with_their_labels(tiny, settings):
    damage(tiny, "train", *all_of(tiny, "train", "0003"), TRAIN[0])
    cfg = tiny.replace(on_bad_image="skip", flip_prob=0, pad=0, erase_prob=0, **settings)
    for _ in range(2):
        loaders = make_loaders(cfg)
        assert loaders.labels == {1: 0, 2: 1, 4: 2, 5: 3, 6: 4}
        assert [s.pid for s in loaders.train.samples] == [1] * 5 + [2] * 6 + [4] * 6 + [5] * 6 + [6] * 6
        assert loaders.dataset.train == loaders.train.samples
        pictures = {s.path: read_image(s.path, 32, 16) for s in loaders.train.samples}
        for indices in loaders.train.sampler.epoch(0):
            for index, picture in zip(indices, loaders.train.images.read(indices).numpy(), strict=True):
                assert np.array_equal(picture, pictures[loaders.train.samples[index].path])
        for images, labels in loaders.train.epoch(0, torch.device("cpu")):
            assert len(images) == len(labels) == 8 and max(labels.tolist()) <= 4


def test_what_is_left_may_be_too_little(tiny):
    damage(tiny, "train", *(name for pid in ("0001", "0002", "0003") for name in all_of(tiny, "train", pid)))
    refused(train(tiny, *SKIP), "needs 4 identities, the training set has 3", "--batch-size 6")
    damage(tiny, "train", *(name for pid in ("0004", "0005") for name in all_of(tiny, "train", pid)))
    refused(train(tiny, *SKIP), "identities")
    damage(tiny, "train", *all_of(tiny, "train", "0006"))
    refused(train(tiny, *SKIP), "the train split has no image that can be read")
    checkpoint = save_model(tiny)
    damage(tiny, "gallery", *(name for pid in range(7, 11) for name in all_of(tiny, "gallery", f"{pid:04}")))
    refused(program("test.py", checkpoint, *SKIP), "no query")  # all matches are gone
    damage(tiny, "query", *all_of(tiny, "query", "00"))
    refused(program("test.py", checkpoint, *SKIP), "the query split has no image that can be read")
