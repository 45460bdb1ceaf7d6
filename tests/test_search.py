"""The search for re-ranking parameters: what it finds, on whom, and that every output says on whom."""

from __future__ import annotations

import json
import shlex
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import program, refused, save_features, save_model

import utils.rerank
from datasets.base import heldout_split
from datasets.loaders import TestLoader
from datasets.make import make_dataset
from processor import do_train, extract_features
from processor.checkpoint import rebuild_model, save_checkpoint
from utils.metrics import evaluate_distance
from utils.rerank import k_reciprocal

TOOL = "tools/search_rerank_params.py"
GRID = ["--k1", "4", "2", "--k2", "1", "2", "--lambda-values", "0.6", "0"]


def found(directory: Path, split: str) -> dict:
    return json.loads((directory / "results" / f"rerank_search_{split}.json").read_text())


def one_by_one(query, gallery, ids, k1s, k2s, lambdas) -> dict[tuple, float]:
    """mAP in per cent of each combination, from the functions that do one at a time."""
    rows = [torch.nn.functional.normalize(x, dim=1) for x in (query, gallery)]
    return {c: 100 * evaluate_distance(k_reciprocal(*rows, *c), *ids).mAP for c in product(k1s, k2s, lambdas)}


@pytest.mark.parametrize("by", ["mAP", "rank1"])
def test_the_best_of_the_grid_is_found_and_every_score_is_that_of_the_single_functions(tmp_path, by):
    file = save_features(tmp_path / "some.npz")
    shown = program(TOOL, "--features", file, "--log-dir", tmp_path, "--by", by, *GRID)
    assert shown.returncode == 0, shown.stderr
    result = found(tmp_path / "features_some", "features")
    with np.load(file) as a:
        kept = a["gp"] >= 0
        ids = (a["qp"], a["gp"][kept], a["qc"], a["gc"][kept])
        features = torch.from_numpy(a["qf"]).float(), torch.from_numpy(a["gf"][kept]).float()
    expected = one_by_one(*features, *[ids], [2, 4], [1, 2], [0, 0.6]) | one_by_one(*features, ids, [20], [6], [0.3])
    got = {(row["k1"], row["k2"], row["lambda_value"]): row["mAP"] for row in result["rows"]}
    assert got == pytest.approx(expected, abs=1e-3)
    assert max(expected.values()) - min(expected.values()) > 1, "all combinations score alike: nothing is shown"
    assert result["best"][by] == max(row[by] for row in result["rows"])
    if by == "mAP":
        best = max(expected, key=expected.get)
        assert (result["best"]["k1"], result["best"]["k2"], result["best"]["lambda_value"]) == best
    assert result["defaults"]["mAP"] == got[20, 6, 0.3] and result["no_reranking"]["valid_queries"] == 12
    assert (result["queries"], result["gallery"], result["identities"], result["complete"]) == (12, 48, 12, True)
    for name in ("no re-ranking", "defaults"):
        assert sum(line.startswith(name) for line in shown.stdout.splitlines()) == 1


def test_the_defaults_are_tried_once_when_the_grid_has_them(tmp_path):
    file = save_features(tmp_path / "some.npz")
    asked = ["--k1", "20", "--k2", "6", "6", "--lambda-values", "0.3", "0.1"]
    assert program(TOOL, "--features", file, "--log-dir", tmp_path, *asked).returncode == 0
    result = found(tmp_path / "features_some", "features")
    assert [row["lambda_value"] for row in result["rows"]] == [0.1, 0.3] and result["combinations"] == 2


