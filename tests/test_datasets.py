"""Datasets by name, several at once, cuts and held-out identities, and the loaders of their images."""

import re
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_tree
from helpers import fails

from datasets import ReIDDataset, Sample, make_dataset, make_loaders
from datasets.base import PID_OFFSET, check_test, check_train, label_map
from datasets.demo import demo, render
from datasets.demo.render import render_demo
from datasets.make import make_test_set
from datasets.subsets import last_identities, split_queries
from utils.errors import UserError

CPU = torch.device("cpu")


def pids(samples: list[Sample]) -> set[int]:
    return {s.pid for s in samples}


# ---- names


def test_a_name_that_is_no_dataset_is_an_error_that_names_the_nearest(tiny):
    for name, hint in (("market", "market1501"), ("msmt", "msmt17"), ("xyz", "the names are")):
        for dataset in (name, f"demo+{name}"):
            with pytest.raises(UserError, match=rf"^'{name}' is neither .*{hint}"):
                make_dataset(tiny.replace(dataset=dataset))


# ---- identities


def test_labels_follow_sorted_identities_not_file_order():
    assert label_map([Sample("b", 30, 1), Sample("a", 4, 1), Sample("c", 30, 2)]) == {4: 0, 30: 1}
    samples = [Sample("a", 30, 1), Sample("b", 4, 1), Sample("c", 100, 2), Sample("d", 30, 2)]
    assert [s.path for s in last_identities(samples, 2)] == ["a", "c", "d"]
    assert last_identities(samples, 9) == samples and last_identities(samples, 0) == []


def test_first_identities_cut_both_sides_and_last_ones_are_held_out(tiny):
    whole = make_dataset(tiny)
    assert whole.note == "" and whole.heldout == [] and "heldout" not in whole.describe()
    cut = make_dataset(tiny.replace(train_ids=3, test_ids=2))
    assert pids(cut.train) == {1, 2, 3} and pids(cut.query) == pids(cut.gallery) == {7, 8}
    assert "first 3 of 6" in cut.note and "first 2 of 4" in cut.note and cut.note.count("not comparable") == 1
    assert make_dataset(tiny.replace(train_ids=99)).note == ""
    held = make_dataset(tiny.replace(holdout_ids=2, train_ids=3))
    assert (pids(held.train), pids(held.heldout)) == ({1, 2, 3}, {5, 6}) and len(held.heldout) == 12
    assert "last 2 of 6" in held.note and "first 3 of 4" in held.note
    assert "heldout      12 images     2 identities   3 cameras" in held.describe()
    assert pids(make_dataset(tiny.replace(holdout_ids=2, train_ids=5)).train) == {1, 2, 3, 4}
    loaders = make_loaders(tiny.replace(holdout_ids=2))
    assert {loaders.dataset.train[i].pid for batch in loaders.train.sampler.epoch(0) for i in batch} == {1, 2, 3, 4}


def test_too_few_identities_on_a_side_are_refused(tiny):
    assert len(pids(make_dataset(tiny.replace(holdout_ids=4)).train)) == 2
    for count in (5, 6, 700):
        with pytest.raises(UserError, match=r"fewer than two identities .*--holdout-ids"):
            make_dataset(tiny.replace(holdout_ids=count))
    with pytest.raises(UserError, match="--train-ids"):
        make_dataset(tiny.replace(train_ids=1))
    people = [Sample("a", 1, 1), Sample("b", 2, 1)]
    with pytest.raises(UserError, match=r"no test split.*--test-dataset"):
        check_test(ReIDDataset("synthetic", train=people))
    with pytest.raises(UserError, match="no training images"):
        check_train(ReIDDataset("partial", query=people, gallery=people))
    with pytest.raises(UserError, match="fewer than two identities"):
        check_train(ReIDDataset("one", train=people[:1]))


