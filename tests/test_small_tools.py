"""The programs of one file as people run them."""

import csv
import json
import re
import shutil
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import draw, write_tree
from helpers import ROOT, arguments, done, program, refused, save_model

import processor.checkpoint
from config import Config
from config.cli import parse_train
from datasets.augment_rare import TRANSFORMS
from datasets.loaders import make_loaders
from datasets.make import make_test_set
from processor import do_train, load_model
from processor.checkpoint import read_checkpoint
from tools import results_table
from tools.check_dataset import doubt_names
from tools.embedding_plot import pca, tsne
from tools.model_summary import count
from tools.visualize_augmentation import columns
from utils.errors import UserError

# ---- tools/check_dataset.py


def check(dataset: object, sheet: object, *more: object):
    return program("tools/check_dataset.py", dataset, "--output", sheet, "--workers", 2, "--batch-size", 8, *more)


def test_a_sound_set_is_described_and_drawn_and_has_nothing_to_fix(tmp_path):
    shown = check(write_tree(tmp_path / "mine"), tmp_path / "sheet.png")
    assert shown.returncode == 0 and shown.stdout.rstrip().endswith("nothing to fix"), shown.stderr
    assert "gallery: images per identity 6 to 6, median 6, mean 6.0; 1 distractors" in shown.stdout
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["train", "36", "images", "6", "identities", "3", "cameras"] in rows
    assert ["width", *["16"] * 5] in rows
    assert ["2", "12", "6", "4", "4", "8", "4"] in rows  # camera 2: train, query, gallery images and identities
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape[0] > 2000 and sheet.std() > 20  # ten rows of pictures
    refused(check(tmp_path / "nowhere", tmp_path / "sheet.png"), "nowhere' is neither")


def test_what_is_wrong_is_listed_and_the_exit_code_is_1(tmp_path):
    base = write_tree(tmp_path / "mine")
    train, query, gallery = (base / folder for folder in ("bounding_box_train", "query", "bounding_box_test"))
    (train / "0001_c1s1_000000_00.jpg").write_bytes(b"no image")
    shutil.copy(train / "0002_c1s1_000000_00.jpg", train / "0003_c1s1_000077_00.jpg")
    shutil.copy(train / "0004_c1s1_000000_00.jpg", gallery / "0008_c2s1_000078_00.jpg")
    shutil.copy(train / "0005_c1s1_000000_00.jpg", gallery / "0005_c2s1_000079_00.jpg")
    shutil.copy(train / "0006_c1s1_000000_00.jpg", query / "0099_c2s1_000079_00.jpg")
    shown = check(base, tmp_path / "sheet.png")
    assert shown.returncode == 1 and "Traceback" not in shown.stderr
    problem = {line.split(" ", 2)[2]: int(line.split()[1]) for line in shown.stdout.splitlines() if "PROBLEM" in line}
    assert problem == {
        "files that cannot be decoded": 1,
        "equal files of different identities": 3,
        "equal files in training and test": 3,
        "identities in both training and test": 1,
        "queries without a match under another camera": 1,
    }
    assert "0001_c1s1_000000_00.jpg is not" in shown.stdout and "0099_c2s1_000079_00.jpg" in shown.stdout
    assert (tmp_path / "sheet.png").is_file()  # of all that can be drawn


