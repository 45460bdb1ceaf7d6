from __future__ import annotations

import os
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tree
from hypothesis import given, settings
from hypothesis import strategies as st

from config import Config
from datasets import make_dataset
from datasets.base import SPAN, ReIDDataset, Sample
from datasets.own import NO_CAMERAS, ask, draw_identities, numbers, own
from utils.errors import UserError

PATTERN = Config.camera_pattern


def touch(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"")
    return base


def read(path: Path, share: float = 0.5, seed: int = 0, pattern: str = PATTERN) -> ReIDDataset:
    return own(str(path), share, seed, pattern)


def listed(samples: list[Sample], base: Path) -> list[tuple[str, int, int]]:
    """Path below `base`, pid and camid of each, of which all are plain Python's."""
    assert all([type(x) for x in s] == [str, int, int] for s in samples)
    return [(os.path.relpath(s.path, base), s.pid, s.camid) for s in samples]


def refused(path: Path, *words: str, **settings) -> str:
    """What it is refused with: one sentence that holds the words."""
    with pytest.raises(UserError) as error:
        read(path, **settings)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), str(error.value)
    return str(error.value)


# ---- names to numbers


@pytest.mark.parametrize(
    "words, expected",
    [
        (["10", "9", "2"], {"10": 10, "9": 9, "2": 2}),
        (["0010", "9"], {"0010": 10, "9": 9}),
        (["10", "9", "0"], {"0": 1, "9": 2, "10": 3}),
        (["-1", "5"], {"-1": 1, "5": 2}),
        (["10", "9", "BOB", "ALICE"], {"9": 1, "10": 2, "ALICE": 3, "BOB": 4}),
        (["007", "7", "x"], {"007": 1, "7": 1, "x": 2}),
        (["1.5", "2"], {"2": 1, "1.5": 2}),
        (["车", "é", "Z"], {"Z": 1, "é": 2, "车": 3}),
        ([str(SPAN), "4"], {"4": 1, str(SPAN): 2}),
        (["9" * 40, "4"], {"4": 1, "9" * 40: 2}),
        (["²", "4"], {"4": 1, "²": 2}),
    ],
)
def test_words_are_numbered_in_order_and_whole_numbers_keep_theirs(words, expected):
    assert numbers(words) == numbers(reversed(words)) == expected
    assert all(type(number) is int for number in numbers(words).values())


# ---- Market-1501's layout


def test_a_folder_in_markets_layout_is_read_as_market_without_any_warning(tmp_path, recwarn):
    base = write_tree(tmp_path / "PersonX")
    dataset = read(base)
    assert dataset.name == "PersonX" and dataset.note == ""
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (36, 12, 25)
    assert {s.pid for s in dataset.gallery} == {0, 7, 8, 9, 10}  # a distractor is one here, and junk is gone
    assert not recwarn.list
    (base / "query").rename(base / "queries")
    refused(base, "query is missing")


# ---- a folder an identity


def test_the_name_is_the_folders_whatever_way_leads_there(tmp_path, monkeypatch):
    base = touch(tmp_path / "my.cats", "A/1.jpg", "B/2.jpg")
    monkeypatch.chdir(base)
    for way in (base, f"{base}/", ".", "../my.cats", "A/.."):
        assert own(way, 0.0, 0, PATTERN).name == "my.cats"


def test_a_folder_an_identity_without_cameras_counts_each_image_as_its_own_camera(tmp_path):
    base = touch(tmp_path / "cats", "BOB/2.jpg", "BOB/1.PNG", "ALICE/b.jpeg", "ALICE/a.jpg", "ZOE/only.webp")
    dataset = read(base, share=1)
    assert dataset.name == "cats" and dataset.protocol == "standard" and dataset.train == []
    assert listed(dataset.query, base) == [("ALICE/a.jpg", 1, 1), ("BOB/1.PNG", 2, 3)]
    assert listed(dataset.gallery, base) == [("ALICE/b.jpeg", 1, 2), ("BOB/2.jpg", 2, 4), ("ZOE/only.webp", 3, 5)]
    assert NO_CAMERAS in dataset.test_note and "not comparable" in dataset.note
    assert "own split by identity (seed 0), 3 of 3 identities for the test" in dataset.test_note
    everything = read(base, share=0)
    assert [s.camid for s in everything.train] == [1, 2, 3, 4, 5] and everything.query == everything.gallery == []
    assert everything.note == ""


