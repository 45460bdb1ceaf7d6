"""Exact and approximate search, the file of features, thresholds, and tools/search.py as people run it."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import write_tree
from helpers import program, refused, save_model
from PIL import Image

from config import Config
from datasets.images import read_image
from processor import FeatureExtractor
from processor import gallery as galleries
from processor.checkpoint import save_checkpoint
from processor.gallery import read_gallery, write_gallery, writing
from processor.indexing import rows_named
from tools import search_answer
from tools.search_answer import Hit, draw_answer, hit_table
from utils import nearest as exact
from utils import threshold as thresholds
from utils.engines import ENGINES, LOOK_AT, build_engine, read_engine, remove_from_engine, search_engine, write_engine
from utils.errors import UserError
from utils.nearest import nearest
from utils.threshold import STEPS, Counts, count_pairs

SEARCH = "tools/search.py"
CPU = torch.device("cpu")


def unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator))


# ---- exact search


@pytest.mark.parametrize(("queries", "rows", "k"), [(1, 1, 1), (1, 7, 3), (5, 100, 10), (3, 50, 50), (70, 2000, 9)])
@pytest.mark.parametrize("block", [1, 1 << 12, 1 << 24])
def test_the_nearest_rows_are_those_of_a_full_sort(monkeypatch, queries, rows, k, block):
    monkeypatch.setattr(exact, "BLOCK_BYTES", block)
    monkeypatch.setattr(exact, "FEWEST", 1)
    query, gallery = unit(queries, 16), unit(rows, 16, seed=1)
    value, index = nearest(query, gallery, k)
    product = query.double() @ gallery.double().T
    order = product.argsort(dim=1, descending=True, stable=True)[:, :k]
    assert torch.equal(index, order) and value.dtype == torch.float32
    torch.testing.assert_close(value.double(), product.gather(1, order), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_equal_rows_come_in_their_order_and_each_once(monkeypatch, rows):
    monkeypatch.setattr(exact, "BLOCK_BYTES", 4 * 4 * rows)
    monkeypatch.setattr(exact, "FEWEST", 1)
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(15, 1)
    value, index = nearest(torch.tensor([[1.0, 0.0]] * 4), gallery, 30)
    assert index.tolist() == [[*range(0, 30, 2), *range(1, 30, 2)]] * 4
    assert value.tolist() == [[1.0] * 15 + [0.0] * 15] * 4


def test_no_more_than_a_block_of_products_is_held(monkeypatch):
    sizes, real = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **more: sizes.append(more["out"].numel()) or real(*args, **more))
    monkeypatch.setattr(exact, "BLOCK_BYTES", 4 * 50 * 2000)
    nearest(unit(50, 8), unit(20_001, 8), 5)
    assert max(sizes) == 50 * 2000 and sum(sizes) == 50 * 20_001


def test_k_beyond_the_gallery_gives_all_of_it_and_nothing_gives_nothing():
    query, gallery = unit(2, 4), unit(3, 4, seed=1)
    assert nearest(query, gallery, 99)[1].sort(1).values.tolist() == [[0, 1, 2]] * 2
    assert nearest(query, gallery[:0], 5)[1].shape == (2, 0)
    assert nearest(query[:0], gallery, 2)[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("query", "gallery", "k", "words"),
    [((2, 4), (3, 5), 1, "must be"), ((4,), (3, 4), 1, "must be"), ((2, 4), (3, 4), 0, "at least 1")],
)
def test_bad_features_for_a_search(query, gallery, k, words):
    with pytest.raises(ValueError, match=words):
        nearest(torch.zeros(query), torch.zeros(gallery), k)


def test_nan_and_other_types_are_refused_by_a_search():
    gallery = unit(9, 4)
    with pytest.raises(ValueError, match="float32"):
        nearest(unit(2, 4).half(), gallery, 1)
    gallery[5, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        nearest(unit(2, 4), gallery, 1)


# ---- FAISS


@pytest.fixture
def rows() -> np.ndarray:
    """Twenty clusters of fifty."""
    centres = unit(20, 24).repeat_interleave(50, 0)
    return torch.nn.functional.normalize(centres + 0.1 * torch.randn(1000, 24, generator=torch.Generator())).numpy()


def found_by(index, query: np.ndarray, k: int, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pytest.importorskip("faiss")
    return search_engine(index, query, k, ids)


def recall(found: np.ndarray, rows: np.ndarray, query: np.ndarray) -> float:
    truth = nearest(torch.from_numpy(query), torch.from_numpy(np.ascontiguousarray(rows)), found.shape[1])[1].numpy()
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)]))


@pytest.mark.parametrize("kind", ENGINES)
def test_engines_find_what_exact_search_finds_with_its_similarities(kind, rows):
    pytest.importorskip("faiss")
    ids = np.arange(1000) * 3 + 5
    value, place = found_by(build_engine(kind, rows, ids), rows[:100], 10, ids)
    expected, _ = nearest(torch.from_numpy(rows[:100]), torch.from_numpy(rows), 10)
    assert recall(place, rows, rows[:100]) > {"flat": 0.9999, "ivf": 0.9, "hnsw": 0.97}[kind]
    np.testing.assert_allclose(value, (rows[:100, None] * rows[place]).sum(2), atol=1e-5)
    assert (place[:, 0] == np.arange(100)).all() and (np.diff(value) <= 0).all()
    assert kind != "flat" or np.allclose(value, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("removed", [1, 500, 990])
def test_engines_find_nothing_that_was_removed_and_all_that_was_added(kind, rows, removed, tmp_path):
    pytest.importorskip("faiss")
    index = build_engine(kind, rows[:600], np.arange(600))
    index.add_with_ids(rows[600:], np.arange(600, 1000))
    gone = np.random.default_rng(0).permutation(1000)[:removed]
    remove_from_engine(index, gone)
    write_engine(tmp_path / "e.faiss", index)
    index = read_engine(tmp_path / "e.faiss", 24)
    ids = np.setdiff1d(np.arange(1000), gone)
    value, place = found_by(index, rows[:50], 5, ids)
    assert recall(place, rows[ids], rows[:50]) > 0.9
    np.testing.assert_allclose(value, (rows[:50, None] * rows[ids][place]).sum(2), atol=1e-5)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("size", [1, 2, 40, 200])
def test_engines_of_few_rows_give_all_of_them(kind, size, rows):
    pytest.importorskip("faiss")
    index = build_engine(kind, rows[:size], np.arange(size))
    _, place = found_by(index, rows[:3], 500, np.arange(size))
    assert (np.sort(place, 1) == np.arange(size)).mean() > 0.95 and place.shape == (3, size)


def test_many_hits_are_more_than_a_graph_looks_at_by_itself(rows):
    pytest.importorskip("faiss")
    index = build_engine("hnsw", rows, np.arange(1000))
    _, place = found_by(index, rows[:3], 4 * LOOK_AT, np.arange(1000))
    assert (place >= 0).mean() > 0.99


def test_without_faiss_the_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        build_engine("flat", np.ones((1, 2), "f4"), np.arange(1))


def test_what_is_no_engine_is_refused(tmp_path, rows):
    pytest.importorskip("faiss")
    (tmp_path / "a.faiss").write_bytes(b"hello, this is no index")
    with pytest.raises(UserError, match=r"a.faiss cannot be read by FAISS"):
        read_engine(tmp_path / "a.faiss", 24)
    write_engine(tmp_path / "b.faiss", build_engine("flat", rows, np.arange(1000)))
    with pytest.raises(UserError, match="width 25"):
        read_engine(tmp_path / "b.faiss", 25)
    with pytest.raises(UserError, match="nothing"):
        build_engine("ivf", rows[:0], np.arange(0))


# ---- thresholds


def pairs_by_hand(query, gallery, qp, gp, qc, gc) -> tuple[list[float], list[float]]:
    same, others = [], []
    for i, a in enumerate(query):
        for j, b in enumerate(gallery):
            cosine = float((a.double() * b.double()).sum())
            if qp[i] != gp[j]:
                others.append(cosine)
            elif qc[i] != gc[j]:
                same.append(cosine)
    return same, others


@pytest.fixture
def labelled():
    rng = np.random.default_rng(3)
    query, gallery = unit(40, 6), unit(90, 6, seed=1)
    return (
        query,
        gallery,
        rng.integers(0, 8, 40),
        rng.integers(0, 8, 90),
        rng.integers(0, 3, 40),
        rng.integers(0, 3, 90),
    )


@pytest.mark.parametrize("block", [1, 500, 1 << 22])
def test_pairs_are_counted_as_one_by_one(monkeypatch, labelled, block):
    monkeypatch.setattr(thresholds, "BLOCK", block)
    counts = count_pairs(*labelled)
    same, others = pairs_by_hand(*labelled)
    for found, values in ((counts.same, same), (counts.others, others)):
        expected = np.zeros(2 * STEPS + 1)
        np.add.at(expected, np.floor(np.array(values) * STEPS).astype(int) + STEPS, 1)
        assert found.sum() == len(values)
        assert np.abs(found.cumsum() - expected.cumsum()).max() <= 1  # a cosine at a step may fall to either side


def test_thresholds_hold_on_the_pairs_themselves(labelled):
    counts = count_pairs(*labelled)
    same, others = (np.array(x) for x in pairs_by_hand(*labelled))
    for point in (counts.equal_error(), counts.at_fpr(1e-3), counts.at_fpr(0.1)):
        assert point.tpr == pytest.approx((same >= point.threshold).mean(), abs=2 / len(same))
        assert point.fpr == pytest.approx((others >= point.threshold).mean(), abs=2 / len(others))
    point = counts.at_fpr(0.1)
    assert point.fpr <= 0.1 < (others >= point.threshold - 2 / STEPS).mean() + 1 / len(others)
    point = counts.equal_error()
    assert abs(point.fpr - (1 - point.tpr)) < 3 / min(len(same), len(others))


def counts_of(same: list[float], others: list[float]) -> Counts:
    both = np.zeros((2, 2 * STEPS + 1), np.int64)
    for row, values in zip(both, (same, others), strict=True):
        np.add.at(row, [round(v * STEPS) + STEPS for v in values], 1)
    return Counts(*both)


def test_thresholds_by_hand():
    counts = counts_of([0.5] * 9 + [0.0], [-0.5] * 9 + [0.25])
    point = counts.equal_error()
    assert point.threshold == pytest.approx(0.125, abs=2 / STEPS)  # the middle of 0 to 0.25
    assert (point.tpr, point.fpr) == (0.9, 0.1)
    assert counts.at_fpr(0.1) == (-0.5 + 1 / STEPS, 1.0, 0.1)
    assert counts.at_fpr(0.05) == (0.25 + 1 / STEPS, 0.9, 0.0)
    thousand = counts_of([0.5], [0.25] + [0.0] * 999)
    assert thousand.at_fpr(1e-3) == (1 / STEPS, 1.0, 1e-3)
    assert counts.quantile(0.5, counts.same) == 0.5 and counts.quantile(0.05, counts.same) == 0.0


def test_where_all_can_be_told_apart_the_equal_error_lies_between():
    point = counts_of([0.75, 0.5], [0.25, 0.0]).equal_error()
    assert (point.tpr, point.fpr) == (1.0, 0.0) and point.threshold == pytest.approx(0.375, abs=2 / STEPS)


def test_pairs_that_are_all_alike_leave_no_threshold_below_one():
    counts = counts_of([1.0, 1.0], [1.0, 0.0])
    assert counts.at_fpr(1e-3).threshold == 1.0 and counts.at_fpr(1e-3).fpr == 0.5


def test_sets_without_pairs_of_both_kinds_are_refused():
    features, two = unit(2, 4), np.array([1, 2])
    with pytest.raises(ValueError, match="of one person under two cameras"):
        count_pairs(features, features, two, two, two, two)
    one = np.array([1, 1])
    with pytest.raises(ValueError, match="of different people"):
        count_pairs(features, features, one, one, one, two + 5)
    with pytest.raises(ValueError, match="query_pids"):
        count_pairs(features, features, one[:1], one, one, one)


# ---- the file


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The checkpoint of an untrained model, made once, and its data."""
    base = tmp_path_factory.mktemp("saved")
    write_tree(base / "data" / "demo")
    small = {"backbone": "mobilenet_v2", "weights": "none", "height": 32, "width": 16}
    return save_model(Config(dataset="demo", data_root=str(base / "data"), log_dir=str(base / "log"), **small))


