from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tree

from config import Config
from datasets import DATASETS, ReIDDataset, Sample, make_dataset, make_loaders
from datasets.base import SPAN, cut_test, cut_train, heldout_split, label_map, last_identities
from datasets.demo import demo
from datasets.make import make_test_set, place, refuse_another_split, short_name
from datasets.market1501 import market1501
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def touch(base: Path, names: dict[str, list[str]]) -> None:
    for folder, files in names.items():
        (base / folder).mkdir(parents=True)
        for file in files:
            (base / folder / file).write_bytes(b"")


def market_tree(base: Path) -> None:
    touch(
        base,
        {
            "bounding_box_train": ["0007_c3s3_077419_03.jpg", "0002_c1s1_000451_03.jpg", "0002_c2s1_000451_03.jpg.jpg"],
            "query": ["0001_c1s1_001051_00.jpg", "readme.txt"],
            "bounding_box_test": [
                "0000_c1s1_000151_01.jpg",
                "-1_c1s1_000401_03.jpg",
                "0001_c6s4_001877_01.jpg.jpg",
                "Thumbs.db",
                "0001_c6s4_001877_01.txt",
            ],
        },
    )


def test_market_names_junk_and_distractors(tmp_path):
    market_tree(tmp_path / "Market-1501-v15.09.15")
    with pytest.warns(UserWarning):
        dataset = market1501(tmp_path)
    assert [(s.pid, s.camid) for s in dataset.train] == [(2, 1), (2, 2), (7, 3)]
    assert [(s.pid, s.camid) for s in dataset.query] == [(1, 1)]
    assert [(s.pid, s.camid) for s in dataset.gallery] == [(0, 1), (1, 6)]


@pytest.mark.parametrize("folder", ["Market-1501-v15.09.15", "market1501", "."])
def test_market_is_found_under_its_usual_names(tmp_path, folder):
    market_tree(tmp_path / folder)
    with pytest.warns(UserWarning):
        assert len(market1501(tmp_path).train) == 3


def test_counts_that_are_not_the_published_ones_are_warned_about(tmp_path):
    market_tree(tmp_path / "Market-1501")
    with pytest.warns(UserWarning) as caught:
        market1501(tmp_path)
    assert [word in str(w.message) for w, word in zip(caught, ("12936", "3368", "15913"), strict=True)] == [True] * 3


def test_missing_root_missing_folder_and_empty_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"--data-root.*REID_DATA"):
        market1501(tmp_path / "nowhere")
    touch(tmp_path / "Market-1501", {"bounding_box_train": ["0002_c1s1_000451_03.jpg"], "bounding_box_test": []})
    with pytest.raises(UserError, match=r"Market-1501/query is missing"):
        market1501(tmp_path)
    (tmp_path / "Market-1501" / "query").mkdir()
    with pytest.raises(UserError, match=r"query holds no image"):
        market1501(tmp_path)


@pytest.mark.skipif(
    not (ROOT / "data" / "Market-1501-v15.09.15").is_dir(), reason="the real Market-1501 is not under data/"
)
def test_real_market_has_the_published_counts(recwarn):
    dataset = market1501(ROOT / "data")
    assert (len(dataset.train), len({s.pid for s in dataset.train})) == (12936, 751)
    assert (len(dataset.query), len({s.pid for s in dataset.query})) == (3368, 750)
    assert (len(dataset.gallery), len({s.pid for s in dataset.gallery} - {0})) == (15913, 750)
    assert {s.camid for s in dataset.gallery} == {1, 2, 3, 4, 5, 6}
    assert not recwarn.list


def test_labels_follow_sorted_identities_not_file_order():
    assert label_map([Sample("b", 30, 1), Sample("a", 4, 1), Sample("c", 30, 2)]) == {4: 0, 30: 1}


def test_first_identities_cut_both_sides_and_say_so(tree):
    whole = make_dataset(Config(dataset="demo", data_root=str(tree)))
    assert whole.note == ""
    cut = make_dataset(Config(dataset="demo", data_root=str(tree), train_ids=3, test_ids=2))
    assert {s.pid for s in cut.train} == {1, 2, 3}
    assert {s.pid for s in cut.query} == {s.pid for s in cut.gallery} == {7, 8}
    assert "first 3 of 6" in cut.note and "first 2 of 4" in cut.note and "not comparable" in cut.note
    assert make_dataset(Config(dataset="demo", data_root=str(tree), train_ids=99)).note == ""
    with pytest.raises(UserError, match="--train-ids"):
        make_dataset(Config(dataset="demo", data_root=str(tree), train_ids=1))