def test_a_folder_a_camera_inside_each_identitys_gives_the_cameras(tmp_path):
    base = touch(tmp_path / "p", "A/door/1.jpg", "A/door/2.jpg", "A/yard/3.jpg", "B/yard/4_c9.jpg", "B/yard/5.jpg")
    dataset = read(base, share=1)
    assert listed(dataset.query, base) == [("A/door/1.jpg", 1, 1)]
    assert listed(dataset.gallery, base) == [
        ("A/door/2.jpg", 1, 1), ("A/yard/3.jpg", 1, 2), ("B/yard/4_c9.jpg", 2, 2), ("B/yard/5.jpg", 2, 2),
    ]  # fmt: skip
    assert dataset.test_note == "own split by identity (seed 0), 2 of 2 identities for the test"


def test_numbered_cameras_keep_their_numbers(tmp_path):
    base = touch(tmp_path / "p", "A/10/1.jpg", "A/9/2.jpg", "A/9/3.jpg")
    assert [s.camid for s in read(base, share=0).train] == [10, 9, 9]


def test_cameras_come_from_file_names_only_where_each_has_one(tmp_path):
    base = touch(tmp_path / "p", "5/x_c3_1.jpg", "5/x_c3_2.jpg", "5/x_c12_1.jpg", "8/y_c3.jpg")
    dataset = read(base, share=1)
    assert listed(dataset.query, base) == [("5/x_c3_1.jpg", 5, 3)]
    assert listed(dataset.gallery, base) == [("5/x_c12_1.jpg", 5, 12), ("5/x_c3_2.jpg", 5, 3), ("8/y_c3.jpg", 8, 3)]
    assert NO_CAMERAS not in dataset.test_note
    touch(base, "8/y.jpg")
    dataset = read(base, share=1)
    assert len({s.camid for s in dataset.query + dataset.gallery}) == 5 and NO_CAMERAS in dataset.test_note


def test_the_pattern_is_looked_for_in_the_file_name_and_may_find_words(tmp_path):
    base = touch(tmp_path / "set_c7", "A/1-yard.jpg", "A/2-door.jpg", "A/3-door.jpg")
    assert [s.camid for s in read(base, share=0, pattern=r"-(\w+)\.").train] == [2, 1, 1]
    assert [s.camid for s in read(base, share=0).train] == [1, 2, 3]  # _c7 is in the folder's name alone
    assert [s.camid for s in read(base, share=0, pattern=r"x?(z*)").train] == [1, 2, 3]  # an empty group is no camera


@pytest.mark.parametrize("pattern, words", [("_c(", "no regular expression"), (r"_c\d+", "no group"), ("", "no group")])
def test_a_bad_camera_pattern_is_named(tmp_path, pattern, words):
    refused(touch(tmp_path / "p", "A/1.jpg"), "--camera-pattern", words, pattern=pattern)


def test_what_is_no_image_hidden_or_empty_is_left_out_silently(tmp_path, recwarn):
    base = touch(
        tmp_path / "p", "A/1.jpg", "A/2.jpg", "A/notes.txt", "A/Thumbs.db", "A/.hidden.jpg", "A/._1.jpg",
        "A/.cache/3.jpg", ".git/4.jpg", "readme.txt", "C/list.csv",
    )  # fmt: skip
    (base / "EMPTY").mkdir()
    (base / "A" / "empty camera").mkdir()
    assert listed(read(base, share=0).train, base) == [("A/1.jpg", 1, 1), ("A/2.jpg", 1, 2)]
    assert not recwarn.list


