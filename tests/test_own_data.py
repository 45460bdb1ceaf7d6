"""Own pictures: Market-1501's layout, folders of identities, CSV files, and the split that is drawn."""

import os
import random
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_tree

from config import Config, load_preset
from config.cli import parse_train
from datasets import make_dataset
from datasets.base import ReIDDataset, Sample
from datasets.own import NO_CAMERAS, own, to_numbers
from utils.errors import UserError


def touch(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"")
    return base


def read(path: Path, share: float = 0.5, seed: int = 0, pattern: str = r"_c(\d+)") -> ReIDDataset:
    return own(str(path), share, seed, pattern)


def listed(samples: list[Sample], base: Path) -> list[tuple[str, int, int]]:
    """Path below `base`, pid and camid of each, all of them plain Python's."""
    assert all([type(x) for x in s] == [str, int, int] for s in samples)
    return [(os.path.relpath(s.path, base), s.pid, s.camid) for s in samples]


def refused(path: Path, *words: str, **settings) -> None:
    """Refused with one sentence that holds the words."""
    with pytest.raises(UserError) as error:
        read(path, **settings)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)


def test_words_are_numbered_in_order_and_whole_numbers_keep_theirs():
    for words, expected in [
        (["10", "9", "2"], {"10": 10, "9": 9, "2": 2}),
        (["0010", "9"], {"0010": 10, "9": 9}),
        (["10", "9", "0"], {"0": 1, "9": 2, "10": 3}),
        (["007", "7", "x"], {"007": 1, "7": 1, "x": 2}),
        (["车", "é", "Z", "1.5"], {"1.5": 1, "Z": 2, "é": 3, "车": 4}),
    ]:
        assert to_numbers(words) == to_numbers(reversed(words)) == expected


# ---- folders


def test_one_folder_per_identity_without_cameras_counts_each_image_as_its_own_camera(tmp_path, monkeypatch):
    base = touch(tmp_path / "my.cats", "BOB/2.jpg", "BOB/1.PNG", "ALICE/b.jpeg", "ALICE/a.jpg", "ZOE/only.webp")
    dataset = read(base, share=1)
    assert dataset.protocol == "standard" and dataset.train == []
    assert listed(dataset.query, base) == [("ALICE/a.jpg", 1, 1), ("BOB/1.PNG", 2, 3)]
    assert listed(dataset.gallery, base) == [("ALICE/b.jpeg", 1, 2), ("BOB/2.jpg", 2, 4), ("ZOE/only.webp", 3, 5)]
    assert NO_CAMERAS in dataset.test_note and "not comparable" in dataset.note
    assert "own split by identity (seed 0), 3 of 3 identities for the test" in dataset.test_note
    everything = read(base, share=0)
    assert [s.camid for s in everything.train] == [1, 2, 3, 4, 5] and everything.note == ""
    monkeypatch.chdir(base)
    for way in (base, f"{base}/", ".", "../my.cats", "ALICE/.."):
        assert read(way, share=0).name == "my.cats"


def test_cameras_come_from_folders_or_from_all_file_names(tmp_path):
    base = touch(tmp_path / "p", "A/door/1.jpg", "A/door/2.jpg", "A/yard/3.jpg", "B/yard/4_c9.jpg", "B/yard/5.jpg")
    dataset = read(base, share=1)
    assert listed(dataset.query, base) == [("A/door/1.jpg", 1, 1)]
    assert [(s.pid, s.camid) for s in dataset.gallery] == [(1, 1), (1, 2), (2, 2), (2, 2)]
    assert NO_CAMERAS not in dataset.test_note
    base = touch(tmp_path / "set_c7", "5/x_c3_1.jpg", "5/x_c3_2.jpg", "5/x_c12_1.jpg", "8/y_c3.jpg")
    assert [s.camid for s in read(base, share=0).train] == [12, 3, 3, 3]
    touch(base, "8/y.jpg")  # one without
    with pytest.warns(UserWarning, match=r"8/y\.jpg"):
        dataset = read(base, share=1)
    assert len({s.camid for s in dataset.query + dataset.gallery}) == 5 and NO_CAMERAS in dataset.test_note
    for pattern in ("_c(", r"_c\d+", ""):
        refused(base, "--camera-pattern", pattern=pattern)