def test_held_out_identities_are_searched_and_the_command_reproduces_what_test_would_do(tiny):
    cfg = tiny.replace(holdout_ids=3)
    path = save_model(cfg)
    shown = program(TOOL, path, "--flip", *GRID)
    assert shown.returncode == 0, shown.stderr
    result = found(path.parent, "heldout")
    label = "3 held-out training identities of demo, not seen by the model, among 18 distractors"
    assert result["label"] == label and shown.stdout.count(f"searched on {label}") == 2
    assert (result["queries"], result["gallery"], result["identities"]) == (9, 9 + 18, 3)
    assert "6.0 images a person" in shown.stdout

    dataset = make_dataset(cfg)
    asked, among = heldout_split(dataset.heldout)
    among += [s._replace(pid=0) for s in dataset.train]
    query, gallery = (TestLoader(cfg, x, "x") for x in (asked, among))
    state = torch.load(path, weights_only=True)
    model = rebuild_model(state, path, cfg).to(memory_format=torch.channels_last)
    features = [extract_features(cfg, model, x, torch.device("cpu"), flip=True)[1] for x in (query, gallery)]
    ids = (query.pids, gallery.pids, query.camids, gallery.camids)
    expected = one_by_one(*features, ids, [2, 4], [1, 2], [0, 0.6])
    got = {(row["k1"], row["k2"], row["lambda_value"]): row["mAP"] for row in result["rows"]}
    assert {c: got[c] for c in expected} == pytest.approx(expected, abs=1e-3)

    assert result["test_command"] in shown.stdout.splitlines()
    assert "--flip" in result["test_command"] and "--rerank-note" not in result["test_command"]
    tested = program(*shlex.split(result["test_command"])[1:])
    assert tested.returncode == 0, tested.stderr
    values = json.loads((path.parent / "results" / "test_last_demo_cosine_flip_rerank.json").read_text())
    chosen = {name: values["settings"][name] for name in ("k1", "k2", "lambda_value")}
    assert chosen == {name: result["best"][name] for name in chosen}
    assert "last 3 of 6 identities" in values["note"] and "searched" not in values["note"]


def test_a_run_that_holds_out_trains_on_the_others_and_its_result_says_so(tiny):
    done = do_train(tiny.replace(holdout_ids=2, epochs=1, eval_first=False))
    assert set(done.labels) == {1, 2, 3, 4} and done.model.num_classes == 4
    note = json.loads((done.directory / "results" / "train.json").read_text())["note"]
    assert note == "trained without the last 2 of 6 identities; not comparable with published scores"
    shown = program(TOOL, "--log-dir", tiny.run.log_dir, *GRID)  # the newest run
    assert shown.returncode == 0 and note in shown.stdout
    assert found(done.directory, "heldout")["label"].startswith("2 held-out")


def test_a_search_on_the_test_split_says_so_everywhere_and_so_does_the_test_with_its_values(tiny):
    path = save_model(tiny)
    shown = program(TOOL, path, "--split", "test", *GRID)
    assert shown.returncode == 0, shown.stderr
    result = found(path.parent, "test")
    title, comment = (line for line in shown.stdout.splitlines() if line.startswith(("best k1", "# ")))
    for text in (title, comment, result["label"], result["test_command"]):
        assert "the test split of demo" in text
    assert (result["queries"], result["gallery"], result["identities"]) == (12, 25, 4)

    command = shlex.split(result["test_command"])[1:]
    tested = program(*command)
    note = "k1, k2 and lambda were searched on the test split of demo"
    assert f"note: {note}" in tested.stdout
    values = json.loads((path.parent / "results" / "test_last_demo_cosine_rerank.json").read_text())
    assert values["note"] == note
    assert values["scores"]["rerank"]["mAP"] == pytest.approx(result["best"]["mAP"], abs=1e-3)
    without = program(*command, "--no-rerank")  # the values play no part, so nothing is said of them
    assert "plain" in without.stdout and "searched" not in without.stdout


def test_a_search_on_training_identities_says_so(tiny):
    path = save_model(tiny.replace(holdout_ids=1))
    shown = program(TOOL, path, "--split", "train", "--train-split-ids", "2", "--no-distractors", *GRID)
    assert shown.returncode == 0, shown.stderr
    result = found(path.parent, "train")
    label = "2 training identities of demo, seen by the model"
    assert result["label"] == label and shown.stdout.count(f"searched on {label}") == 2
    assert (result["queries"], result["gallery"], result["identities"]) == (6, 6, 2)


def test_features_of_a_file_are_of_unknown_split_and_the_command_says_so(tmp_path):
    file = save_features(tmp_path / "some.npz")
    shown = program(TOOL, "--features", file, "--log-dir", tmp_path, *GRID)
    label = f"features of {file}, split unknown"
    result = found(tmp_path / "features_some", "features")
    assert result["label"] == label and shown.stdout.count(f"searched on {label}") == 3
    words = shlex.split(result["test_command"])
    assert words[:4] == ["python", "test.py", "CKPT", "--rerank"] and label in words[-1]