def test_stray_images_beside_identities_are_warned_about(tmp_path):
    base = touch(tmp_path / "p", "A/1.jpg", "cover.jpg", "poster.png")
    with pytest.warns(UserWarning, match=r"2 images in no identity's folder are left out, .*cover.jpg for one"):
        assert len(read(base, share=0).train) == 1


def test_links_to_folders_are_followed_but_never_in_circles(tmp_path):
    base = touch(tmp_path / "p", "A/cam/1.jpg", "A/cam/2.jpg")
    touch(tmp_path / "elsewhere", "cam/3.jpg")
    (base / "B").symlink_to(tmp_path / "elsewhere")
    loops = {"back": base, "A/up": base, "A/self": base / "A", "A/cam/top": tmp_path, "B/b": base / "B"}
    for loop, target in loops.items():
        (base / loop).symlink_to(target)
    (base / "A" / "cam" / "itself").symlink_to(base / "A" / "cam" / "itself")
    assert listed(read(base, share=0).train, base) == [
        ("A/cam/1.jpg", 1, 1), ("A/cam/2.jpg", 1, 1), ("B/cam/3.jpg", 2, 1),
    ]  # fmt: skip


def test_names_in_any_script_work(tmp_path):
    decomposed = unicodedata.normalize("NFD", "José")
    base = touch(tmp_path / "фото 人", "爱丽丝/前门/图 1.jpg", "爱丽丝/前门/图 2.jpg", f"{decomposed}/дом/ü.jpg")
    assert listed(read(base, share=0).train, base) == [
        (f"{decomposed}/дом/ü.jpg", 1, 1), ("爱丽丝/前门/图 1.jpg", 2, 2), ("爱丽丝/前门/图 2.jpg", 2, 2),
    ]  # fmt: skip
    assert read(base, share=0).name == "фото 人"


@pytest.mark.parametrize("names", [["1.jpg", "2.jpg"], ["notes.txt"], ["A/notes.txt"], []])
def test_images_without_identities_are_refused_with_both_forms_shown(tmp_path, names):
    (tmp_path / "p").mkdir()
    refused(touch(tmp_path / "p", *names), "p/ALICE/1.jpg", "CSV", "path,pid,camid", "p/1.jpg,ALICE,CAM1")


def test_images_too_deep_or_only_some_in_cameras_folders_are_refused(tmp_path):
    refused(touch(tmp_path / "deep", "A/cam/monday/1.jpg", "A/cam/2.jpg"), "A/cam/monday/1.jpg lies too deep")
    mixed = touch(tmp_path / "mixed", "A/cam/1.jpg", "A/2.jpg")
    refused(mixed, "A/2.jpg lies in no camera's folder", "A/cam/1.jpg")


# ---- folders with a split


def test_train_query_and_gallery_folders_are_taken_as_they_are(tmp_path, recwarn):
    base = touch(tmp_path / "p", "train/A/1_c1.jpg", "train/B/2_c2.jpg", "query/C/3_c1.jpg", "gallery/C/4_c2.jpg")
    dataset = read(base)
    assert listed(dataset.train, base) == [("train/A/1_c1.jpg", 1, 1), ("train/B/2_c2.jpg", 2, 2)]
    assert listed(dataset.query, base) == [("query/C/3_c1.jpg", 3, 1)]
    assert listed(dataset.gallery, base) == [("gallery/C/4_c2.jpg", 3, 2)]
    assert dataset.note == "" and not recwarn.list