def test_held_out_identities_are_the_last_and_never_appear_in_training(tiny):
    loaders = make_loaders(tiny.replace(holdout_ids=2))
    dataset = loaders.dataset
    assert {s.pid for s in dataset.heldout} == {5, 6} and len(dataset.heldout) == 12
    assert {s.pid for s in dataset.train} == set(loaders.labels) == {1, 2, 3, 4} and len(loaders.labels) == 4
    drawn = {dataset.train[i].pid for indices in loaders.train.sampler.epoch(0) for i in indices}
    assert drawn == {1, 2, 3, 4}
    assert not {s.path for s in dataset.train} & {s.path for s in dataset.heldout}
    assert "without the last 2 of 6 identities" in dataset.note and "not comparable" in dataset.note
    assert "heldout      12 images     2 identities   3 cameras" in dataset.describe()
    assert "heldout" not in make_dataset(tiny).describe() and make_dataset(tiny).heldout == []


def test_holding_out_comes_before_the_cut_to_the_first_identities(tiny):
    cut = make_dataset(tiny.replace(holdout_ids=2, train_ids=3))
    assert ({s.pid for s in cut.train}, {s.pid for s in cut.heldout}) == ({1, 2, 3}, {5, 6})
    assert "last 2 of 6" in cut.note and "first 3 of 4" in cut.note and cut.note.count("not comparable") == 1
    assert {s.pid for s in make_dataset(tiny.replace(holdout_ids=2, train_ids=5)).train} == {1, 2, 3, 4}


@pytest.mark.parametrize("count", [5, 6, 700])
def test_too_many_held_out_identities_are_refused(tiny, count):
    with pytest.raises(UserError, match=rf"--holdout-ids {count} of 6 .* hold out 4 at most"):
        make_dataset(tiny.replace(holdout_ids=count))
    assert len({s.pid for s in make_dataset(tiny.replace(holdout_ids=4)).train}) == 2


def test_the_held_out_split_asks_once_an_identity_and_camera_and_every_query_has_a_match():
    seen = {"c": (1, 1), "a": (1, 1), "b": (1, 1), "e": (1, 2), "d": (1, 2),  # queries a and d
            "f": (2, 1), "g": (2, 1), "h": (2, 3),  # f; h alone under its camera stays as its match
            "i": (3, 1), "j": (3, 1)}  # one camera only: distractors  # fmt: skip
    samples = [Sample(path, *ids) for path, ids in seen.items()]
    query, gallery = heldout_split(samples)
    assert [s.path for s in query] == ["a", "d", "f"]
    assert [s.path for s in gallery] == ["b", "c", "e", "g", "h", "i", "j"]
    for q in query:
        assert any(g.pid == q.pid and g.camid != q.camid for g in gallery)
    with pytest.raises(UserError, match="none of 1 training identities"):
        heldout_split([s for s in samples if s.pid == 3])


def test_last_identities_follow_the_order_of_labels_and_none_is_none():
    samples = [Sample("a", 30, 1), Sample("b", 4, 1), Sample("c", 100, 2), Sample("d", 30, 2)]
    assert [s.path for s in last_identities(samples, 2)] == ["a", "c", "d"]
    assert last_identities(samples, 9) == samples and last_identities(samples, 0) == []


def test_demo_renders_itself_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("datasets.demo.render_demo", lambda base: made.append(write_tree(base)))
    assert len(demo(tmp_path).train) == len(demo(tmp_path).train) == 36
    assert len(made) == 1


def test_loaders_give_labels_that_belong_to_the_images(tiny):
    loaders = make_loaders(tiny)
    assert loaders.labels == {pid: pid - 1 for pid in range(1, 7)}
    chosen = list(loaders.train.sampler.epoch(0))
    for indices, (images, labels) in zip(chosen, loaders.train.epoch(0, torch.device("cpu")), strict=True):
        assert images.shape == (8, 3, 32, 16) and images.dtype == torch.float32
        assert labels.tolist() == [loaders.dataset.train[i].pid - 1 for i in indices]