def test_a_drawn_test_has_one_query_per_identity_and_camera_with_a_match():
    seen = {"c": (1, 1), "a": (1, 1), "b": (1, 1), "e": (1, 2), "d": (1, 2),  # queries a and d
            "f": (2, 1), "g": (2, 1), "h": (2, 3),  # f; h alone under its camera stays as its match
            "i": (3, 1), "j": (3, 1)}  # one camera only: distractors  # fmt: skip
    samples = [Sample(path, *ids) for path, ids in seen.items()]
    query, gallery = split_queries(samples, "synthetic", "")
    assert [s.path for s in query] == ["a", "d", "f"]
    assert [s.path for s in gallery] == ["b", "c", "e", "g", "h", "i", "j"]
    with pytest.raises(UserError, match="synthetic: none of 1 test identities"):
        split_queries([s for s in samples if s.pid == 3], "synthetic", "")


# ---- several datasets, and one to test on


def tree_of(root: Path, name: str, seed: int) -> str:
    """A tiny set of its own at root/name, as --dataset takes it: 6 training and 4 test identities."""
    return str(write_tree(root / name, images=2 + seed))


def test_joint_training_keeps_identities_and_cameras_apart_and_tests_on_the_first(tiny, tmp_path):
    first, second = tree_of(tmp_path, "one", 0), tree_of(tmp_path, "two", 1)
    joint = make_dataset(tiny.replace(dataset=f"{first}+{second}"))
    alone = make_dataset(tiny.replace(dataset=first))
    assert joint.name == "one+two" and len(joint.train) == 36 + 54
    assert pids(joint.train) == {*range(1, 7), *range(PID_OFFSET + 1, PID_OFFSET + 7)}
    assert {s.camid for s in joint.train} == {1, 2, 3, PID_OFFSET + 1, PID_OFFSET + 2, PID_OFFSET + 3}
    assert len(label_map(joint.train)) == 12 and label_map(joint.train)[PID_OFFSET + 1] == 6
    assert joint.query == alone.query and joint.gallery == alone.gallery
    cut = make_dataset(tiny.replace(dataset=f"{first}+{second}", holdout_ids=2, train_ids=7))
    assert pids(cut.heldout) == {PID_OFFSET + 5, PID_OFFSET + 6} and pids(cut.train) == {*range(1, 7), PID_OFFSET + 1}
    for names in (f"{first}+{first}/", f"{first}+", f"+{first}", "+"):
        with pytest.raises(UserError, match="--dataset"):
            make_dataset(tiny.replace(dataset=names))
    with pytest.raises(UserError, match="--test-dataset"):
        make_dataset(tiny.replace(test_dataset=f"{first}+{second}"))


def test_the_test_side_may_be_that_of_another_dataset(tiny, tmp_path):
    first, second = tree_of(tmp_path, "one", 0), tree_of(tmp_path, "two", 1)
    crossed = make_dataset(tiny.replace(dataset=first, test_dataset=second))
    assert crossed.name == "one, tested on two"
    assert {Path(s.path).parents[1].name for s in crossed.train} == {"one"}
    assert {Path(s.path).parents[1].name for s in crossed.query + crossed.gallery} == {"two"}
    alone = make_test_set(tiny.replace(dataset="gone", test_dataset=second, test_ids=2))
    assert alone.train == [] and pids(alone.query) == {7, 8} and "first 2 of 4" in alone.note


# ---- loaders


def test_loaders_give_labels_that_belong_to_the_images_from_any_step(tiny, tmp_path):
    joint = f"{tree_of(tmp_path, 'one', 0)}+{tree_of(tmp_path, 'two', 1)}"
    for cfg in (tiny, tiny.replace(dataset=joint)):
        loaders = make_loaders(cfg)
        for sample, label in zip(loaders.train.samples, loaders.train.labels.tolist(), strict=True):
            assert label == sample.pid - 1 if sample.pid < PID_OFFSET else sample.pid - PID_OFFSET + 5
        whole = list(loaders.train.epoch(2, CPU))
        for indices, (images, labels) in zip(loaders.train.sampler.epoch(2), whole, strict=True):
            assert images.shape == (8, 3, 32, 16) and images.dtype == torch.float32
            assert labels.tolist() == loaders.train.labels[indices].tolist()
        rest = list(make_loaders(cfg).train.epoch(2, CPU, first_step=2))
        for (a, x), (b, y) in zip(whole[2:], rest, strict=True):
            assert torch.equal(a, b) and torch.equal(x, y)