def test_what_training_refuses_or_warns_of_is_said_before(tmp_path):
    people = [f"p{i}/{k}.png" for i in range(8) for k in range(3)]
    sets = {"two": people[:6], "stray": [*people, "stray.png"], "untested": [f"train/{p}" for p in people]}
    for name, files in sets.items():
        for number, file in enumerate(files):
            draw(tmp_path / name / file, number, 0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            said = []
            try:
                make_loaders(parse_train(["--dataset", str(tmp_path / name), "--disk-gb", "0"], {}))
            except UserError as error:
                said = [str(error)]
        said += [str(warning.message) for warning in caught]
        shown = program("tools/check_dataset.py", tmp_path / name, "--output", tmp_path / "x.png", "--people", 0)
        assert said and shown.returncode in (1, 2), name
        assert all(words in shown.stdout + shown.stderr for words in said), (said, shown.stdout)


def test_the_nearest_other_name_and_by_how_much_it_is_nearer_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    for number, names, width in ((40, 7, 6), (12, 3, 2), (9, 9, 3), (30, 2, 1)):  # width 1: many ties
        features = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(number, width)).astype(np.float32)))
        pids = np.concatenate([np.arange(names), rng.integers(0, names, number - names)])
        found, scores = doubt_names(features, pids)
        for i in range(number):
            mean = {}
            for pid in set(pids.tolist()):
                cosines = sorted(float(features[i] @ features[k]) for k in range(number) if pids[k] == pid and k != i)
                mean[pid] = np.mean(cosines[-3:]) if cosines else np.nan
            own = mean.pop(pids[i])
            assert mean[found[i]] == pytest.approx(max(mean.values()), abs=1e-5)
            assert scores[i] == pytest.approx(max(mean.values()) - own, abs=1e-5, nan_ok=True)


def test_a_model_finds_the_picture_with_the_wrong_name(tiny, tmp_path):
    model = save_model(tiny)
    for person, shot in product(range(4), range(4)):
        name = "p1" if (person, shot) == (0, 2) else f"p{person}"
        draw(tmp_path / "mine" / name / f"{person}{shot}.png", person, shot)
    args = (tmp_path / "mine", "--checkpoint", model, "--output", tmp_path / "x.png", "--people", 0)
    assert "nothing else to fix" in done("tools/check_dataset.py", *args)
    first = (tmp_path / "x_names.csv").read_text().splitlines()[1].split(",")
    assert first[0].endswith("p1/02.png") and first[1:3] == ["p1", "p0"] and float(first[3]) > 0.1
    assert cv2.imread(str(tmp_path / "x_names.png")).std() > 20


def test_a_batch_is_drawn_with_each_transform_alone_and_all_together(tiny, tmp_path):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 32, 16, 3), dtype=np.uint8))
    found = columns(images, Config(pad=2), epoch=0)
    assert list(found) == ["original", *TRANSFORMS, "as trained"]
    assert np.array_equal(found.pop("original"), images.numpy())
    assert all(c.shape == images.shape and not np.array_equal(c, images.numpy()) for c in found.values())
    args = ["--data-root", tiny.data.data_root, "--height", 32, "--width", 16, "--batch-size", 8, "--images-per-id", 2]
    done("tools/visualize_augmentation.py", *args, "--num", 2, "--log-dir", tmp_path, "--workers", 2)
    picture = cv2.imread(str(tmp_path / "augmentation_demo.png"))
    assert picture.shape[1] > 1000 and picture.std() > 20


# ---- tools/results_table.py


def fill(root: Path, *more: object) -> subprocess.CompletedProcess:
    return program("tools/results_table.py", "--root", root, *more)