def test_an_epoch_can_be_entered_at_any_step(tiny):
    device = torch.device("cpu")
    whole = list(make_loaders(tiny).train.epoch(2, device))
    rest = list(make_loaders(tiny).train.epoch(2, device, first_step=2))
    assert len(rest) == len(whole) - 2
    for (a, x), (b, y) in zip(whole[2:], rest, strict=True):
        assert torch.equal(a, b) and torch.equal(x, y)


def test_the_test_loader_gives_every_image_once_in_order(tiny):
    gallery = make_loaders(tiny).gallery
    batches = list(gallery.batches(torch.device("cpu")))
    assert sum(map(len, batches)) == len(gallery.samples) == 25 and len(batches) == len(gallery) == 2
    assert np.array_equal(gallery.pids, [s.pid for s in gallery.samples])


# ---- several datasets, and one to test on


def tree_of(root: Path, name: str, seed: int) -> str:
    """A tiny set of its own at root/name, as --dataset takes it: 6 training and 4 test identities."""
    return str(write_tree(root / name, images=2 + seed))


def test_joint_training_keeps_identities_and_cameras_apart_and_tests_on_the_first(tiny, tmp_path):
    first, second = tree_of(tmp_path, "one", 0), tree_of(tmp_path, "two", 1)
    joint = make_dataset(tiny.replace(dataset=f"{first}+{second}"))
    alone, other = (make_dataset(tiny.replace(dataset=x)) for x in (first, second))
    assert joint.name == "one+two" and len(joint.train) == len(alone.train) + len(other.train) == 36 + 54
    assert {s.pid for s in joint.train} == {*range(1, 7), *range(SPAN + 1, SPAN + 7)}
    assert {s.camid for s in joint.train} == {1, 2, 3, SPAN + 1, SPAN + 2, SPAN + 3}
    assert len(label_map(joint.train)) == 12 and label_map(joint.train)[SPAN + 1] == 6
    assert joint.query == alone.query and joint.gallery == alone.gallery
    for names in (f"{first}+{first}/", f"{first}+", f"+{first}", "+"):
        with pytest.raises(UserError, match="names nothing, or the same twice"):
            make_dataset(tiny.replace(dataset=names))
    with pytest.raises(UserError, match="only one dataset is tested on"):
        make_dataset(tiny.replace(test_dataset=f"{first}+{second}"))


def test_labels_of_a_joint_set_belong_to_the_images(tiny, tmp_path):
    cfg = tiny.replace(dataset=f"{tree_of(tmp_path, 'one', 0)}+{tree_of(tmp_path, 'two', 1)}")
    train = make_loaders(cfg).train
    for sample, label in zip(train.samples, train.labels.tolist(), strict=True):
        assert label == sample.pid - 1 if "/one/" in sample.path else sample.pid - SPAN + 5


def test_the_test_side_may_be_that_of_another_dataset(tiny, tmp_path):
    first, second = tree_of(tmp_path, "one", 0), tree_of(tmp_path, "two", 1)
    crossed = make_dataset(tiny.replace(dataset=first, test_dataset=second))
    assert crossed.name == "one, tested on two"
    assert {Path(s.path).parents[1].name for s in crossed.train} == {"one"}
    assert {Path(s.path).parents[1].name for s in crossed.query + crossed.gallery} == {"two"}
    alone = make_test_set(tiny.replace(dataset="gone", test_dataset=second, test_ids=2))
    assert alone.train == [] and {s.pid for s in alone.query} == {7, 8} and "first 2 of 4" in alone.note


def test_holding_out_and_cutting_a_joint_set_follow_the_order_of_labels(tiny, tmp_path):
    both = f"{tree_of(tmp_path, 'one', 0)}+{tree_of(tmp_path, 'two', 1)}"
    joint = make_dataset(tiny.replace(dataset=both, holdout_ids=2, train_ids=7))
    assert {s.pid for s in joint.heldout} == {SPAN + 5, SPAN + 6}
    assert {s.pid for s in joint.train} == {*range(1, 7), SPAN + 1}


@pytest.mark.parametrize(("name", "hint"), [("market", "market1501"), ("msmt", "msmt17"), ("xyz", "the names are")])
def test_an_unknown_dataset_is_refused_with_the_names_near_it(tiny, name, hint):
    with pytest.raises(UserError, match=rf"^'{name}' is neither .*{hint}"):
        make_dataset(tiny.replace(dataset=name))
    with pytest.raises(UserError, match=rf"^'{name}' is neither"):
        make_dataset(tiny.replace(dataset=f"demo+{name}"))