@pytest.mark.parametrize("test", ["test", "Test"])
def test_a_test_folder_becomes_query_and_gallery(tmp_path, test):
    base = touch(tmp_path / "p", "train/1/c1/a.jpg", f"{test}/7/c1/b.jpg", f"{test}/7/c1/c.jpg", f"{test}/7/c2/d.jpg")
    dataset = read(base)
    assert listed(dataset.train, base) == [("train/1/c1/a.jpg", 1, 1)]
    assert listed(dataset.query, base) == [(f"{test}/7/c1/b.jpg", 7, 1)]
    assert listed(dataset.gallery, base) == [(f"{test}/7/c1/c.jpg", 7, 1), (f"{test}/7/c2/d.jpg", 7, 2)]
    assert dataset.note == ""


def test_folders_beside_those_of_a_split_are_left_out_with_a_warning(tmp_path):
    base = touch(tmp_path / "p", "train/A/1.jpg", "train/B/2.jpg", "val/C/3.jpg", "bob/4.jpg")
    with pytest.warns(UserWarning, match=r"p: bob, val beside train is left out"):
        dataset = read(base)
    assert len(dataset.train) == 2 and dataset.query == dataset.gallery == []


def test_identities_on_both_sides_of_a_given_split_are_told_in_the_note(tmp_path):
    base = touch(tmp_path / "p", "train/A/1_c1.jpg", "test/A/2_c1.jpg", "test/A/3_c2.jpg", "test/B/4_c1.jpg")
    assert read(base).test_note == "1 of 2 test identities are trained on too"


def test_sides_that_do_not_fit_together_are_refused(tmp_path):
    refused(touch(tmp_path / "a", "train/A/1.jpg", "query/B/2.jpg"), "query but no gallery")
    refused(touch(tmp_path / "b", "train/A/1.jpg", "gallery/B/2.jpg"), "gallery but no query")
    refused(touch(tmp_path / "c", "test/A/1.jpg", "query/B/2.jpg", "gallery/B/3.jpg"), "test beside query")
    refused(touch(tmp_path / "d", "train/1.jpg", "test/A/2.jpg"), "d/train holds no folder an identity")


# ---- CSV files

ROWS = [
    "pictures/a.jpg,ALICE,door,train",
    "pictures/b.jpg,BOB,yard,train",
    "pictures/c.jpg,CARL,door,query",
    "pictures/d.jpg,CARL,yard,gallery",
]


def sheet(base: Path, *lines: str, name: str = "my list.csv", images: tuple[str, ...] = ("a", "b", "c", "d")) -> Path:
    touch(base, *(f"pictures/{image}.jpg" for image in images))
    (base / name).write_bytes("\n".join(lines).encode())
    return base / name


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\n\r\n", "\n  \n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", " , "])
def test_a_csv_is_read_whatever_program_wrote_it(tmp_path, delimiter, end, mark):
    path = sheet(tmp_path)
    text = end.join(["Path,PID,camid,split", *ROWS, ""]).replace(",", delimiter)
    path.write_bytes((mark + text).encode())
    dataset = read(path)
    assert dataset.name == "my list" and dataset.note == ""
    assert listed(dataset.train, tmp_path) == [("pictures/a.jpg", 1, 1), ("pictures/b.jpg", 2, 2)]
    assert listed(dataset.query, tmp_path) == [("pictures/c.jpg", 3, 1)]
    assert listed(dataset.gallery, tmp_path) == [("pictures/d.jpg", 3, 2)]


def test_columns_may_stand_in_any_order_with_others_between(tmp_path):
    path = sheet(tmp_path, "pid,colour,split,path", "7,red,test,pictures/a.jpg", "7,,TEST,pictures/b.jpg,,")
    dataset = read(path)
    assert listed(dataset.query + dataset.gallery, tmp_path) == [("pictures/a.jpg", 7, 1), ("pictures/b.jpg", 7, 2)]
    assert dataset.test_note == NO_CAMERAS


def test_paths_may_be_absolute_quoted_or_windows(tmp_path):
    touch(tmp_path, "else/where.jpg", "pictures/a, b.jpg")
    lines = (f"{tmp_path}/else/where.jpg,1", '"../pictures/a, b.jpg",2', r"pictures\c.jpg,3")
    path = sheet(tmp_path / "sheets", "path,pid", *lines)
    assert listed(read(path, share=0).train, tmp_path / "sheets") == [
        ("../else/where.jpg", 1, 1), ("../pictures/a, b.jpg", 2, 2), ("pictures/c.jpg", 3, 3),
    ]  # fmt: skip


