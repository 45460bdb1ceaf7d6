"""Odd input that users really have: it comes out right, or it is said what is wrong."""

import csv
import shutil
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import done, program

from config import Config
from datasets.base import ONE_IDENTITY, ReIDDataset, Sample
from datasets.copies import count_shared, ignore_own_pictures
from datasets.depth import find_pixel_range
from datasets.images import decode, read_image
from datasets.make import make_dataset, make_test_set
from datasets.sampler import PKSampler
from utils.errors import UserError


def draw(path: Path, pid: int, shot: int, camera: int = 0) -> Path:
    """A 32x16 picture whose colours are those of the person."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.random.default_rng(pid + 9).integers(30, 220, (4, 1, 3)).repeat(8, 0)
    noise = np.random.default_rng([pid + 9, shot, camera]).normal(8 * camera, 12, (32, 16, 3))
    cv2.imwrite(str(path), np.clip(colour + noise, 0, 255).astype(np.uint8))
    return path


def people(base: Path, pids, shots: int = 3, name: str = "{pid:03}/{shot}.png", camera: int = 0) -> Path:
    for pid in pids:
        for shot in range(shots):
            draw(base / name.format(pid=pid, shot=shot), pid, shot, camera)
    return base


def test_side(path: Path, **settings) -> ReIDDataset:
    return make_test_set(Config(dataset=str(path), **settings))


test_side.__test__ = False


def scores(path: Path, tmp_path: Path, *more: object) -> str:
    """The row of plain features of an untrained network, and what else is printed."""
    settings = ("--backbone", "resnet18", "--weights", "none", "--height", 32, "--width", 16, "--workers", 2)
    places = ("--log-dir", tmp_path / "log", "--data-root", tmp_path, "--device", "cpu", "--dataset", path)
    shown = done("test.py", *settings, *places, *more)
    return shown


def row(shown: str) -> str:
    return next(line for line in shown.splitlines() if line.startswith("plain"))


# ---- junk and distractors


@pytest.mark.parametrize("kind", ["folders", "csv", "market"])
def test_junk_is_dropped_and_distractors_are_gallery_only_whatever_they_are_read_from(tmp_path, caplog, kind):
    rows, base = [], tmp_path / "set"
    labels = [("train", "-1"), ("train", "0"), *(("train", str(pid)) for pid in (11, 12))]
    labels += [("query", pid) for pid in ("1", "2", "0")] + [("gallery", pid) for pid in ("1", "2", "0", "-1")]
    places = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    for split, label in labels:
        camera = 1 + (split == "gallery")
        for shot in range(2):
            pid = label if kind == "folders" else "-1" if label == "-1" else f"{int(label):04}"
            name = f"{pid}_c{camera}s1_{shot}.png"
            place = {"folders": f"{split}/{pid}", "csv": split, "market": places[split]}[kind]
            draw(base / place / name, int(label), shot, camera)
            rows.append([f"{place}/{name}", f"{label}.0" if shot else label, camera, split])
    if kind == "csv":  # pandas writes -1.0 in a column with gaps
        with open(base / "all.csv", "w", newline="") as file:
            csv.writer(file).writerows([["path", "pid", "camid", "split"], *rows])
    with caplog.at_level("INFO", logger="plainreid"):
        dataset = make_dataset(Config(dataset=str(base / "all.csv" if kind == "csv" else base)))
    found = {split: sorted(s.pid for s in getattr(dataset, split)) for split in places}
    assert found == {"train": [11, 11, 12, 12], "query": [1, 1, 2, 2], "gallery": [0, 0, 1, 1, 2, 2]}
    said = [r.getMessage() for r in caplog.records]
    assert sum("2 images of pid -1" in words for words in said) == 2 and sum("of pid 0" in words for words in said) == 2


def test_without_a_split_distractors_are_tested_on_and_never_trained_on(tmp_path):
    base = people(tmp_path / "set", range(1, 7))
    people(base, [50], name="0/{shot}.png")
    people(base, [51], name="-01/{shot}.png")
    dataset = make_dataset(Config(dataset=str(base)))
    assert {s.pid for s in dataset.train + dataset.query} == set(range(1, 7))
    assert [s.pid for s in dataset.gallery].count(0) == 3
    everything = make_dataset(Config(dataset=str(base), test_dataset=str(people(tmp_path / "test", range(1, 5)))))
    assert {s.pid for s in everything.train} == set(range(1, 7))


# ---- a query's own file


def test_a_query_never_matches_its_own_file(tmp_path):
    base = people(tmp_path / "set", range(1, 6), name="gallery/{pid}/{shot}.png")
    clean = tmp_path / "clean"
    for pid in range(1, 6):
        query = base / "query" / str(pid) / "q.png"
        query.parent.mkdir(parents=True)
        first = base / "gallery" / str(pid) / "0.png"
        query.symlink_to(first) if pid == 1 else shutil.copy(first, query)
    shutil.copytree(base, clean)
    for first in clean.glob("gallery/*/0.png"):
        first.unlink()
    shown = scores(base, tmp_path, "--rerank")
    assert row(shown) == row(scores(clean, tmp_path)) and "5 of 15 gallery images are copies" in shown
    checked = program("tools/check_dataset.py", base, "--output", tmp_path / "sheet.png")
    assert checked.returncode == 1 and "5 gallery images that are copies of queries" in checked.stdout
    shutil.copy(base / "query" / "2" / "q.png", base / "gallery" / "3" / "wrong.png")  # of another identity
    assert len(test_side(base).gallery) == 10


def test_where_queries_are_the_gallery_each_is_ignored_for_itself_alone(tmp_path):
    base = people(tmp_path / "set", range(1, 4), name="query/{pid}/{shot}.png")
    shutil.copytree(base / "query", base / "gallery")
    dataset = test_side(base)
    assert len(dataset.gallery) == len(dataset.query) == 9
    for q in dataset.query:
        ignored = [Path(g.path).name for g in dataset.gallery if (g.pid, g.camid) == (q.pid, q.camid)]
        assert ignored == [Path(q.path).name]
    known = ReIDDataset(
        "", query=[Sample(dataset.query[0].path, 1, 4)], gallery=[Sample(dataset.gallery[0].path, 1, 4)]
    )
    assert ignore_own_pictures(known) is known  # the protocol ignores it


def test_test_images_that_are_trained_on_are_found_however_they_are_written(tmp_path, monkeypatch):
    base = people(tmp_path / "set", range(1, 6))
    (tmp_path / "link").symlink_to(base)
    monkeypatch.chdir(tmp_path)
    cfg = Config(dataset="set", test_dataset=str(tmp_path / "link" / ".." / "copy"))
    people(tmp_path / "copy", range(1, 6))
    assert "also trained on" not in make_dataset(cfg).test_note.split("copies")[0]
    files = [Sample(f"set/00{pid}/0.png", pid, 1) for pid in range(1, 4)]
    assert count_shared(files, [s._replace(path=str(tmp_path / "link" / s.path[4:])) for s in files]) == 3


# ---- layouts


def test_a_validation_split_is_the_test_side_where_there_is_no_other(tmp_path, caplog):
    for name in ("val", "Valid", "validation"):
        base = people(tmp_path / name, range(1, 4), name="train/{pid}/{shot}.png")
        people(base, range(7, 9), name=name + "/{pid}/{shot}.png")
        with caplog.at_level("INFO", logger="plainreid"):
            dataset = make_dataset(Config(dataset=str(base)))
        assert {s.pid for s in dataset.query} == {7, 8} and f"{name.lower()} is the test side" in caplog.text
    people(base, [9], name="test/{pid}/{shot}.png")
    with pytest.warns(UserWarning, match="validation next to train, test is left out"):
        assert {s.pid for s in make_dataset(Config(dataset=str(base))).query} == {9}
    lines = [
        f"{p.relative_to(tmp_path)},{p.parent.name},{p.parents[1].name}" for p in sorted(tmp_path.glob("val/*/*/*"))
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,pid,split", *lines]))
    assert {s.pid for s in make_dataset(Config(dataset=str(tmp_path / "list.csv"))).query} == {7, 8}


def test_folders_of_cameras_are_recognised_and_folders_of_places_asked_about(tmp_path):
    for number, camera in enumerate(("door", "yard", "hall")):
        people(tmp_path / "cameras" / camera, range(1, 9), camera=number)
        people(tmp_path / "usual", range(1, 9), name="{pid:03}/" + camera + "/{shot}.png", camera=number)
        people(tmp_path / "places" / camera, range(10 * number, 10 * number + 5))
    right = test_side(tmp_path / "usual", test_share=1.0)
    found = test_side(tmp_path / "cameras", test_share=1.0)
    assert {s.pid for s in found.gallery} == set(range(1, 9)) and found.camera_names == right.camera_names
    assert set(found.camera_names.values()) == {"door", "yard", "hall"}
    with pytest.raises(UserError, match=r"door/000.*--folders identity_camera.*--folders site_identity"):
        test_side(tmp_path / "places")
    sites = test_side(tmp_path / "places", test_share=1.0, folders="site_identity")
    assert len({s.pid for s in sites.query}) == 15 and "door/001" in sites.names.values()
    shown = scores(tmp_path / "usual", tmp_path, "--by-camera")
    assert all(name in shown.splitlines()[-5] for name in ("door", "hall", "yard")), shown


def test_pictures_that_a_reader_leaves_out_are_counted_and_one_is_named(tmp_path):
    for folder, pids in (("bounding_box_train", (1, 2)), ("query", (3, 4)), ("bounding_box_test", (3, 4))):
        people(tmp_path / "set" / folder, pids, name="{pid:04}_c" + str(1 + (folder[-1] == "t")) + "s1_{shot}.png")
    draw(tmp_path / "set" / "bounding_box_train" / "p005_c1s1_0.png", 5, 0)
    draw(tmp_path / "set" / "bounding_box_train" / "more" / "0006_c1s1_0.png", 6, 0)
    for shown in (scores(tmp_path / "set", tmp_path), check(tmp_path)):
        assert "2 images are left out" in shown and "0006_c1s1_0.png" in shown


def check(tmp_path: Path) -> str:
    shown = program("tools/check_dataset.py", tmp_path / "set", "--output", tmp_path / "sheet.png")
    assert shown.returncode == 1
    return shown.stdout


def test_one_identity_and_one_camera_are_said(tmp_path):
    base = people(tmp_path / "one", range(1, 2), name="test/{pid}/{shot}.png")
    assert ONE_IDENTITY in test_side(base).note
    base = people(tmp_path / "camera", range(1, 5), name="{pid}/a_c1_{shot}.png")
    with pytest.raises(UserError, match="--camera-pattern none"):
        test_side(base)
    assert len(test_side(base, camera_pattern="none", test_share=1.0).query) == 4


# ---- batches


def test_an_epoch_is_not_cut_to_what_the_rarest_identities_have():
    pids = np.repeat(np.arange(12), [60] * 10 + [2] * 2)
    with pytest.raises(UserError, match="try --batch-size 40"):
        PKSampler(pids, 64, 4)
    with pytest.warns(UserWarning, match=r"48 of 604 .*8%"):
        sampler = PKSampler(pids, 48, 4)
    assert 48 * len(sampler) >= 0.9 * len(pids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(PKSampler(pids, 40, 4)) == 15
    with pytest.warns(UserWarning, match=r"16 of 36 training images \(44%\)"):
        PKSampler(np.repeat(np.arange(6), 6), 16, 4)


# ---- more than 8 bits


def test_deep_pictures_are_scaled_by_one_range_for_the_whole_set(tmp_path):
    base = tmp_path / "set"
    for pid in range(1, 5):
        for shot in range(3):
            flat = draw(base / f"{pid}" / f"{shot}.png", pid, shot)
            gray = cv2.imread(str(flat), cv2.IMREAD_GRAYSCALE).astype(np.float32)
            deep = (7000 + gray * 4).astype(np.uint16)
            if (pid, shot) == (1, 1):
                deep[3, 4] = 65535  # a broken pixel
            flat.unlink()
            cv2.imwrite(str(flat.with_suffix(".png" if pid % 2 else ".tif")), deep)
    paths = sorted(map(str, base.rglob("*.*")))
    low, high = find_pixel_range(paths)
    assert 6700 < low < 7300 and 7600 < high < 8500
    images = [read_image(path, 32, 16, (7000, 8020)) for path in paths]
    assert np.std([image.mean() for image in images]) > 5  # not each by its own range
    assert decode(paths[0]).dtype == np.uint8 and find_pixel_range([str(draw(tmp_path / "8.png", 1, 1))]) == (0, 0)
    shown = scores(base, tmp_path, "--test-share", 1)
    assert "more than 8 bits" in shown