def test_links_are_followed_but_never_in_circles_and_names_may_be_of_any_script(tmp_path):
    decomposed = unicodedata.normalize("NFD", "José")
    base = touch(tmp_path / "фото 人", "A/cam/1.jpg", f"{decomposed}/дом/图 1.jpg")
    touch(tmp_path / "elsewhere", "cam/3.jpg")
    (base / "B").symlink_to(tmp_path / "elsewhere")
    loops = {"back": base, "A/up": base, "A/self": base / "A", "A/cam/top": tmp_path, "B/b": base / "B"}
    for loop, target in loops.items():
        (base / loop).symlink_to(target)
    (base / "A" / "cam" / "itself").symlink_to(base / "A" / "cam" / "itself")
    dataset = read(base, share=0)
    assert [name for name, *_ in listed(dataset.train, base)] == [
        "A/cam/1.jpg",
        "B/cam/3.jpg",
        f"{decomposed}/дом/图 1.jpg",
    ]
    assert dataset.name == "фото 人" and dataset.name_of(3) == decomposed


def test_folders_that_do_not_fit_are_refused(tmp_path):
    for number, names in enumerate((["1.jpg", "2.jpg"], ["notes.txt"], ["A/notes.txt"])):
        refused(touch(tmp_path / f"p{number}", *names), "ALICE/1.jpg", "CSV", "path,pid,camid")
    refused(touch(tmp_path / "deep", "A/cam/monday/1.jpg", "A/cam/2.jpg"), "A/cam/monday/1.jpg lies too deep")
    refused(touch(tmp_path / "mixed", "A/cam/1.jpg", "A/2.jpg"), "A/2.jpg", "A/cam/1.jpg")
    refused(touch(tmp_path / "a", "train/A/1.jpg", "query/B/2.jpg"), "query but no gallery")
    refused(touch(tmp_path / "d", "train/1.jpg", "test/A/2.jpg"), "d/train has no folder")


def test_folders_with_a_split_are_used_as_given(tmp_path):
    base = touch(tmp_path / "p", "train/A/1_c1.jpg", "train/B/2_c2.jpg", "query/C/3_c1.jpg", "gallery/C/4_c2.jpg")
    dataset = read(base)
    assert listed(dataset.train, base) == [("train/A/1_c1.jpg", 1, 1), ("train/B/2_c2.jpg", 2, 2)]
    assert listed(dataset.query, base) == [("query/C/3_c1.jpg", 3, 1)]
    assert listed(dataset.gallery, base) == [("gallery/C/4_c2.jpg", 3, 2)] and dataset.note == ""
    base = touch(
        tmp_path / "t", "train/1/c1/a.jpg", "Test/7/c1/b.jpg", "Test/7/c1/c.jpg", "Test/7/c2/d.jpg", "val/8/e.jpg"
    )
    with pytest.warns(UserWarning, match="val next to train, test"):
        dataset = read(base)
    assert listed(dataset.query, base) == [("Test/7/c1/b.jpg", 7, 1)] and len(dataset.gallery) == 2
    base = touch(tmp_path / "s", "train/A/1_c1.jpg", "test/A/2_c1.jpg", "test/A/3_c2.jpg", "test/B/4_c1.jpg")
    assert read(base).test_note == "1 of 2 test identities are also trained on"


# ---- CSV files

ROWS = [
    "pictures/a.jpg,ALICE,door,train",
    "pictures/b.jpg,BOB,yard,train",
    "pictures/c.jpg,CARL,door,query",
    "pictures/d.jpg,CARL,yard,gallery",
]