def test_without_a_camid_column_file_names_are_asked_for_cameras(tmp_path):
    path = sheet(tmp_path, "path,pid,camid", "pictures/a_c4.jpg,1,", "pictures/b_c2.jpg,1,", images=("a_c4", "b_c2"))
    assert [s.camid for s in read(path, share=0).train] == [4, 2]


def test_lines_twice_the_same_count_once_and_a_file_of_any_name_is_taken(tmp_path):
    same = ("pictures/a.jpg,1", "./pictures/a.jpg,1", f"{tmp_path}/pictures/a.jpg,1")
    found = listed(read(sheet(tmp_path, "path,pid", *same, "pictures/b.heic,2"), share=0).train, tmp_path)
    assert found == [("pictures/a.jpg", 1, 1), ("pictures/b.heic", 2, 2)]  # the reader refuses it by name


def test_pictures_of_kinds_that_cannot_be_read_are_not_overlooked(tmp_path):
    base = touch(tmp_path / "p", "A/1.JPG", "A/2.heic", "A/3.jfif", "A/Thumbs.db", "A/._1.jpg", "B/4.gif", "B/5.txt")
    assert [name for name, *_ in listed(read(base, share=0).train, base)] == [
        "A/1.JPG",
        "A/2.heic",
        "A/3.jfif",
        "B/4.gif",
    ]


@pytest.mark.parametrize(
    "lines, words",
    [
        (["pictures/a.jpg,1", "pictures/b.jpg,2"], ["path,pid,camid,split", "'pictures/a.jpg,1'"]),
        (["path,camid", "pictures/a.jpg,1"], ["path,pid,camid,split"]),
        (["path,pid,path", "pictures/a.jpg,1,b.jpg"], ["once each"]),
        (["", ""], ["no line below its header"]),
        (["path,pid"], ["no line below its header"]),
        (["path,pid", "pictures/a.jpg,", ""], ["line 2", "pid is empty"]),
        (["path,pid", "", "", ",5"], ["line 4", "path or pid is empty"]),
        (["path,pid", "pictures/a.jpg,1", "pictures/b.jpg"], ["line 3", "1 columns instead of 2"]),
        (["path,pid", "pictures/a, b.jpg,1"], ["line 2", "3 columns instead of 2", "quotation marks"]),
        (["path,pid", '"pictures/a.jpg,1', "pictures/b.jpg,2"], ["line 3", "unexpected end of data"]),
        (["path,pid,split", "pictures/a.jpg,1,train", "pictures/b.jpg,2,valid"], ["line 3", "'valid'", "gallery"]),
        (["path,pid,split", "pictures/a.jpg,1,train", "pictures/b.jpg,2,"], ["line 3", "split is empty"]),
        (["path,pid,camid", "pictures/a.jpg,1,", "pictures/b.jpg,2,4"], ["line 2", "camid is empty"]),
        (["path,pid,split", "pictures/a.jpg,1,query"], ["query but no gallery"]),
        (["path,pid", "a.jpg,1"], ["exists", "/a.jpg", "relative to the CSV's folder"]),
    ],
)
def test_bad_csv_files_are_refused_by_line(tmp_path, lines, words):
    path = sheet(tmp_path, *lines)
    refused(path, str(path), *words)


@pytest.mark.parametrize("again", ["a.jpg,2,5,query", "./a.jpg,1,6,query", "../pictures/a.jpg,1,5,gallery"])
def test_an_image_that_is_listed_twice_with_other_labels_is_refused(tmp_path, again):
    lines = ("pictures/a.jpg,1,5,query", "pictures/b.jpg,1,6,gallery", f"pictures/{again}")
    path = sheet(tmp_path, "path,pid,camid,split", *lines)
    refused(path, "line 4", "on line 2 already")