def test_own_pictures_are_all_trained_on_when_the_test_is_elsewhere(tiny, tmp_path):
    for name in ("mine", "yours"):
        for pid in range(6):
            for number in range(2):
                path = tmp_path / name / f"{name}{pid}" / f"{number}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    mine, yours = str(tmp_path / "mine"), str(tmp_path / "yours")
    assert len({s.pid for s in make_dataset(tiny.replace(dataset=mine)).train}) < 6
    crossed = make_dataset(tiny.replace(dataset=mine, test_dataset=yours))
    assert len({s.pid for s in crossed.train}) == 6 and len(crossed.train) == 12
    assert crossed.called(crossed.query[0].pid).startswith("yours") and not crossed.cameras
    assert "cameras unknown" in crossed.describe()
    assert crossed.query == make_dataset(tiny.replace(dataset=yours)).query
    same = make_dataset(tiny.replace(dataset=mine, test_dataset=f"{mine}/"))
    assert not {s.pid for s in same.train} & {s.pid for s in same.query}


def test_a_dataset_has_one_place_however_it_is_written_and_a_name_for_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.1").mkdir()
    assert len({place(name) for name in ("v.1", "./v.1", "v.1/", str(tmp_path / "v.1"), "v.1/../v.1")}) == 1
    assert place("market1501") == short_name("market1501") == "market1501"
    assert [short_name(name) for name in ("v.1/", "./v.2", "a/b.csv", ".")] == ["v.1", "v.2", "b.csv", tmp_path.name]


@pytest.mark.parametrize("change", [{"split_seed": 1}, {"test_share": 0.3}])
def test_another_split_of_the_trained_dataset_is_refused_and_one_of_another_dataset_is_not(tiny, change):
    trained, drawn = tiny.replace(dataset="a+b"), ReIDDataset("b", drawn=True)
    with pytest.raises(UserError, match=r"trained on b with --test-share 0\.5 --split-seed 0; .*leave these settings"):
        refuse_another_split(trained.replace(test_dataset="b", **change), trained, drawn)
    for spelling in ("./b", "c/../b", os.path.abspath("b")):
        with pytest.raises(UserError, match="leave these settings"):
            refuse_another_split(trained.replace(test_dataset=spelling, **change), trained, drawn)
    refuse_another_split(trained.replace(test_dataset="c", **change), trained, drawn)
    refuse_another_split(trained, trained, drawn)
    refuse_another_split(trained.replace(test_dataset="b", **change), trained, ReIDDataset("b"))  # a split of its own
    with pytest.raises(UserError, match="trained on all of b"):
        refuse_another_split(trained.replace(test_dataset="b"), trained.replace(test_dataset="c"), drawn)


def test_a_set_without_a_side_says_which_setting_gives_one():
    person, nobody = [Sample("a", 1, 1), Sample("b", 2, 1)], ReIDDataset("none")
    with pytest.raises(UserError, match=r"holds no test split.*--test-dataset"):
        cut_test(ReIDDataset("synthetic", train=person), 0)
    with pytest.raises(UserError, match="nothing to train on"):
        cut_train(ReIDDataset("partial", query=person, gallery=person), 0)
    with pytest.raises(UserError, match="fewer than two identities"):
        cut_train(replace(nobody, train=person[:1]), 0)


def test_notes_of_both_sides_are_one_sentence_with_its_warning_once():
    assert ReIDDataset("whole").note == ""
    both = ReIDDataset("cut", train_note="trained on few", test_note="tested on few")
    assert both.note == "trained on few; tested on few; not comparable with published scores"


def test_every_name_is_a_dataset_or_an_error_with_its_tree(tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in set(DATASETS) - {"demo"}:
        with pytest.raises(UserError) as error:
            make_dataset(tiny.replace(dataset=name, data_root=str(tmp_path / "empty")))
        message = str(error.value)
        assert "--data-root" in message and "REID_DATA" in message and len(message.splitlines()) > 2, name


def test_the_page_on_datasets_names_every_one():
    table = (ROOT / "docs" / "datasets.md").read_text()
    first_cells = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    assert {name for cell in first_cells for name in re.findall("`(.+?)`", cell)} - {"--dataset"} == set(DATASETS)
