"""The rendered demo set: layout, reproducibility, and what is (not) left behind when it fails."""

import hashlib
import re
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets.demo import render
from datasets.demo.render import render_demo

NAME = re.compile(r"^(-?\d+)_c(\d)s\d_\d{6}_\d{2}\.jpg$")
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
SMALL = {"train_ids": 4, "test_ids": 4, "distractors": 6, "junk": 4, "progress": False}


def _digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _ids(directory: Path) -> list[tuple[int, int]]:
    """(pid, camera) of every picture of a folder; fails on any other file name."""
    matches = [NAME.match(path.name) for path in sorted(directory.iterdir())]
    assert all(matches), [path.name for path in directory.iterdir() if not NAME.match(path.name)]
    return [(int(match[1]), int(match[2])) for match in matches if match]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("rendered") / "demo"
    render_demo(directory, seed=3, **SMALL)
    return directory


def test_same_seed_same_bytes_whatever_the_threads(demo, tmp_path):
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1 if threads > 1 else 2)
    np.random.seed(5)  # the global generator must not matter
    try:
        render_demo(tmp_path / "again", seed=3, **SMALL)
    finally:
        cv2.setNumThreads(threads)
    assert _digests(tmp_path / "again") == _digests(demo)


def test_another_seed_draws_other_pictures(demo, tmp_path):
    render_demo(tmp_path / "other", seed=4, **SMALL)
    assert not set(_digests(tmp_path / "other").values()) & set(_digests(demo).values())


def test_layout_names_and_sizes(demo):
    assert sorted(path.name for path in demo.iterdir()) == sorted(FOLDERS)
    for path in demo.rglob("*.jpg"):
        assert cv2.imread(str(path)).shape == (128, 64, 3)
    for folder in FOLDERS:
        assert {camera for _, camera in _ids(demo / folder)} <= set(range(1, 7))


def test_train_and_test_identities_are_disjoint(demo):
    train = {pid for pid, _ in _ids(demo / "bounding_box_train")}
    test = {pid for pid, _ in _ids(demo / "query")}
    gallery = {pid for pid, _ in _ids(demo / "bounding_box_test")}
    assert len(train) == SMALL["train_ids"] and len(test) == SMALL["test_ids"]
    assert not train & test and min(train | test) > 0
    assert gallery == test | {0, -1}


def test_every_query_can_be_found_by_another_camera(demo):
    cameras, queries = defaultdict(set), _ids(demo / "query")
    for pid, camera in _ids(demo / "bounding_box_test"):
        cameras[pid].add(camera)
    assert len(set(queries)) == len(queries)  # one a person and camera
    assert all(cameras[pid] - {camera} for pid, camera in queries)
    assert all(3 <= len(cameras[pid]) <= 6 for pid, _ in queries)


def test_distractors_and_junk_are_in_the_gallery_only(demo):
    pids = [pid for pid, _ in _ids(demo / "bounding_box_test")]
    assert pids.count(0) == SMALL["distractors"] and pids.count(-1) == SMALL["junk"]


def test_a_failed_run_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def fail(path, picture):
        written.append(path)
        if len(written) > 5:
            raise OSError("disk full")

    monkeypatch.setattr(render, "_write", fail)
    with pytest.raises(OSError, match="disk full"):
        render_demo(tmp_path / "demo", **SMALL)
    assert len(written) > 5 and not list(tmp_path.iterdir())


def test_refuses_to_overwrite_but_takes_an_empty_directory(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        render_demo(tmp_path / "full", **SMALL)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    (tmp_path / "empty").mkdir()
    render_demo(tmp_path / "empty", train_ids=1, test_ids=1, distractors=0, junk=0, progress=False)
    assert len(list((tmp_path / "empty" / "query").iterdir())) >= 3