def test_the_test_loader_gives_every_image_once_in_order_also_in_parts(tiny):
    gallery = make_loaders(tiny).gallery
    batches = list(gallery.batches(CPU))
    assert sum(map(len, batches)) == len(gallery.samples) == 25 and len(batches) == len(gallery) == 2
    assert np.array_equal(gallery.pids, [s.pid for s in gallery.samples])
    parts = [gallery.part(i, 3) for i in range(3)]
    assert torch.equal(torch.cat([x for part in parts for x in part.batches(CPU)]), torch.cat(batches))
    assert [s for part in parts for s in part.samples] == gallery.samples


# ---- the rendered demo set


SMALL = {"train_ids": 2, "test_ids": 2, "distractors": 3, "junk": 2}


def contents(directory: Path) -> dict[Path, bytes]:
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def ids(directory: Path) -> list[tuple[int, int]]:
    """(pid, camera) of every image of a folder; fails on any other file name."""
    matches = [re.match(r"^(-?\d+)_c(\d)s\d_\d{6}_\d{2}\.jpg$", path.name) for path in directory.iterdir()]
    return [(int(match[1]), int(match[2])) for match in matches]


def test_the_rendered_set_depends_on_its_seed_alone_and_is_laid_out_like_market(tmp_path):
    render_demo(tmp_path / "demo", seed=3, **SMALL)
    np.random.seed(5)  # the global generator must not matter
    render_demo(tmp_path / "again", seed=3, **SMALL)
    render_demo(tmp_path / "other", seed=4, **SMALL)
    assert contents(tmp_path / "again") == contents(tmp_path / "demo")
    assert not set(contents(tmp_path / "other").values()) & set(contents(tmp_path / "demo").values())
    for path in (tmp_path / "demo").rglob("*.jpg"):
        assert cv2.imread(str(path)).shape == (128, 64, 3)
    folders = ("bounding_box_train", "query", "bounding_box_test")
    train, query, gallery = (ids(tmp_path / "demo" / folder) for folder in folders)
    trained, tested, cameras = {pid for pid, _ in train}, {pid for pid, _ in query}, defaultdict(set)
    assert len(trained) == len(tested) == 2 and not trained & tested and min(trained | tested) > 0
    assert {pid for pid, _ in gallery} == tested | {0, -1} and {c for _, c in train} <= set(range(1, 7))
    assert [[pid for pid, _ in gallery].count(pid) for pid in (0, -1)] == [3, 2]
    for pid, camera in gallery:
        cameras[pid].add(camera)
    assert len(set(query)) == len(query)  # one per person and camera, with a match under another camera
    assert all(cameras[pid] - {camera} and 3 <= len(cameras[pid]) <= 6 for pid, camera in query)


def test_a_failed_run_leaves_nothing_and_what_exists_is_not_overwritten(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    small = SMALL | {"train_ids": 1, "test_ids": 1}
    with pytest.raises(OSError):
        render_demo(tmp_path / "full", **small)
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and (tmp_path / "full" / "mine.txt").is_file()
    monkeypatch.setattr(render, "_write", fails(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        render_demo(tmp_path / "demo", **small)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_demo_set_is_rendered_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("datasets.demo.render_demo", lambda base: made.append(write_tree(base)))
    assert len(demo(tmp_path).train) == len(demo(tmp_path).train) == 36 and len(made) == 1