def sheet(base: Path, *lines: str, images: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    touch(base, *(f"pictures/{image}.jpg" for image in images))
    (base / "my list.csv").write_bytes("\n".join(lines).encode())
    return base / "my list.csv"


def test_a_csv_is_read_whatever_program_wrote_it(tmp_path):
    path = sheet(tmp_path)
    for mark in ("", "\ufeff"):
        for end in ("\n", "\r\n", "\r\n\r\n", "\n  \n"):
            for delimiter in (",", ";", "\t", " , "):
                text = end.join(["Path,PID,camid,split", *ROWS, ""]).replace(",", delimiter)
                path.write_bytes((mark + text).encode())
                dataset = read(path)
                assert dataset.name == "my list" and dataset.note == ""
                assert listed(dataset.train, tmp_path) == [("pictures/a.jpg", 1, 1), ("pictures/b.jpg", 2, 2)]
                assert listed(dataset.query, tmp_path) == [("pictures/c.jpg", 3, 1)]
                assert listed(dataset.gallery, tmp_path) == [("pictures/d.jpg", 3, 2)]


def test_bad_csv_files_are_refused_by_line(tmp_path):
    for lines, words in [
        (["pictures/a.jpg,1", "pictures/b.jpg,2"], ["path,pid,camid,split"]),
        (["path,pid", "pictures/a.jpg,", ""], ["line 2", "pid is empty"]),
        (["path,pid", "pictures/a.jpg,1", "pictures/b.jpg"], ["line 3", "columns"]),
        (["path,pid,split", "pictures/a.jpg,1,train", "pictures/b.jpg,2,holdout"], ["line 3", "'holdout'", "gallery"]),
        (["path,pid,camid", "pictures/a.jpg,1,", "pictures/b.jpg,2,4"], ["line 2", "camera is empty"]),
        (["path,pid,split", "pictures/a.jpg,1,query"], ["query but no gallery"]),
        (["path,pid", "a.jpg,1"], ["exists", "/a.jpg", "relative to the CSV's folder"]),
        (["path,pid", "pictures/a.jpg,1", "./pictures/a.jpg,2"], ["line 3", "on line 2"]),
    ]:
        refused(sheet(tmp_path, *lines), "my list.csv" if "query" not in words[0] else "", *words)
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "x.csv").write_bytes("path,pid\nJosé.jpg,1\n".encode(encoding))
        refused(tmp_path / "x.csv", "x.csv cannot be read", "UTF-8")
    refused(tmp_path / "nowhere.csv", "nowhere.csv cannot be read")


# ---- the split that is drawn


def people(base: Path, count: int = 7) -> Path:
    """Identities of one to four images; some of them under two cameras."""
    rng = random.Random(count)
    return touch(base, *(f"P{i}/{i}_{k}_c{1 + k // 2}.jpg" for i in range(count) for k in range(rng.choice((1, 3, 4)))))


def test_no_one_is_on_both_sides_and_no_image_is_lost(tmp_path):
    base = people(tmp_path / "p", 12)
    for share in (0.3, 0.5, 0.9, 1.0):
        for seed in (0, 1, 7):
            dataset = read(base, share, seed)
            test = dataset.query + dataset.gallery
            assert not {s.pid for s in dataset.train} & {s.pid for s in test}
            assert sorted(s.path for s in dataset.train + test) == sorted(map(str, base.rglob("*.jpg")))
            for q in dataset.query:
                assert any(g.pid == q.pid and g.camid != q.camid for g in dataset.gallery)
            tested = len({s.pid for s in test})
            assert f"own split by identity (seed {seed}), {tested} of 12 identities" in dataset.test_note


def test_the_split_does_not_depend_on_the_order_of_files_or_lines(tmp_path, monkeypatch):
    base, listdir = people(tmp_path / "p"), os.listdir
    expected = read(base)
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    assert read(base) == expected
    lines = [f"p/{p.relative_to(base)},{p.parent.name}" for p in base.rglob("*.jpg")]
    for seed in range(3):
        random.Random(seed).shuffle(lines)
        (tmp_path / "a.csv").write_text("\n".join(["path,pid", *lines]))
        found = read(tmp_path / "a.csv")
        assert (found.train, found.query, found.gallery) == (expected.train, expected.query, expected.gallery)


