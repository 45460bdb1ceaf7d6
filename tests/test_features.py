"""Features in files: written a batch at a time, in parts, read back, and scored with every setting of the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import done, program, refused, save_features, save_model

from config import Config
from config.cli import parse_train
from datasets import ReIDDataset, Sample
from datasets.loaders import TestLoader, make_test_loaders
from datasets.make import make_dataset
from model import make_model
from processor import extract_features
from processor.evaluate import rank1_interval, resolve_protocol, score_features, score_values
from processor.test import parse_test
from tools.extract_features import write_features
from tools.score_features import ARRAYS, join_parts, part_name, read_features
from utils.errors import UserError
from utils.expansion import augment_gallery, expand_queries
from utils.files import write_rows
from utils.metrics import evaluate, evaluate_distance
from utils.protocols import pool_queries
from utils.rerank import k_reciprocal

CPU = torch.device("cpu")
EXTRACT, SCORE = "tools/extract_features.py", "tools/score_features.py"


@pytest.fixture
def gallery(tiny: Config) -> TestLoader:
    return make_test_loaders(tiny, make_dataset(tiny))[2]


@pytest.fixture
def stored(tmp_path: Path):
    return read_features(save_features(tmp_path / "f.npz"))


def by_settings(stored, **settings):
    return score_features(Config(**settings), {"plain": (stored.query, stored.gallery)}, stored.ids)


# ---- written and read


def test_parts_of_a_split_are_written_and_joined_to_what_one_process_extracts(tiny, gallery, tmp_path):
    torch.manual_seed(0)
    model = make_model(tiny, 3).eval()
    expected = extract_features(tiny, model, gallery, CPU, flip=True)[1].numpy()
    for parts in (1, 2, 7):
        for part in range(1, parts + 1):
            path = tmp_path / part_name("gf", part, parts)
            write_features(tiny, path, model, gallery.part(part - 1, parts), CPU, flip=True)
        join_parts(tmp_path, "gf")
        assert [p.name for p in tmp_path.glob("gf*")] == ["gf.npy"]
        np.testing.assert_allclose(np.load(tmp_path / "gf.npy"), expected, rtol=1e-3, atol=1e-5)


def test_a_directory_reads_as_the_npz_does_and_is_memory_mapped(tmp_path, stored):
    with np.load(tmp_path / "f.npz") as arrays:
        kept = arrays["gp"] != -1
        for name in ARRAYS:
            rows = arrays[name][kept] if name.startswith("g") else arrays[name]
            write_rows(tmp_path / "d" / f"{name}.npy", len(rows), [rows])
    again = read_features(tmp_path / "d")
    assert torch.equal(again.query, stored.query) and torch.equal(again.gallery, stored.gallery)
    assert all(np.array_equal(a, b) for a, b in zip(again.ids, stored.ids, strict=True))
    assert len(stored.gallery) == 48 and -1 not in stored.ids[1]  # junk is dropped
    assert "gf.npy" in Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else True
    expected = by_settings(stored, rerank=True, k1=4, k2=2)
    found = by_settings(again, rerank=True, k1=4, k2=2)
    assert score_values(found.scores) == score_values(expected.scores)


# ---- scored


def test_the_scores_are_those_of_the_single_functions(stored):
    q, g, ids = stored.query, stored.gallery, stored.ids
    result = by_settings(stored, query_expansion=3, augmentation_k=2, expansion_alpha=1.0, rerank=True, k1=4, k2=2)
    assert list(result.scores) == ["plain", "dba+qe", "dba+qe+rerank"]
    augmented = augment_gallery(g, 2, 1.0)
    expanded = expand_queries(q, augmented, 3, 1.0)
    assert result.scores["plain"].mAP == evaluate(q, g, *ids).mAP
    assert result.scores["dba+qe"].mAP == evaluate(expanded, augmented, *ids).mAP
    expected = evaluate_distance(k_reciprocal(expanded, augmented, 4, 2, metric="cosine"), *ids)
    assert result.scores["dba+qe+rerank"].mAP == expected.mAP
    assert list(by_settings(stored, query_expansion=3).scores) == ["plain", "qe"]
    assert list(by_settings(stored, augmentation_k=3).scores) == ["plain", "dba"]

    ids = (*ids[:2], ids[2] + 1, ids[3])  # queries under a gallery camera, so that there is something to pool
    result = score_features(Config(protocol="multi_query", query_expansion=2), {"plain": (q, g)}, ids)
    pooled = pool_queries(q, g, *ids)
    assert result.scores["plain"].mAP == evaluate(pooled, g, *ids).mAP != evaluate(q, g, *ids).mAP
    assert result.scores["qe"].mAP == evaluate(expand_queries(pooled, g, 2), g, *ids).mAP


def test_error_rates_are_those_of_cosine_whatever_the_metric(stored):
    expected = evaluate(stored.query, stored.gallery, *stored.ids, roc=True)
    for metric in ("cosine", "euclidean"):
        found = by_settings(stored, metric=metric, roc=True).scores["plain"]
        assert found.roc.tpr(1e-2) == expected.roc.tpr(1e-2)
        assert (found.mAP == expected.mAP) == (metric == "cosine")


def test_few_queries_give_the_interval_of_rank_1():
    # Wilson's intervals of Brown, Cai and DasGupta's formula, by hand: 9 of 11, all of 4, none of 1, 200 queries
    cases = {(11, 900 / 11): (52, 95), (4, 100.0): (51, 100), (1, 0.0): (0, 79), (199, 50.0): (43, 57)}
    for (number, share), (low, high) in cases.items():
        line = rank1_interval({"plain": {"valid_queries": number, "rank1": share}, "flip": {}})
        assert f"{number} quer" in line and line.endswith(f"{low} to {high})") and f"{share:.0f} ± " in line
    assert rank1_interval({"plain": {"valid_queries": 200, "rank1": 50.0}}) == ""


# ---- the programs


def test_extract_in_parts_then_score_gives_what_test_py_gives(tiny, tmp_path):
    path = save_model(tiny)
    out = tmp_path / "out"
    for part in ("2/3", "1/3", "3/3"):
        shown = done(EXTRACT, path, "--part", part, "--output", out, "--flip", "--test-ids", "3")
    assert "(flip" in shown
    refused(program(EXTRACT, path, "--part", "1/3", "--output", out), out, "flip")
    shown = done(SCORE, out, "--rerank", "--roc", "--output", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    done("test.py", path, "--flip", "--rerank", "--test-ids", "3")
    file = path.parent / "results" / "test_last_demo_cosine_3ids_flip_rerank.json"
    expected = json.loads(file.read_text())["scores"]
    assert list(scores["scores"]) == ["flip", "flip+rerank"] and "9 queries: flip Rank-1" in shown
    for name, row in scores["scores"].items():
        assert row["mAP"] == pytest.approx(expected[name]["mAP"], abs=1e-3)
        assert ("tpr@1e-02" in row) == (name == "flip")  # a re-ranked distance is no threshold for a pair
    assert "not comparable" in scores["note"] and "not comparable" in shown  # the note of the cut set
    for part in (["--part", "1/2"], []):  # features written whole replace earlier parts
        done(EXTRACT, path, "--output", tmp_path / "whole", *part)
    assert not list((tmp_path / "whole").glob("*of*"))
    assert len(read_features(tmp_path / "whole").gallery) == 25


def test_bad_input_of_the_programs_gets_a_sentence(tiny, tmp_path):
    path = save_model(tiny)
    for part in ("0/2", "3/2", "1", "a/b", "1/0", "-1/2"):
        refused(program(EXTRACT, path, f"--part={part}"), "--part", part)
    refused(program(EXTRACT, path, "--part", "13/13"), "--part 13/13", "12 images")
    refused(program("get_vis_result.py", path, "--protocol", "vehicle_id"), "vehicle_id")
    refused(program(SCORE), "name the features")
    refused(program(SCORE, tmp_path), tmp_path, "qf (Q, D)")
    for changes, word in (
        ({"qc": None}, "qc"),
        ({"gp": np.arange(3)}, "gp int64 (3,)"),
        ({"qf": np.zeros((12, 7), "f4")}, "(12, 7)"),
        ({"qf": np.array(["words"])}, "qf <U5 (1,)"),
        ({"qf": np.full((12, 8), np.nan)}, "12 of 12 query features"),
        ({"qp": np.full(12, 99)}, "no query has a match"),
    ):
        refused(program(SCORE, save_features(tmp_path / "bad.npz", **changes)), word)
    (tmp_path / "text.npz").write_text("words")
    np.save(tmp_path / "single.npy", np.zeros((3, 4)))
    whole = save_features(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez_compressed(tmp_path / "bomb.npz", qf=np.zeros((100_000, 64), "f4"))
    for name in ("text.npz", "single.npy", "cut.npz", "nowhere.npz", "bomb.npz"):
        refused(program(SCORE, tmp_path / name), tmp_path / name, "qf (Q, D)")


# ---- inference and protocols


def test_features_follow_the_order_of_the_files(tiny, gallery):
    torch.manual_seed(0)
    cfg = tiny.replace(backbone="resnet18")
    model = make_model(cfg, 6).train()
    plain, flipped = extract_features(cfg, model, gallery, CPU, flip=True)
    assert not model.training and plain.shape == flipped.shape == (25, 512) and plain.dtype == torch.float32
    images = torch.cat(list(gallery.batches(CPU)))
    with torch.no_grad():
        one_by_one = torch.cat([model(image[None]) for image in images])
        mirrored = torch.cat([model(image[None].flip(3)) for image in images])
    torch.testing.assert_close(plain, one_by_one, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(flipped, (one_by_one + mirrored) / 2, rtol=1e-3, atol=1e-4)


def test_the_protocol_of_the_dataset_is_used(tiny):
    vehicles = ReIDDataset("vehicles", query=[Sample("a", 1, 1)], gallery=[Sample("b", 1, 2)], protocol="vehicle_id")
    plain = tiny.replace(rerank=False, flip=False)
    assert resolve_protocol(plain, vehicles).eval.protocol == "vehicle_id" and plain.eval.protocol == "auto"
    assert resolve_protocol(plain, vehicles, ranked_lists=True).eval.protocol == "standard"
    assert resolve_protocol(plain.replace(protocol="standard", rerank=True), vehicles).eval.protocol == "standard"
    with pytest.raises(UserError, match="--protocol single_shot"):
        resolve_protocol(plain.replace(protocol="single_shot"), vehicles, ranked_lists=True)


@pytest.mark.filterwarnings("ignore:.*not defined")
def test_settings_that_the_protocol_does_not_define_are_left_out_but_typed_ones_are_refused(tiny, monkeypatch):
    vehicles = ReIDDataset("vehicles", query=[Sample("a", 1, 1)], gallery=[Sample("b", 1, 2)], protocol="vehicle_id")
    state = {"config": tiny.replace(rerank=True, query_expansion=3, flip=True).to_dict()}
    monkeypatch.setattr("processor.test.find_checkpoint", lambda name, log_dir: Path(name))
    monkeypatch.setattr("processor.test.read_checkpoint", lambda path: state)
    for typed in ([], ["--protocol", "single_shot"]):
        run = parse_test(["run", *typed], {}, "")[0]
        preset = parse_train(["demo", *typed], {}).replace(query_expansion=3)
        for cfg in (run, preset):
            assert cfg.eval.flip and cfg.eval.rerank
            with pytest.warns(UserWarning) as warned:
                found = resolve_protocol(cfg, vehicles).eval
            assert found.flip and not found.rerank and found.query_expansion == 0
            assert [str(w.message).split()[0] for w in warned] == ["--rerank", "--query-expansion"]
        for option in ("--rerank", "--query-expansion=3", "--roc", "--by-camera"):
            with pytest.raises(UserError, match=option.split("=")[0]):
                resolve_protocol(parse_test(["run", *typed, option], {}, "")[0], vehicles)