def test_files_that_are_no_csv_are_refused(tmp_path):
    for encoding in ("utf-16", "latin-1"):
        (tmp_path / "x.csv").write_bytes("path,pid\nJosé.jpg,1\n".encode(encoding))
        refused(tmp_path / "x.csv", "x.csv is no text in UTF-8")
    refused(tmp_path / "nowhere.csv", "nowhere.csv cannot be read")


# ---- the split that is made here


def people(base: Path, count: int = 7) -> Path:
    """Identities of one to three images; every second pair of them under two cameras."""
    rng = random.Random(count)
    return touch(base, *(f"P{i}/{i}_{k}_c{1 + k // 2}.jpg" for i in range(count) for k in range(rng.choice((1, 3, 4)))))


@settings(max_examples=200, deadline=None)
@given(
    st.sets(st.integers(1, 500), min_size=3), st.floats(0, 1, exclude_min=True, exclude_max=True), st.integers(-3, 99)
)
def test_each_share_leaves_one_to_test_and_two_to_train_whatever_the_order(pids, share, seed):
    people = {pid: f"name {pid}" for pid in pids}
    drawn = draw_identities(people, share, seed, "here")
    assert drawn == draw_identities(dict(sorted(people.items(), reverse=True)), share, seed, "here") and drawn <= pids
    assert 1 <= len(drawn) <= len(pids) - 2
    assert draw_identities(people, 0, seed, "here") == set() and draw_identities(people, 1, seed, "here") == pids


def test_the_share_is_that_asked_for_on_average():
    people = {pid: f"name {pid}" for pid in range(1, 1001)}
    shares = np.array([len(draw_identities(people, 0.3, seed, "here")) for seed in range(40)]) / 1000
    assert abs(shares.mean() - 0.3) < 0.01 and shares.std() < 0.03
    times = np.zeros(1000)
    for seed in range(200):
        times[[pid - 1 for pid in draw_identities(people, 0.3, seed, "here")]] += 1
    assert times.min() > 30 and times.max() < 95  # each of 1000 people in 60 of 200, give or take


def test_nobody_changes_sides_when_people_come_and_go(tmp_path):
    base = people(tmp_path / "p", 40)
    before = read(base, 0.4, 5)
    trained = {before.called(s.pid) for s in before.train}
    touch(base, *(f"{name}/{k}_c{k}.jpg" for name in ("0 new", "Zoe", "P7b") for k in (1, 2)))
    for file in (base / "P3").iterdir():
        file.unlink()
    after = read(base, 0.4, 5)
    tested = {after.called(s.pid) for s in after.query + after.gallery}
    assert tested and trained and not tested & trained
    assert {s.pid for s in before.train} & {s.pid for s in after.query}  # though the numbers moved


@pytest.mark.parametrize("seed", [0, 1, 2, 7])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 1.0])
def test_nobody_is_ever_on_both_sides_and_no_image_is_lost(tmp_path, share, seed):
    base = people(tmp_path / "p", 12)
    dataset = read(base, share, seed)
    train, test = dataset.train, dataset.query + dataset.gallery
    assert not {s.pid for s in train} & {s.pid for s in test}
    assert {s.pid for s in train + test} == set(range(1, 13))
    paths = [s.path for s in train + test]
    assert sorted(paths) == sorted(map(str, base.rglob("*.jpg"))) and len(set(paths)) == len(paths)
    for q in dataset.query:
        assert any(g.pid == q.pid and g.camid != q.camid for g in dataset.gallery)
    tested = len({s.pid for s in test})
    assert f"own split by identity (seed {seed}), {tested} of 12 identities for the test" in dataset.test_note