def test_splits_that_cannot_be_drawn_are_refused(tmp_path):
    base = touch(tmp_path / "p", *(f"P{i}/{k}.jpg" for i in range(2) for k in range(3)))
    refused(base, "2 identities", "three or more", "--test-share 0")
    assert len(read(base, share=0).train) == 6 and len(read(base, share=1).query) == 2
    for share in (-0.1, 1.5, float("nan")):
        refused(base, "--test-share", share=share)
    refused(touch(tmp_path / "a", "A/1.jpg", "B/2.jpg"), "none of 2 test identities", "--test-share 0", share=1)
    refused(touch(tmp_path / "b", "A/cam/1.jpg", "A/cam/2.jpg"), "none of 1 test identities", "two cameras", share=1)


def test_the_settings_reach_own_pictures(tmp_path):
    for image in sorted((write_tree(tmp_path / "market") / "bounding_box_train").iterdir()):
        touch(tmp_path / "mine", f"{image.name[:4]}/{image.name}")
    mine = str(tmp_path / "mine")
    dataset = make_dataset(Config(dataset=mine, test_share=0.34, camera_pattern=r"_c(\d+)s"))
    assert len({s.pid for s in dataset.train}) == 4 and len(dataset.train) == 24 and len(dataset.query) == 6
    assert {s.camid for s in dataset.gallery} == {1, 2, 3} and "2 of 6 identities" in dataset.note
    for share, words in ((0.0, "no test split"), (1.0, "no training images")):
        with pytest.raises(UserError, match=words):
            make_dataset(Config(dataset=mine, test_share=share))


# ---- the default preset


def test_without_a_preset_settings_fit_the_machine_and_the_shape_of_the_pictures(tmp_path, monkeypatch):
    for shape, size in (((40, 20), (128, 64)), ((30, 21), (128, 96)), ((30, 32), (128, 128)), ((20, 45), (64, 128))):
        base = tmp_path / f"{shape}"
        for person in range(8):
            (base / f"{person}").mkdir(parents=True)
            for shot in range(4):
                cv2.imwrite(str(base / f"{person}" / f"{shot}.png"), np.zeros((*shape, 3), np.uint8))
        (base / "1" / "0.png").write_bytes(b"broken")  # reported where all images are read
        args = ["--dataset", str(base), "--test-share", "0.3"]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        cfg = parse_train(args, {"REID_DATA": "there"})
        people = len({s.pid for s in make_dataset(cfg).train})
        assert (cfg.data.height, cfg.data.width) == size and cfg.data.batch_size == 4 * (people // 2)
        assert cfg.model.backbone == "mobilenet_v2" and cfg.data.data_root == "there" and cfg.run.preset == ""
        assert "no GPU" in cfg.run.preset_note and cfg.solver.epochs == 60
        typed = parse_train([*args, "--width", "32", "--backbone", "resnet18", "--epochs", "7", "--pad", "0"], {})
        assert (typed.data.height, typed.data.width, typed.solver.epochs) == (size[0], 32, 7)
        assert (typed.model.backbone, typed.augment.pad, typed.solver.warmup_epochs) == ("resnet18", 0, 0.7)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        full = parse_train(args, {})
        assert (full.data.height, full.data.width) == (2 * size[0], 2 * size[1])
        assert (full.model.backbone, full.solver.epochs) == ("resnet50", 120) and "no GPU" not in full.run.preset_note
        assert parse_train([*args, "--device", "cpu"], {}).model.backbone == "mobilenet_v2"
        assert parse_train(["tiny_b1", *args], {}) == load_preset("tiny_b1").replace(dataset=str(base), test_share=0.3)
    assert parse_train(["--dataset", "market1501"], {}) == load_preset("demo").replace(dataset="market1501")
