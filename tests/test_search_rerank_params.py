"""The search for re-ranking parameters: what it finds, on whom, and that every output says on whom."""

import json
import shlex
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import done, program, refused, save_features, save_model

import utils.rerank
from processor.checkpoint import save_checkpoint
from utils.metrics import evaluate_distance
from utils.rerank import k_reciprocal

TOOL = "tools/search_rerank_params.py"
GRID = ["--k1s", "4", "2", "--k2s", "1", "2", "--lambda-values", "0.6", "0"]


def found(directory: Path, split: str) -> dict:
    return json.loads((directory / "results" / f"rerank_search_{split}.json").read_text())


def one_by_one(query, gallery, ids, k1s, k2s, lambdas) -> dict[tuple, float]:
    """mAP in percent of each combination, from the functions that do one at a time."""
    rows = [torch.nn.functional.normalize(x, dim=1) for x in (query, gallery)]
    return {c: 100 * evaluate_distance(k_reciprocal(*rows, *c), *ids).mAP for c in product(k1s, k2s, lambdas)}


def test_the_best_of_the_grid_is_found_and_every_score_is_that_of_the_single_functions(tmp_path):
    file = save_features(tmp_path / "some.npz")
    with np.load(file) as a:
        kept = a["gp"] >= 0
        ids = (a["qp"], a["gp"][kept], a["qc"], a["gc"][kept])
        features = torch.from_numpy(a["qf"]).float(), torch.from_numpy(a["gf"][kept]).float()
    expected = one_by_one(*features, ids, [2, 4], [1, 2], [0, 0.6]) | one_by_one(*features, ids, [9], [6], [0.3])
    assert max(expected.values()) - min(expected.values()) > 1, "all combinations score alike: nothing is shown"
    for by in ("mAP", "rank1"):
        shown = done(TOOL, "--features", file, "--log-dir", tmp_path, "--by", by, "--k1", "9", *GRID)
        result = found(tmp_path / "features_some", "features")
        got = {(row["k1"], row["k2"], row["lambda_value"]): row["mAP"] for row in result["rows"]}
        assert got == pytest.approx(expected, abs=1e-3)
        assert result["best"][by] == max(row[by] for row in result["rows"])
        assert result["current"]["mAP"] == got[9, 6, 0.3] and result["no_reranking"]["valid_queries"] == 12
        assert (result["queries"], result["gallery"], result["identities"], result["complete"]) == (12, 48, 12, True)
        for name in ("no re-ranking", "current"):
            assert sum(line.startswith(name) for line in shown.splitlines()) == 1
    label = f"features of {file}, split unknown"
    assert result["label"] == label and label in shown and label in shlex.split(result["test_options"])[-1]
    shown = done(TOOL, "--features", file, "--log-dir", tmp_path, "--k1s", "3", "8", "--k2s", "1")
    assert "the best k1" in shown and "at the end" in shown


def test_held_out_identities_are_searched_and_the_options_reproduce_what_test_would_do(tiny):
    cfg = tiny.replace(holdout_ids=3)
    path = save_model(cfg)
    shown = done(TOOL, path, "--flip", *GRID)
    result = found(path.parent, "heldout")
    label = "3 held-out training identities of demo, not seen by the model, among 18 distractors"
    assert result["label"] == label and shown.count(f"searched on {label}") == 2
    assert (result["queries"], result["gallery"], result["identities"]) == (9, 9 + 18, 3)
    assert "6.0 images per person" in shown
    assert result["test_options"] in shown.splitlines() and "--rerank-note" not in result["test_options"]
    done("test.py", path, "--flip", *shlex.split(result["test_options"]))
    values = json.loads((path.parent / "results" / "test_last_demo_cosine_flip_rerank.json").read_text())
    chosen = {name: values["settings"][name] for name in ("k1", "k2", "lambda_value")}
    assert chosen == {name: result["best"][name] for name in chosen}
    assert "last 3 of 6 identities" in values["note"] and "searched" not in values["note"]


def test_a_search_on_the_test_split_or_seen_people_says_so_everywhere(tiny):
    path = save_model(tiny)
    shown = done(TOOL, path, "--split", "test", "--flip", *GRID)
    result = found(path.parent, "test")
    title, comment = (line for line in shown.splitlines() if line.startswith(("best k1", "# ")))
    for text in (title, comment, result["label"], result["test_options"]):
        assert "the test split of demo" in text
    assert (result["queries"], result["gallery"], result["identities"]) == (12, 25, 4)
    note = "k1, k2 and lambda were searched on the test split of demo"
    assert f"note: {note}" in done("test.py", path, "--flip", *shlex.split(result["test_options"]))
    values = json.loads((path.parent / "results" / "test_last_demo_cosine_flip_rerank.json").read_text())
    assert values["note"] == note
    assert values["scores"]["flip+rerank"]["mAP"] == pytest.approx(result["best"]["mAP"], abs=1e-3)

    path = save_model(tiny.replace(holdout_ids=1))
    shown = done(TOOL, path, "--split", "train", "--train-split-ids", "2", "--no-distractors", *GRID)
    result = found(path.parent, "train")
    label = "2 training identities of demo, seen by the model"
    assert result["label"] == label and shown.count(f"searched on {label}") == 2
    assert (result["queries"], result["gallery"], result["identities"]) == (6, 6, 2)


def test_a_stop_keeps_what_was_found_and_says_that_it_is_incomplete(tmp_path, monkeypatch):
    whole, stop_after = utils.rerank.k_reciprocal_grid, 0

    def stopped(*args, **options):
        for count, step in enumerate(whole(*args, **options)):
            if count == stop_after:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(utils.rerank, "k_reciprocal_grid", stopped)
    for stop_after in (0, 1):  # the first grid, of the current settings, has one step
        shown = program(TOOL, "--features", save_features(tmp_path / "some.npz"), "--log-dir", tmp_path, *GRID)
        assert shown.returncode == 130 and "stopped" in shown.stderr
        assert (tmp_path / "features_some").exists() == (stop_after > 0)
    result = found(tmp_path / "features_some", "features")
    assert not result["complete"] and len(result["rows"]) == 2 and "INCOMPLETE" in shown.stdout


def test_people_other_than_those_of_the_training_are_refused(tiny):
    path = save_model(tiny)
    refused(program(TOOL, path, *GRID), "--holdout-ids 100", "--split train", "--split test")
    # held out now is not held out in training
    refused(program(TOOL, path, "--holdout-ids", "2", *GRID), "--holdout-ids 100", "--split train", "--split test")
    state = torch.load(path, weights_only=True)
    del state["config"]["holdout_ids"]  # as in a checkpoint that is older than the setting
    save_checkpoint(path, state)
    refused(program(TOOL, path, *GRID), "--holdout-ids 100")
    path = save_model(tiny.replace(holdout_ids=2))
    (Path(tiny.data.data_root) / "Market-1501").symlink_to(Path(tiny.data.data_root) / "demo")
    # market1501: other people, though they have the same numbers
    for change in (["--holdout-ids", "3"], ["--split", "train", "--holdout-ids", "0"], ["--dataset", "market1501"]):
        refused(program(TOOL, path, *change, *GRID), "--holdout-ids", "--dataset", "in training")
    assert not (path.parent / "results").exists()