def test_the_tables_of_the_pages_are_what_the_results_say(tmp_path):
    for name in ("README.md", "docs/results.md", "docs/cpu.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(re.sub(r"(?m)^\| .* \|\n", "", (ROOT / name).read_text()))
    shutil.copytree(ROOT / "results", tmp_path / "results")
    refused(fill(tmp_path, "--check"), "README.md", "results_table.py")
    assert fill(tmp_path).returncode == fill(tmp_path, "--check").returncode == 0
    for name in ("docs/results.md", "docs/cpu.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
    assert cv2.imread(str(tmp_path / "docs" / "cpu.png")).std() > 5


def test_results_of_a_cut_set_and_damaged_files_are_refused(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "published.json").write_text('{"rows": []}')
    (tmp_path / "README.md").write_text("no lines")
    refused(fill(tmp_path), "README.md", results_table.START)
    file, result = tmp_path / "results" / "b1.json", {"dataset": "demo", "note": "", "seed": 0, "scores": {}}
    for note in ("first 3 of 6; not comparable", "first 3; distilled from x; not comparable with published scores"):
        file.write_text(json.dumps(result | {"note": note}))
        refused(fill(tmp_path), file, "not comparable")
    del result["scores"]
    for content in ("{", json.dumps(result)):
        file.write_text(content)
        refused(fill(tmp_path), file)


# ---- tools/model_summary.py


def test_costs_are_the_published_ones_and_follow_the_settings():
    title, _, row = done("tools/model_summary.py", "resnet50").splitlines()
    assert title == "one image of 256 x 128, last stride 1"
    assert row.split() == ["resnet50", "23.51", "4053.27", "8.29", "2048"]
    torchvisions = 25_557_032 - 2048 * 1000 - 1000  # less its classifier
    assert count(Config(backbone="resnet50"))["parameters"] == torchvisions + 2 * 2048  # the neck
    *_, row = done("tools/model_summary.py", "mobilenet_v2", "--last-stride", 2, "--width-multiplier", 0.5).splitlines()
    assert float(row.split()[2]) < 195.6 / 2 and row.split()[4] == "1280"
    # activations in millions, MODEL_ZOO of facebookresearch/pycls, at 224 x 224 with last stride 2
    published = {"resnet50": 11.1, "regnet_x_800mf": 5.1, "regnet_y_400mf": 3.9, "regnet_y_1_6gf": 8.0}
    for backbone, mega in published.items():
        counted = count(Config(backbone=backbone, height=224, width=224, last_stride=2))
        assert round(counted["activations"] / 1e6, 1) == mega
    cfg = Config(backbone="resnet18", height=64, width=32, attention_stages=(2,))
    plain, non_local = (count(cfg.replace(attention=name)) for name in ("none", "nonlocal"))
    assert non_local["activations"] - plain["activations"] == (3 * 8 + 128) * 8 * 4  # its four 1 x 1 convolutions


# ---- tools/publish.py


def test_a_published_model_gives_the_same_features_from_a_small_file_and_is_used_where_there_is_no_run(
    tiny, tmp_path, monkeypatch
):
    do_train(tiny.replace(epochs=1, teacher=""))
    run, file = tmp_path / "log" / "demo" / "last.pth", tmp_path / "weights" / "small.pth"
    done("tools/publish.py", run, "--output", file)
    assert file.stat().st_size < run.stat().st_size / 4 and "demo" in file.with_suffix(".md").read_text()
    assert read_checkpoint(file)["labels"] == {}
    images = torch.rand(5, 3, 32, 16)
    with torch.no_grad():
        full, small = (load_model(path, "cpu")[0](images) for path in (run, file))
    assert torch.allclose(full, small, atol=0.01 * full.abs().max().item())

    refused(program("tools/publish.py", save_model(tiny), "--output", file), "scores")
    elsewhere = tmp_path / "other_log"
    monkeypatch.setattr(processor.checkpoint, "SHIPPED", file)
    monkeypatch.setattr(processor.checkpoint, "WEIGHTS", file.parent)
    assert "small.pth" in done("test.py", "--log-dir", elsewhere, "--data-root", tiny.data.data_root)
    assert list((elsewhere / "small" / "results").glob("*.json"))
    done("tools/search.py", "index", tmp_path / "data" / "demo" / "query", "--log-dir", elsewhere)
    assert (elsewhere / "small" / "gallery" / "index.json").is_file()


# ---- tools/compare.py


def write_run(log: Path, name: str, mAP: float, rows: tuple[str, ...] = ("plain",), **settings: object) -> None:
    """What a finished run leaves: its evaluations were 2 before, 90 after epoch 1 and `mAP` after epoch 3."""
    cfg = Config(name=name, log_dir=str(log), **settings)
    scores = {row: {"mAP": mAP + i, "mINP": 1.0, "rank1": 60.0, "valid_queries": 9} for i, row in enumerate(rows)}
    result = {"scores": scores, "note": "", "seed": cfg.run.seed, "epochs": 3, "settings": cfg.to_dict()}
    (log / name / "results").mkdir(parents=True)
    (log / name / "results" / "train.json").write_text(json.dumps(result))
    history = [{"epoch": e, "scores": {"plain": {"mAP": m}}} for e, m in ((0, 2.0), (1, 90.0), (3, mAP))]
    (log / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, history)))


def compare(log: Path, *runs: object) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in done("tools/compare.py", *runs, "--log-dir", log).splitlines()]


