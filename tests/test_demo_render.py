"""The rendered demo set: the same bytes for a seed, its layout, and nothing left behind when it fails."""

import hashlib
import re
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_tree

from datasets.demo import demo, render
from datasets.demo.render import render_demo

NAME = re.compile(r"^(-?\d+)_c(\d)s\d_\d{6}_\d{2}\.jpg$")
SMALL = {"train_ids": 2, "test_ids": 2, "distractors": 3, "junk": 2}


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ids(directory: Path) -> list[tuple[int, int]]:
    """(pid, camera) of every image of a folder; fails on any other file name."""
    matches = [NAME.match(path.name) for path in sorted(directory.iterdir())]
    assert all(matches), sorted(path.name for path in directory.iterdir())
    return [(int(match[1]), int(match[2])) for match in matches]


def test_the_rendered_set_depends_on_its_seed_alone_and_is_laid_out_like_market(tmp_path):
    render_demo(tmp_path / "demo", seed=3, **SMALL)
    np.random.seed(5)  # the global generator must not matter
    render_demo(tmp_path / "again", seed=3, **SMALL)
    render_demo(tmp_path / "other", seed=4, **SMALL)
    assert digests(tmp_path / "again") == digests(tmp_path / "demo")
    assert not set(digests(tmp_path / "other").values()) & set(digests(tmp_path / "demo").values())
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

    def fail(*_args):
        raise OSError("disk full")

    monkeypatch.setattr(render, "_write", fail)
    with pytest.raises(OSError, match="disk full"):
        render_demo(tmp_path / "demo", **small)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_the_demo_set_is_rendered_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("datasets.demo.render_demo", lambda base: made.append(write_tree(base)))
    assert len(demo(tmp_path).train) == len(demo(tmp_path).train) == 36 and len(made) == 1
