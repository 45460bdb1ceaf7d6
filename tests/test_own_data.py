"""Own pictures: folders of identities, CSV files, the split that is drawn, and odd input that users really have."""

import csv
import os
import random
import shutil
import unicodedata
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import draw
from helpers import done, program

from config import Config, load_preset
from config.cli import parse_train
from datasets.base import ONE_IDENTITY, ReIDDataset, Sample
from datasets.copies import count_shared, ignore_own_pictures
from datasets.depth import find_pixel_range
from datasets.images import decode, read_image
from datasets.make import make_dataset, make_test_set
from datasets.own import NO_CAMERAS, own, to_numbers
from datasets.sampler import PKSampler
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
    for loop, target in {**loops, "C": tmp_path / "elsewhere"}.items():  # C: a second link to one folder
        (base / loop).symlink_to(target)
    (base / "A" / "cam" / "itself").symlink_to(base / "A" / "cam" / "itself")
    dataset = read(base, share=0)
    found = [name for name, *_ in listed(dataset.train, base)]
    assert found == ["A/cam/1.jpg", "B/cam/3.jpg", f"{decomposed}/дом/图 1.jpg"]
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
    names = ("train/1/c1/a.jpg", "Test/7/c1/b.jpg", "Test/7/c1/c.jpg", "Test/7/c2/d.jpg", "val/8/e.jpg")
    base = touch(tmp_path / "t", *names)
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
        (["path,pid", "a.jpg,1"], ["exists", "/a.jpg", "relative to the CSV's folder"]),
        (["path,pid", "pictures/a.jpg,1", "./pictures/a.jpg,2"], ["line 3", "on line 2"]),
    ]:
        refused(sheet(tmp_path, *lines), "my list.csv", *words)
    (tmp_path / "x.csv").write_bytes("path,pid\nJosé.jpg,1\n".encode("latin-1"))
    refused(tmp_path / "x.csv", "x.csv cannot be read", "UTF-8")
    refused(tmp_path / "nowhere.csv", "nowhere.csv cannot be read")


# ---- the split that is drawn


def several(base: Path, count: int = 7) -> Path:
    """Identities of one to four images; some of them under two cameras."""
    rng = random.Random(count)
    return touch(base, *(f"P{i}/{i}_{k}_c{1 + k // 2}.jpg" for i in range(count) for k in range(rng.choice((1, 3, 4)))))


def test_no_one_is_on_both_sides_and_no_image_is_lost(tmp_path):
    base = several(tmp_path / "p", 12)
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
    base, listdir = several(tmp_path / "p"), os.listdir
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
    for share, words in ((0.0, "no test split"), (1.0, "no training images")):
        with pytest.raises(UserError, match=words):
            make_dataset(Config(dataset=str(base), test_share=share))
    for share in (-0.1, 1.5, float("nan")):
        refused(base, "--test-share", share=share)
    refused(touch(tmp_path / "a", "A/1.jpg", "B/2.jpg"), "none of 2 test identities", "--test-share 0", share=1)
    refused(touch(tmp_path / "b", "A/cam/1.jpg", "A/cam/2.jpg"), "none of 1 test identities", "two cameras", share=1)


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


# ---- odd input that users really have: it comes out right, or it is said what is wrong


def people(base: Path, pids, shots: int = 3, name: str = "{pid:03}/{shot}.png", camera: int = 0) -> Path:
    for pid in pids:
        for shot in range(shots):
            draw(base / name.format(pid=pid, shot=shot), pid, shot, camera)
    return base


def test_side(path: Path, **settings) -> ReIDDataset:
    return make_test_set(Config(dataset=str(path), **settings))


test_side.__test__ = False


# ---- junk and distractors


@pytest.mark.parametrize("kind", ["folders", "csv"])
def test_junk_is_dropped_and_distractors_are_gallery_only_whatever_they_are_read_from(tmp_path, caplog, kind):
    rows, base = [["path", "pid", "camid", "split"]], tmp_path / "set"
    pids = {"train": (-1, 0, 11, 12), "query": (1, 2, 0), "gallery": (1, 2, 0, -1)}
    for split, pid in ((split, pid) for split, some in pids.items() for pid in some):
        camera = 1 + (split == "gallery")
        for shot in range(2):
            path = draw(base / split / str(pid) / f"c{camera}" / f"{shot}.png", pid, shot, camera)
            rows.append([path, f"{pid}.0" if shot else pid, camera, split])  # pandas writes -1.0 in a column with gaps
    with open(tmp_path / "all.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    with caplog.at_level("INFO", logger="plainreid"):
        dataset = make_dataset(Config(dataset=str(tmp_path / "all.csv" if kind == "csv" else base)))
    found = {split: sorted(s.pid for s in getattr(dataset, split)) for split in pids}
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
    for pid in range(1, 6):
        query = base / "query" / str(pid) / "q.png"
        query.parent.mkdir(parents=True)
        first = base / "gallery" / str(pid) / "0.png"
        query.symlink_to(first) if pid == 1 else shutil.copy(first, query)
    dataset = test_side(base)
    assert [Path(s.path).name for s in dataset.gallery] == ["1.png", "2.png"] * 5 and len(dataset.query) == 5
    assert "5 of 15 gallery images are copies" in dataset.test_note
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
    query, gallery = ([Sample(side[0].path, 1, 4)] for side in (dataset.query, dataset.gallery))
    known = ReIDDataset("", query=query, gallery=gallery)
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
    paths = sorted(tmp_path.glob("val/*/*/*"))
    lines = [f"{p.relative_to(tmp_path)},{p.parent.name},{p.parents[1].name}" for p in paths]
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


def test_pictures_that_a_reader_leaves_out_are_counted_and_one_is_named(tmp_path):
    for folder, pids in (("bounding_box_train", (1, 2)), ("query", (3, 4)), ("bounding_box_test", (3, 4))):
        people(tmp_path / "set" / folder, pids, name="{pid:04}_c" + str(1 + (folder[-1] == "t")) + "s1_{shot}.png")
    draw(tmp_path / "set" / "bounding_box_train" / "p005_c1s1_0.png", 5, 0)
    draw(tmp_path / "set" / "bounding_box_train" / "more" / "0006_c1s1_0.png", 6, 0)
    with pytest.warns(UserWarning, match=r"2 images are left out.*0006_c1s1_0\.png"):
        make_dataset(Config(dataset=str(tmp_path / "set")))


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
    words = ("--backbone", "resnet18", "--weights", "none", "--height", 32, "--width", 16, "--log-dir", tmp_path)
    assert "more than 8 bits" in done("test.py", "--dataset", base, "--test-share", 1, *words)