def test_runs_that_differ_in_the_seed_are_one_group_and_other_differences_are_listed(tmp_path):
    write_run(tmp_path, "a", 50.0, seed=0, workers=1)
    write_run(tmp_path, "b", 60.0, seed=1, workers=2)  # workers change nothing
    write_run(tmp_path, "c", 95.0, rows=("plain", "flip"), lr=0.5, flip=True)
    file = tmp_path / "c" / "results" / "train.json"
    older = json.loads(file.read_text())
    del older["settings"]["circle_weight"]  # as of a version that did not have it
    file.write_text(json.dumps(older | {"note": "first 3 of 6 identities; not comparable"}))
    lines = compare(tmp_path)
    assert lines == compare(tmp_path, "a", "b", "c")
    rows = [line for line in lines if {"plain", "flip"} & set(line[:6])]
    assert rows[0][:11] == ["a", "+1", "0", "1", "plain", "55.00", "±", "7.07", "1.00", "±", "0.00"]
    assert rows[0][-5:] == ["3", "90.00", "(1),", "90.00", "(1)"]
    assert rows[1] == ["c", "0", "plain", "95.00", "1.00", "60.00", "9", "3", "95.00", "(3)"]
    assert rows[2] == ["c", "0", "flip", "96.00", "1.00", "60.00", "9", "3"]
    differ = lines[lines.index(["setting", "a", "+1", "c"]) + 1 : -1]
    assert sorted(differ) == [["flip", "False", "True"], ["lr", str(Config().solver.lr), "0.5"]]
    assert lines[-1][:4] == ["note", "on", "c:", "first"]


def test_differences_on_the_same_queries_have_the_intervals_of_a_paired_bootstrap(tmp_path):
    rng = np.random.default_rng(1)
    base = rng.uniform(0, 1, 400)
    ap = {"a": base, "b": np.clip(base + 0.05 + rng.normal(0, 0.1, 400), 0, 1), "c": base + rng.normal(0, 0.1, 400)}
    for name, values in ap.items():
        write_run(tmp_path, name, 100 * values.mean(), lr=len(name) + values.sum())
        file = tmp_path / name / "results" / "train.json"
        queries = {"plain": {"ap": values.tolist(), "first": [1 + (x < 0.5) for x in values.tolist()]}}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"queries": queries, "images": ["q", "g"]}))
    lines = compare(tmp_path)
    row = next(line for line in lines if line[0] == "a")
    drawn = np.random.default_rng(2).choice(100 * base, (4000, 400)).mean(1)
    low, high = (float(word.strip("[,]")) for word in row[4:6])
    assert [low, high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.3)
    found = {(line[1], line[2]): line for line in lines if line[:1] == ["plain"]}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert {pair: line[6:8] == ["within", "chance"] for pair, line in found.items()} == {
        ("a", "b"): False, ("a", "c"): True, ("b", "c"): False
    }  # fmt: skip
    change = 100 * (ap["b"] - ap["a"])
    low, high = (float(word.strip("[,]")) for word in found["a", "b"][4:6])
    spread = 1.96 * change.std() / 20
    assert [low, high] == pytest.approx([change.mean() - spread, change.mean() + spread], abs=0.15)


def test_what_is_no_result_is_refused(tmp_path):
    refused(program("tools/compare.py", "--log-dir", tmp_path), tmp_path)
    refused(program("tools/compare.py", "nothing", "--log-dir", tmp_path), "nothing", "train.json")
    (tmp_path / "x.json").write_text('{"seed": 0}')
    refused(program("tools/compare.py", tmp_path / "x.json"), "x.json")


# ---- tools/embedding_plot.py