def test_seeds_give_different_splits_of_about_the_share_asked_for(tmp_path):
    base = people(tmp_path / "p", 20)
    sides = [{s.pid for s in read(base, 0.3, seed).train} for seed in range(8)]
    assert len(set(map(frozenset, sides))) > 1 and all(8 <= len(side) <= 18 for side in sides)


def test_the_split_does_not_hang_on_the_order_of_files_on_disk(tmp_path, monkeypatch):
    base = people(tmp_path / "p")
    expected, scandir = read(base), os.scandir

    class Shuffled(list):
        __enter__, __exit__ = (lambda self: self), (lambda self, *error: None)

    def shuffled(path):
        entries = Shuffled(scandir(path))
        random.Random(len(calls)).shuffle(entries)
        calls.append(path)
        return entries

    calls = []
    monkeypatch.setattr(os, "scandir", shuffled)
    assert all(read(base) == expected for _ in range(5)) and len(calls) > 20


def test_the_split_does_not_hang_on_the_order_of_lines(tmp_path):
    base = people(tmp_path)
    lines = [f"{p.relative_to(base)},{p.parent.name}" for p in base.rglob("*.jpg")]
    (tmp_path / "a.csv").write_text("\n".join(["path,pid", *sorted(lines)]))
    expected = read(tmp_path / "a.csv")
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        (tmp_path / "a.csv").write_text("\n".join(["path,pid", *lines]))
        assert read(tmp_path / "a.csv") == expected
    folders = read(base)  # and the same pictures in folders give the same sides
    assert [[s[1:] for s in side] for side in (folders.train, folders.query, folders.gallery)] == [
        [s[1:] for s in side] for side in (expected.train, expected.query, expected.gallery)
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_identities_are_told_what_is_needed(tmp_path, count):
    base = touch(tmp_path / "p", *(f"P{i}/{k}.jpg" for i in range(count) for k in range(3)))
    refused(base, f"holds {count} identities", "three or more", "--test-share 0")
    assert len(read(base, share=0).train) == 3 * count and len(read(base, share=1).query) == count


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(tmp_path, share):
    refused(touch(tmp_path / "p", "A/1.jpg"), "--test-share", "between 0 and 1", share=share)


def test_where_no_camera_saw_anybody_twice_each_identity_asks_once_across_cameras():
    samples = [Sample("b", 1, 2), Sample("a", 1, 1), Sample("c", 2, 3), Sample("e", 3, 1), Sample("d", 3, 4)]
    query, gallery = ask(samples, "here")
    assert [s.path for s in query] == ["a", "d"] and [s.path for s in gallery] == ["b", "c", "e"]


def test_a_test_side_without_any_match_is_refused(tmp_path):
    refused(touch(tmp_path / "a", "A/1.jpg", "B/2.jpg"), "none of 2 test identities", "--test-share 0", share=1)
    refused(touch(tmp_path / "b", "A/cam/1.jpg", "A/cam/2.jpg"), "none of 1 test identities", "two cameras", share=1)


# ---- from the settings


def test_the_settings_reach_own_pictures(tmp_path):
    for image in sorted((write_tree(tmp_path / "market") / "bounding_box_train").iterdir()):
        touch(tmp_path / "mine", f"{image.name[:4]}/{image.name}")
    dataset = make_dataset(Config(dataset=str(tmp_path / "mine"), test_share=0.34, camera_pattern=r"_c(\d+)s"))
    assert len({s.pid for s in dataset.train}) == 4 and len(dataset.train) == 24 and len(dataset.query) == 6
    assert {s.camid for s in dataset.gallery} == {1, 2, 3} and "2 of 6 identities" in dataset.note


def test_a_side_that_is_absent_is_told_by_who_needs_it(tmp_path):
    base = touch(tmp_path / "p", "A/1.jpg", "A/2.jpg", "B/3.jpg", "B/4.jpg")
    for share, words in ((0.0, "no test split"), (1.0, "nothing to train on")):
        with pytest.raises(UserError, match=words):
            make_dataset(Config(dataset=str(base), test_share=share))