@pytest.mark.parametrize("stop_after", [0, 3])
def test_a_stop_keeps_what_was_found_and_says_that_it_is_incomplete(tmp_path, monkeypatch, stop_after):
    whole = utils.rerank.k_reciprocal_grid

    def stopped(*args, **options):
        for count, step in enumerate(whole(*args, **options)):
            if count == stop_after:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(utils.rerank, "k_reciprocal_grid", stopped)
    asked = ["--k1", "2", "20", "--k2", "1", "6", "--lambda-values", "0.3"]
    shown = program(TOOL, "--features", save_features(tmp_path / "some.npz"), "--log-dir", tmp_path, *asked)
    assert shown.returncode == 130 and "stopped" in shown.stderr
    if stop_after == 0:
        assert not (tmp_path / "features_some").exists()
        return
    result = found(tmp_path / "features_some", "features")
    assert (result["complete"], result["scored"], result["combinations"]) == (False, 3, 4)
    assert result["defaults"] is None and len(result["rows"]) == 3
    assert "INCOMPLETE, 3 of 4 combinations" in shown.stdout


def test_a_checkpoint_that_held_nobody_out_is_refused_with_the_mends(tiny):
    path = save_model(tiny)
    refused(program(TOOL, path, *GRID), "--holdout-ids 100", "--split train", "--split test")
    # held out now is not held out in training
    refused(program(TOOL, path, "--holdout-ids", "2", *GRID), "--holdout-ids 100", "--split train", "--split test")
    state = torch.load(path, weights_only=True)
    del state["config"]["holdout_ids"]  # as in a checkpoint that is older than the setting
    save_checkpoint(path, state)
    refused(program(TOOL, path, *GRID), "--holdout-ids 100")
    assert not (path.parent / "results").exists()


@pytest.mark.parametrize(
    "change",
    [["--holdout-ids", "3"], ["--holdout-ids", "0"], ["--split", "train", "--holdout-ids", "0"]],
)
def test_people_other_than_those_of_the_training_are_refused(tiny, change):
    refused(program(TOOL, save_model(tiny.replace(holdout_ids=2)), *change, *GRID), "--holdout-ids", "in training")


def test_people_of_another_dataset_are_refused_though_they_have_the_same_numbers(tiny):
    path = save_model(tiny.replace(holdout_ids=2))
    (Path(tiny.data.data_root) / "Market-1501").symlink_to(Path(tiny.data.data_root) / "demo")
    refused(program(TOOL, path, "--dataset", "market1501", *GRID), "--dataset", "in training")


def test_values_that_cannot_be_tried_are_refused(tmp_path):
    file = save_features(tmp_path / "some.npz")
    for bad in (["--k1", "0", "5"], ["--k2"], ["--lambda-values", "0.5", "1.5"], ["--train-split-ids", "0"]):
        refused(program(TOOL, "--features", file, "--log-dir", tmp_path, *bad), bad[0])


def test_a_checkpoint_and_features_or_weights_are_refused(tiny, tmp_path):
    file = save_features(tmp_path / "some.npz")
    refused(program(TOOL, "demo", "--features", file), "demo", "--features")
    refused(program(TOOL, "--weights", file), "--weights", "checkpoint")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"qc": None}, "qc"),
        ({"qf": np.zeros((12, 7), "f4")}, "(12, 7)"),
        ({"gc": np.zeros(7, int)}, "gc int64 (7,)"),
        ({"gf": np.full((54, 8), np.nan, "f4")}, "NaN"),
        ({"qp": np.full(12, 99)}, "no query has a match"),
        ({"qf": np.array(["words"])}, "qf <U5 (1,)"),
    ],
)
def test_features_that_do_not_fit_get_one_sentence(tmp_path, changes, word):
    file = save_features(tmp_path / "bad.npz", **changes)
    refused(program(TOOL, "--features", file, "--log-dir", tmp_path, *GRID), word)
    assert not (tmp_path / "features_bad").exists()


def test_a_file_that_is_no_npz_gets_one_sentence(tmp_path):
    (tmp_path / "text.npz").write_text("words")
    (tmp_path / "empty.npz").write_bytes(b"")
    np.save(tmp_path / "single.npy", np.zeros((3, 4)))
    whole = save_features(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for name in ("text.npz", "empty.npz", "single.npy", "cut.npz", "nowhere.npz"):
        refused(program(TOOL, "--features", tmp_path / name, "--log-dir", tmp_path), tmp_path / name, "qf (Q, D)")


def test_a_best_value_at_the_end_of_the_grid_is_pointed_out(tmp_path):
    features = save_features(tmp_path / "f.npz")
    arguments = [TOOL, "--features", features, "--log-dir", tmp_path, "--k2", "1", "--lambda-values", "0.3"]
    assert "best k1, 8, is at the end" in program(*arguments, "--k1", "3", "8").stdout
    assert "at the end" not in program(*arguments, "--k1", "8").stdout  # nothing else was tried
    assert "at the end" not in program(*arguments, "--k1", "3", "8", "12", "40").stdout