def test_pca_is_that_of_the_covariance_s_eigenvectors_and_tsne_keeps_identities_together():
    rng, pids = np.random.default_rng(0), np.repeat(np.arange(5), 8)
    features = torch.from_numpy(10 * rng.normal(size=(5, 16))[pids] + rng.normal(size=(40, 16))).float()
    points, shares = pca(features)
    x = features.double().numpy()
    x = x - x.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    for number in (0, 1):
        expected = x @ vectors[:, -1 - number]
        expected *= np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(points[:, number], expected, atol=1e-4)
        assert shares[number] == pytest.approx(values[-1 - number] / values.sum())
    for shape in ((1, 4), (3, 1), (4, 4)):
        points, shares = pca(torch.ones(shape))
        assert points.shape == (shape[0], 2) and not points.any() and shares == [0, 0]
    pytest.importorskip("sklearn")
    points = tsne(features, 0)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(len(pids), np.inf))
    assert (pids[distance.argmin(1)] == pids).all()
    assert np.isfinite(tsne(features[:4], 0)).all()


@pytest.mark.slow
def test_the_csv_has_every_test_image_of_the_identities_and_no_distractor(tiny, tmp_path, monkeypatch):
    save_model(tiny)
    where = ["tools/embedding_plot.py", "--log-dir", tiny.run.log_dir]

    def plot(name: str, *args: object) -> list[dict[str, str]]:
        done(*where, *args, "--output", tmp_path / f"{name}.png")
        assert cv2.imread(str(tmp_path / f"{name}.png")) is not None
        with open(tmp_path / f"{name}.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    dataset = make_test_set(tiny)
    expected = {(s.path, str(s.pid), str(s.camid), "query") for s in dataset.query}
    expected |= {(s.path, str(s.pid), str(s.camid), "gallery") for s in dataset.gallery if s.pid > 0}
    rows = plot("all", "--method", "pca", "--flip")
    assert {(r["path"], r["pid"], r["camid"], r["split"]) for r in rows} == expected and len(rows) == 36
    assert np.isfinite([[float(r["x"]), float(r["y"])] for r in rows]).all()
    seeds = (0, 1, 2, 0)
    chosen = [{row["pid"] for row in plot("some", "--method", "pca", "--ids", 2, "--seed", seed)} for seed in seeds]
    assert chosen[0] == chosen[3] and chosen.count(chosen[0]) < 4 and {len(pids) for pids in chosen} == {2}

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.manifold", None)
        refused(program(*where), "pip install scikit-learn", "--method pca")
    pytest.importorskip("sklearn")
    assert len(plot("tsne")) == 36


# ---- train.py, test.py and get_vis_result.py


def test_test_py_scores_the_latest_run_and_writes_json(tiny):
    path = save_model(tiny)
    shown = done("test.py", "--log-dir", tiny.run.log_dir, "--metric", "euclidean")
    result = json.loads((path.parent / "results" / "test_last_demo_euclidean.json").read_text())
    assert result["settings"]["metric"] == "euclidean" and "test.py" in result["test_command"]
    assert f"{result['scores']['plain']['mAP']:.2f}" in shown


def test_ranked_lists_are_drawn(tiny, tmp_path):
    out = tmp_path / "pictures"
    save_model(tiny)
    done("get_vis_result.py", "demo", "--log-dir", tiny.run.log_dir, "--sort", "best", "--num", "3", "--output", out)
    names = sorted(p.name for p in out.iterdir())
    assert len(names) == 4 and names[-1] == "overview.png" and names[0].startswith("001_ap")
    picture = cv2.imread(str(out / names[0]))
    for colour in ((215, 25, 28), (26, 150, 65)):  # around wrong and right matches
        assert (np.abs(picture.astype(int) - colour[::-1]).max(2) < 12).sum() > 1000, f"no frame of {colour}"


def test_a_checkpoint_that_is_not_there_or_of_another_architecture_is_refused(tiny):
    refused(program("test.py", "--log-dir", tiny.run.log_dir), "train.py", tiny.run.log_dir)
    path = save_model(tiny)
    refused(program("test.py", path, "--backbone", "resnet50"), "mobilenet_v2", "resnet50")
    refused(program("test.py", path, "--weights", "x.pth"), "--weights")


def test_a_log_directory_that_cannot_be_written_to_and_a_device_that_is_not_there(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for directory in (str(tmp_path / "file" / "log"), "/proc/reid"):
        refused(program("train.py", *arguments(tiny.replace(log_dir=directory))), directory, "--log-dir")
    refused(program("train.py", *arguments(tiny, "device"), "--device", "gpu7"), "gpu7")