@pytest.fixture
def drawn() -> None:
    """For tests that look at pictures; others go without, as drawing takes longer than all the rest."""


@pytest.fixture(autouse=True)
def not_drawn(request, monkeypatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(search_answer, "draw_answer", lambda *args: None)


@pytest.fixture
def base(saved, tmp_path: Path) -> Path:
    """A place with log/demo/last.pth, data/demo and crops: three pictures, one below, one cut short, and a text."""
    shutil.copytree(saved.parents[2], tmp_path / "base")
    crops = tmp_path / "base" / "crops"
    (crops / "below").mkdir(parents=True)
    gallery = tmp_path / "base" / "data" / "demo" / "bounding_box_test"
    for name, source in (("a.jpg", "0007_c1s1_000000_00"), ("b $x_1$.jpg", "0008_c1s1_000000_00"),
                         ("below/c.jpg", "0009_c2s1_000001_00")):  # fmt: skip
        shutil.copy(gallery / f"{source}.jpg", crops / name)
    (crops / "cut.jpg").write_bytes((crops / "a.jpg").read_bytes()[:200])
    (crops / "notes.txt").write_text("notes")
    return tmp_path / "base"


def search(base: Path, command: str, *args: object):
    """The program, with the run and the data of `base`."""
    where = ["--log-dir", base / "log"]
    where += ["--data-root", base / "data"] if command in ("index", "ask", "threshold") else []
    return program(SEARCH, command, *args, *where)


def done(base: Path, command: str, *args: object) -> str:
    """What it prints, if all went well."""
    shown = search(base, command, *args)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


@pytest.fixture
def index(base: Path) -> Path:
    done(base, "index", base / "crops", "--output", base / "g.idx")
    return base / "g.idx"


def listed(shown: str) -> list[tuple[float, str]]:
    """(similarity, picture) of every line of a table of hits."""
    lines = re.findall(r"^ *\d+ +(-?\d\.\d{3})  (?:(?:yes|no) +)?(.+)$", shown, re.MULTILINE)
    return [(float(similarity), name) for similarity, name in lines]


def test_a_file_is_read_as_it_was_written_without_running_code(index, base):
    gallery = read_gallery(index)
    assert gallery.paths.tolist() == ["a.jpg", "b $x_1$.jpg", "below/c.jpg"]
    assert gallery.about["root"] == str(base / "crops") and gallery.about["height"] == 32
    assert gallery.about["checkpoint"] == str(base / "log" / "demo" / "last.pth")
    with np.load(index, allow_pickle=False) as stored:
        assert sorted(stored.files) == ["about", "features", "ids", "paths", "stamps"]
        assert np.allclose(np.linalg.norm(stored["features"], axis=1), 1)
    write_gallery(base / "h.idx", gallery)
    again = read_gallery(base / "h.idx")
    assert np.array_equal(again.features, gallery.features) and again.files() == gallery.files()
    assert again.about == gallery.about and np.array_equal(again.ids, gallery.ids)


def spoiled(path: Path, way: str) -> None:
    with np.load(path) as stored:
        arrays = dict(stored)
    if way == "pickle":
        path.write_bytes(pickle.dumps(arrays))
    elif way == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif way == "flipped":
        data = bytearray(path.read_bytes())
        data[data.index(b"\x93NUMPY") + 2] ^= 1
        path.write_bytes(data)
    elif way == "text":
        path.write_text("an index")
    elif way == "empty":
        path.write_bytes(b"")
    else:
        changes = {
            "objects": {"paths": np.array([{}, {}, {}])},
            "few": {"paths": arrays["paths"][:2]},
            "wide": {"features": arrays["features"].astype("f8")},
            "about": {"about": np.array("[]")},
            "format": {"about": np.array(json.dumps({"format": "PlainReID features 2"}))},
            "ids": {"ids": arrays["ids"][::-1]},
        }
        if way == "missing":
            arrays.pop("features")
        with open(path, "wb") as file:
            np.savez(file, **(arrays | changes.get(way, {})))


@pytest.mark.parametrize(
    "way",
    ["pickle", "cut", "flipped", "text", "empty", "objects", "few", "wide", "about", "format", "ids", "missing"],
)
def test_damaged_files_and_those_of_others_are_refused(index, way):
    spoiled(index, way)
    with pytest.raises(UserError, match=r"g\.idx is no file of features, or damaged") as caught:
        read_gallery(index)
    assert ("\n" not in str(caught.value) and "pickle" not in str(caught.value).lower()) or way == "objects"


def test_an_index_with_a_number_that_is_none_is_no_traceback(base, index):
    gallery = read_gallery(index)
    gallery.features[1, 5] = np.nan
    write_gallery(index, gallery)
    refused(search(base, "ask", base / "crops" / "a.jpg", "--index", index), "g.idx cannot be searched", "NaN")


def test_features_are_mapped_and_those_on_the_disk_stay_as_they_are(index):
    gallery = read_gallery(index)
    assert isinstance(gallery.features.base, np.memmap)
    gallery.features[:] = 7
    assert np.allclose(np.linalg.norm(read_gallery(index).features, axis=1), 1)


def test_an_index_that_is_not_there(base):
    for command in ("ask", "add", "remove", "threshold"):
        what = {"ask": [base / "crops" / "a.jpg"], "add": [base / "crops"], "remove": ["a.jpg"], "threshold": []}
        refused(search(base, command, *what[command], "--index", base / "none.idx"), "there is no index", "none.idx")


@pytest.mark.parametrize("when", ["engine", "file", "rename"])
def test_a_stop_while_writing_leaves_the_old_index_whole(base, index, when, monkeypatch):
    pytest.importorskip("faiss")
    done(base, "index", base / "crops", "--output", index, "--engine", "hnsw")
    before = done(base, "ask", base / "crops" / "a.jpg", "--index", index)

    def stop(*args, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        places = {"engine": (galleries, "write_engine"), "file": (np, "savez"), "rename": (os, "replace")}
        patch.setattr(*places[when], stop)
        assert search(base, "remove", "a.jpg", "--index", index).returncode == 130
    assert done(base, "ask", base / "crops" / "a.jpg", "--index", index) == before
    done(base, "remove", "b $x_1$.jpg", "--index", index)
    assert len(list(base.glob("g.idx.*.faiss"))) == 1 and list(base.glob(".g.idx*")) == []


def test_two_programs_do_not_change_one_index(base, index):
    with writing(index):
        for command, what in (("add", base / "data"), ("remove", "a.jpg")):
            refused(search(base, command, what, "--index", index), "another program is writing")
    assert "removed: 1" in done(base, "remove", "a.jpg", "--index", index)


def test_what_a_killed_program_left_is_removed_and_nothing_else(base, index):
    left = [".g.idx.123.tmp", ".g.idx.0123abcd.faiss.9.tmp"]
    others = [".g.idx.2.123.tmp", ".xg.idx.123.tmp", "g.idx.123.tmp", ".g.idx.tmp"]
    for name in (*left, *others):
        (base / name).write_text("half")
    done(base, "remove", "a.jpg", "--index", index)
    assert [name for name in (*left, *others) if (base / name).exists()] == others


def test_brackets_in_a_name_are_no_pattern(base):
    pytest.importorskip("faiss")
    other = base / "x.idx.12345678.faiss"
    other.write_bytes(b"of another index")
    for _ in range(2):
        done(base, "index", base / "crops", "--output", base / "[x].idx", "--engine", "flat")
    assert other.exists() and sum(p.name.startswith("[x].idx.") for p in base.iterdir()) == 1


# ---- index and ask


def test_asked_with_a_picture_of_the_gallery_it_comes_first_and_the_others_by_their_cosine(base, index):
    shown = done(base, "ask", base / "crops" / "a.jpg", "--index", index)
    names = ["a.jpg", "b $x_1$.jpg", "below/c.jpg"]
    features = FeatureExtractor(base / "log" / "demo", device="cpu")([base / "crops" / name for name in names]).double()
    cosine = (features @ features[0]).tolist()
    expected = sorted(zip(cosine, names, strict=True), reverse=True)
    assert [name for _, name in listed(shown)] == [name for _, name in expected]
    assert [s for s, _ in listed(shown)] == pytest.approx([s for s, _ in expected], abs=6e-4)
    assert listed(shown)[0] == (1.0, "a.jpg") and "3 of 3 pictures, the most similar first" in shown


def test_several_pictures_are_one_query_of_their_mean(base, index):
    pictures = [base / "crops" / "a.jpg", base / "crops" / "below" / "c.jpg"]
    features = FeatureExtractor(base / "log" / "demo", device="cpu")([*pictures, base / "crops" / "b $x_1$.jpg"])
    mean = features[:2].double().sum(0)
    expected = sorted((features.double() @ (mean / mean.norm())).tolist(), reverse=True)
    shown = done(base, "ask", *pictures, "--index", index)
    assert [s for s, _ in listed(shown)] == pytest.approx(expected, abs=6e-4)
    assert "2 pictures, averaged" in shown


@pytest.mark.parametrize("top", [1, 2, 3, 4, 1000])
def test_as_many_are_shown_as_asked_for_and_there_are(base, index, top):
    shown = done(base, "ask", base / "crops" / "a.jpg", "--index", index, "--top", top)
    assert len(listed(shown)) == min(top, 3) and f": {min(top, 3)} of 3 pictures" in shown


def test_a_gallery_of_one_picture(base):
    done(base, "index", base / "crops" / "below", "--output", base / "one.idx")
    assert listed(done(base, "ask", base / "crops" / "a.jpg", "--index", base / "one.idx"))[0][1] == "c.jpg"


def test_files_left_out_are_counted_and_those_that_cannot_be_read_named(base):
    shown = done(base, "index", base / "crops", "--output", base / "g.idx")
    assert "no pictures by their names, left out: 1" in shown
    assert "cannot be read, left out: 1" in shown and "cut.jpg is cut short" in shown


def test_without_arguments_the_runs_gallery_is_indexed_and_its_first_query_asked(drawn, base, monkeypatch):
    monkeypatch.chdir(base)
    shown = program(SEARCH)
    assert shown.returncode == 0, shown.stderr
    assert len(listed(shown.stdout)) == 10 and "0007_c1s1_000090_00.jpg: 10 of 25 pictures" in shown.stdout
    assert (base / "log" / "demo" / "gallery.idx").is_file()
    assert (base / "log" / "demo" / "answer_0007_c1s1_000090_00.png").is_file()
    assert len(read_gallery(base / "log" / "demo" / "gallery.idx")) == 25  # junk is no part of it


def test_an_index_asks_with_the_flip_that_it_was_made_with(base):
    done(base, "index", base / "crops", "--output", base / "g.idx", "--flip")
    assert listed(done(base, "ask", base / "crops" / "a.jpg", "--index", base / "g.idx"))[0] == (1.0, "a.jpg")
    done(base, "add", base / "data" / "demo" / "query", "--index", base / "g.idx")
    flipped = FeatureExtractor(base / "log" / "demo", device="cpu", flip=True)
    gallery = read_gallery(base / "g.idx")
    expected = flipped([base / "crops" / f.path for f in gallery.files()]).numpy()
    np.testing.assert_allclose(gallery.features, expected, atol=1e-5)


def test_the_index_of_another_model_is_refused_in_one_sentence(base, index):
    state = torch.load(base / "log" / "demo" / "last.pth", weights_only=True)
    state["model"]["branches.0.neck.running_mean"] += 0.1
    save_checkpoint(base / "log" / "other" / "last.pth", state)
    for command, what in (("ask", [base / "crops" / "a.jpg"]), ("add", [base / "data"]), ("threshold", [])):
        shown = search(base, command, *what, "--index", index, "--checkpoint", "other")
        refused(shown, "was made by another model", index, "their features cannot be compared", "--checkpoint")
    save_checkpoint(base / "log" / "demo" / "last.pth", state)  # trained on since
    refused(search(base, "ask", base / "crops" / "a.jpg", "--index", index), "was made by another model")


def test_other_preprocessing_of_the_same_weights_is_another_model(base, index):
    state = torch.load(base / "log" / "demo" / "last.pth", weights_only=True)
    state["config"]["height"] = 48
    save_checkpoint(base / "log" / "demo" / "last.pth", state)
    refused(search(base, "ask", base / "crops" / "a.jpg", "--index", index), "was made by another model")


def test_best_and_last_with_the_same_weights_are_one_model(base, index):
    (base / "log" / "demo" / "last.pth").rename(base / "moved.pth")
    refused(search(base, "ask", base / "crops" / "a.jpg", "--index", index), "which is gone", "--checkpoint")
    shown = done(base, "ask", base / "crops" / "a.jpg", "--index", index, "--checkpoint", base / "moved.pth")
    assert listed(shown)[0][1] == "a.jpg"


@pytest.mark.parametrize(
    ("command", "args", "words"),
    [
        ("ask", ["{crops}/gone.jpg"], "gone.jpg cannot be read"),
        ("ask", ["{crops}/cut.jpg"], "cut.jpg is cut short"),
        ("ask", ["{crops}/notes.txt"], "notes.txt is not an image"),
        ("ask", ["{crops}"], "directory"),
        ("ask", ["{crops}/a.jpg", "--top", "0"], "--top must be at least 1"),
        ("ask", ["{crops}/a.jpg", "--checkpoint", "nobody"], "nobody is neither a checkpoint"),
        ("add", [], "no picture is named"),
        ("add", ["{base}/nowhere"], "there is no"),
        ("add", ["{crops}/cut.jpg"], "none of the pictures can be read"),
        ("remove", [], "no picture is named"),
        ("remove", ["a.jpg", "nobody.jpg"], "no picture called nobody.jpg"),
        ("threshold", ["nothing"], "neither a dataset's name nor a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(base, index, command, args, words):
    before = index.read_bytes()
    args = [a.format(crops=base / "crops", base=base) for a in args]
    refused(search(base, command, *args, "--index", index), words)
    assert index.read_bytes() == before and list(base.glob(".g.idx*")) == []


@pytest.mark.parametrize("case", ["no run", "no picture", "a folder", "another file", "no faiss"])
def test_what_cannot_be_indexed(base, case, monkeypatch):
    (base / "words").mkdir()
    (base / "words" / "a.txt").write_text("a")
    folder, output, more = base / "crops", base / "g.idx", []
    if case == "no run":
        shutil.rmtree(base / "log")
    elif case == "no picture":
        folder = base / "words"
    elif case == "a folder":
        output = base
    elif case == "another file":
        output = base / "words" / "a.txt"
    else:
        monkeypatch.setitem(__import__("sys").modules, "faiss", None)
        more = ["--engine", "hnsw"]
    words = {"no run": "there is no run", "no picture": "hold no picture", "a folder": "is a folder",
             "another file": "a.txt is no file of features", "no faiss": "pip install faiss-cpu"}  # fmt: skip
    refused(search(base, "index", folder, "--output", output, *more), words[case])
    assert (base / "words" / "a.txt").read_text() == "a" and list(base.glob(".g.idx*")) == []


# ---- add and remove


@pytest.mark.parametrize("kind", ["exact", *ENGINES])
def test_added_and_removed_is_as_indexed_at_once(base, kind, monkeypatch):
    if kind != "exact":
        pytest.importorskip("faiss")
    index, both = base / "g.idx", base / "both"
    shutil.copytree(base / "data" / "demo" / "query", both)
    done(base, "index", base / "crops", "--output", index, "--engine", kind)
    monkeypatch.setattr("processor.indexing.build_engine", lambda *args: pytest.fail("rebuilt"))
    assert "added: 12, replaced: 0, there already: 0" in done(base, "add", both, "--index", index)
    assert "added: 0, replaced: 0, there already: 12" in done(base, "add", both, "--index", index)
    for name in ("a.jpg", "../both/0007_c1s1_000090_00.jpg", base / "crops" / "below"):
        assert "removed: 1" in done(base, "remove", name, "--index", index)
    gallery = read_gallery(index)
    paths = [base / "crops" / f.path for f in gallery.files()]
    assert sorted(os.path.relpath(p, base) for p in paths) == sorted(
        ["crops/b $x_1$.jpg", *(f"both/{p.name}" for p in both.iterdir() if p.name != "0007_c1s1_000090_00.jpg")]
    )
    features = FeatureExtractor(base / "log" / "demo", device="cpu")(paths)
    np.testing.assert_allclose(gallery.features, features.numpy(), atol=1e-5)
    asked = paths[3]
    hits = listed(done(base, "ask", asked, "--index", index, "--top", 50))
    assert [s for s, _ in hits] == pytest.approx(sorted((features @ features[3]).tolist(), reverse=True), abs=6e-4)
    assert hits == listed(done(base, "ask", asked, "--index", index, "--top", 50, "--exact"))


@pytest.mark.parametrize("kind", ["exact", *ENGINES])
def test_numbers_of_pictures_are_never_used_again(base, kind):
    if kind != "exact":
        pytest.importorskip("faiss")
    index, people = base / "g.idx", sorted((base / "data" / "demo" / "query").iterdir())
    done(base, "index", base / "crops", "--output", index, "--engine", kind)
    done(base, "add", *people[:2], "--index", index)
    done(base, "remove", people[1], "--index", index)
    done(base, "add", *people[1:4], "--index", index)
    assert read_gallery(index).ids.tolist() == [0, 1, 2, 3, 5, 6, 7]
    for person in people[:4]:
        assert listed(done(base, "ask", person, "--index", index))[0] == (1.0, os.path.relpath(person, base / "crops"))


@pytest.mark.parametrize("kind", ["exact", *ENGINES])
def test_a_picture_that_changed_takes_the_place_of_the_old(base, kind):
    if kind != "exact":
        pytest.importorskip("faiss")
    index = base / "g.idx"
    done(base, "index", base / "crops", "--output", index, "--engine", kind)
    shutil.copy(base / "data" / "demo" / "query" / "0010_c3s1_000090_00.jpg", base / "crops" / "a.jpg")
    assert "added: 0, replaced: 1, there already: 2" in done(base, "add", base / "crops", "--index", index)
    hits = listed(done(base, "ask", base / "crops" / "a.jpg", "--index", index))
    assert hits[0] == (1.0, "a.jpg") and len(hits) == 3 and hits[1][0] < 1
    ids = read_gallery(index).ids
    assert ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize("case", ["gone", "a link"])
def test_pictures_beside_a_folder_that_is_gone_or_a_link_are_found(drawn, base, case):
    """Their paths begin with .., which leads elsewhere from the place that a link leads to."""
    (base / "deep" / "er").mkdir(parents=True)
    if case == "a link":
        (base / "crops").rename(base / "deep" / "er" / "crops")
        (base / "crops").symlink_to(base / "deep" / "er" / "crops")
    index, person = base / "g.idx", base / "data" / "demo" / "query" / "0007_c1s1_000090_00.jpg"
    done(base, "index", base / "crops", "--output", index)
    if case == "gone":
        shutil.rmtree(base / "crops")
    assert "added: 1" in done(base, "add", person, "--index", index)
    hits = listed(done(base, "ask", person, "--index", index, "--top", 1, "--output", base / "a.png"))
    assert hits == [(1.0, "../data/demo/query/0007_c1s1_000090_00.jpg")]
    gone = np.abs(cv2.imread(str(base / "a.png")).astype(int) - search_answer.GONE).max(2) == 0
    assert gone.sum() < 1000, "the hit was not found on the disk"


@pytest.mark.parametrize("kind", ["exact", *ENGINES])
def test_an_emptied_index_says_so_and_can_be_filled_again(base, kind):
    if kind != "exact":
        pytest.importorskip("faiss")
    index = base / "g.idx"
    done(base, "index", base / "crops", "--output", index, "--engine", kind)
    assert "removed: 3" in done(base, "remove", base / "crops", "--index", index)
    refused(search(base, "ask", base / "crops" / "a.jpg", "--index", index), "is empty; add pictures")
    assert "added: 1" in done(base, "add", base / "crops" / "a.jpg", "--index", index)
    assert listed(done(base, "ask", base / "crops" / "a.jpg", "--index", index)) == [(1.0, "a.jpg")]


def test_an_engine_that_is_lost_is_named_and_exact_search_goes_on(base):
    pytest.importorskip("faiss")
    index = base / "g.idx"
    done(base, "index", base / "crops", "--output", index, "--engine", "ivf")
    next(base.glob("g.idx.*.faiss")).unlink()
    refused(search(base, "ask", base / "crops" / "a.jpg", "--index", index), "is missing beside", "--exact")
    assert listed(done(base, "ask", base / "crops" / "a.jpg", "--index", index, "--exact"))[0][1] == "a.jpg"
    done(base, "index", base / "crops", "--output", index)
    assert listed(done(base, "ask", base / "crops" / "a.jpg", "--index", index))[0][1] == "a.jpg"


def test_an_engine_that_finds_nothing_is_no_traceback(base, monkeypatch):
    pytest.importorskip("faiss")
    done(base, "index", base / "crops", "--output", base / "g.idx", "--engine", "ivf")
    monkeypatch.setattr(galleries, "search_engine", lambda *args: (np.zeros((1, 3), "f4"), np.full((1, 3), -1)))
    refused(search(base, "ask", base / "crops" / "a.jpg", "--index", base / "g.idx"), "found nothing", "--exact")


def test_names_of_pictures_and_folders(base, index, monkeypatch):
    files, root = read_gallery(index).paths.tolist(), base / "crops"
    assert rows_named(files, root, "below") == rows_named(files, root, "below/") == [2]
    assert rows_named(files, root, str(root / "below" / "c.jpg")) == [2]
    assert rows_named(files, root, str(root)) == [0, 1, 2]
    assert rows_named(files, root, "belo") == rows_named(files, root, "a") == rows_named(files, root, "") == []
    monkeypatch.chdir(base)
    assert rows_named(files, root, "crops/a.jpg") == [0]


# ---- thresholds in the tool


def test_a_threshold_is_found_stored_and_used(base, index):
    shown = done(base, "threshold", "--index", index)
    extractor = FeatureExtractor(base / "log" / "demo", device="cpu")
    sides = [sorted((base / "data" / "demo" / f).glob("0*.jpg")) for f in ("query", "bounding_box_test")]
    query, gallery = (extractor(side) for side in sides)
    (qp, gp), (qc, gc) = ([[int(p.name[a:b]) for p in side] for side in sides] for a, b in ((0, 4), (6, 7)))
    same, others = pairs_by_hand(query, gallery, qp, gp, qc, gc)
    assert f"{len(same):,} pairs of one person" in shown and f"{len(others):,} pairs of different people" in shown
    stored = read_gallery(index).about["threshold"]
    assert stored["rule"] == "FPR 0.001" and stored["dataset"] == "demo"
    assert (np.array(others) >= stored["value"] + 1e-6).mean() <= 1e-3
    assert (np.array(others) >= stored["value"] - 2 / STEPS).mean() > 1e-3
    shown = done(base, "ask", base / "crops" / "a.jpg", "--index", index)
    marks = re.findall(r"^ *\d+ +(\S+)  (yes|no) ", shown, re.MULTILINE)
    assert len(marks) == 3 and all((float(s) >= stored["value"]) == (m == "yes") for s, m in marks)
    shown = done(base, "ask", base / "crops" / "a.jpg", "--index", index, "--threshold", "-1")
    assert shown.count(" yes ") == 3 and "as asked for" in shown
    assert "equal error rate" in done(base, "threshold", "--index", index, "--store", "eer").splitlines()[-1]
    assert read_gallery(index).about["threshold"]["rule"] == "equal error rate"


def test_a_threshold_stays_with_the_model_and_goes_with_another_flip(base, index):
    done(base, "threshold", "--index", index)
    done(base, "index", base / "crops", "--output", index)
    assert "threshold" in read_gallery(index).about
    done(base, "index", base / "crops", "--output", index, "--flip")
    assert "threshold" not in read_gallery(index).about


def test_a_threshold_of_a_folder_with_one_an_identity_takes_all_of_it(base, index):
    people = base / "people"
    for path in (base / "data" / "demo" / "bounding_box_train").iterdir():
        (people / path.name[:4]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, people / path.name[:4])
    shown = done(base, "threshold", people, "--index", index)
    assert "FPR 1e-3 is a guess" in shown and read_gallery(index).about["threshold"]["dataset"] == "people"
    positives, negatives = (int(n.replace(",", "")) for n in re.findall(r"([\d,]+) pairs of", shown)[:2])
    assert (positives, negatives) == (18 * 2 * 1, 18 * 18 - 18 * 3)  # 6 people, 3 cameras: 18 queries, 18 others


def test_one_person_alone_gives_no_threshold(base, index):
    alone = base / "alone" / "test"
    for number, path in enumerate(sorted((base / "data" / "demo" / "query").glob("0007*"))):
        (alone / "anna" / str(number)).mkdir(parents=True)
        shutil.copy(path, alone / "anna" / str(number))
    refused(search(base, "threshold", alone.parent, "--index", index), "of different people")


# ---- the picture


def frames(path: Path) -> dict[str, int]:
    """Pixels of the colours of frames."""
    picture = cv2.imread(str(path)).astype(int)
    colours = {"green": (26, 150, 65), "gray": (184, 184, 184), "dark": (64, 64, 64)}
    return {name: int((np.abs(picture - c[::-1]).max(2) < 8).sum()) for name, c in colours.items()}


def test_the_picture_frames_what_is_above_the_threshold(drawn, base, index):
    answers = {}
    for threshold in ("-1", "1.1"):
        output = base / f"{threshold}.png"
        done(base, "ask", base / "crops" / "a.jpg", "--index", index, "--threshold", threshold, "--output", output)
        answers[threshold] = frames(output)
    assert answers["-1"]["green"] > 3000 > 300 > answers["-1"]["gray"]
    assert answers["1.1"]["gray"] > 3000 > 300 > answers["1.1"]["green"]
    done(base, "ask", base / "crops" / "a.jpg", "--index", index, "--output", base / "none.png")
    assert frames(base / "none.png")["green"] < 300 and frames(base / "none.png")["dark"] > 3000


def test_names_that_no_font_has_are_drawn_without_a_warning(tmp_path, recwarn):
    Image.new("RGB", (16, 32)).save(path := tmp_path / "日本.png")
    draw_answer(tmp_path / "a.png", [str(path)], [Hit(path, "\udcff $a_$ 日本.png", 0.5, None)], "words")
    assert (tmp_path / "a.png").is_file() and not list(recwarn)


def test_a_picture_that_is_gone_leaves_a_gray_tile(drawn, base, index):
    shutil.copy(base / "crops" / "a.jpg", base / "asked.jpg")
    (base / "crops" / "a.jpg").unlink()
    shown = done(base, "ask", base / "asked.jpg", "--index", index)
    assert listed(shown)[0] == (1.0, "a.jpg") and (base / "answer_asked.png").is_file()


@pytest.mark.parametrize(("queries", "hits"), [(1, 1), (1, 10), (3, 11), (9, 250)])
def test_pictures_of_any_number_are_drawn_and_words_are_not_cut(drawn, tmp_path, hits, queries):
    Image.new("RGB", (16, 32), (9, 99, 199)).save(path := tmp_path / "x.png")
    some = [Hit(path, "x.png", 0.5, n % 2 == 0) for n in range(hits)]
    words = (
        "10 of 1,000,000 pictures, the most similar first; same person from 0.655 on (equal error rate on market1501)"
    )
    draw_answer(tmp_path / "a.png", [str(path)] * queries, some, words)
    picture = read_image(tmp_path / "a.png", *cv2.imread(str(tmp_path / "a.png")).shape[:2])
    assert (picture[:, -8:] > 250).all() and (picture[:, :8] > 250).all(), "something touches the border"
    assert picture.shape[1] > 700 and picture.shape[0] < 4000


def test_a_table_has_a_line_a_hit_with_its_mark():
    path = Path("x")
    known = hit_table([Hit(path, "a", 0.9, True), Hit(path, "b", -0.1, False)]).splitlines()
    assert known[1].split() == ["1", "0.900", "yes", "a"] and known[2].split() == ["2", "-0.100", "no", "b"]
    assert "same person" in known[0] and "same person" not in hit_table([Hit(path, "a", 0.9, None)])
